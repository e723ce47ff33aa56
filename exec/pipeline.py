"""parallelize(pipe, plan): the same diffusers pipeline, the same call, performed by several ranks; `unparallelize` undoes it.

Three instance attributes are replaced: the denoiser's forward (takes the own branches and rows, hands back the noise
that is known), and the scheduler's step and scale_model_input (explicit steps on the global grid). Guidance, callbacks,
progress bar and decoding stay the pipeline's.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from exec import annotate, preflight, sampler
from exec.channels import Channels
from exec.clock import clock_for
from exec.context import Context, ahead
from exec.denoiser import Seam, adapter_for, pack, skeleton, unpack
from exec.graphs import recorder
from exec.pace import Pace
from exec.run import run
from planner.beats import CONTEXT, STATE
from planner.course import Course
from planner.errors import InputError, NotANumber, PlanError
from planner.model import Model
from planner.ops import Compute, Rows
from planner.plan import Phase, Plan, sampled_rows
from planner.timeline import Seen, Timeline


def parallelize(
    pipe: Any,
    plan: Plan,
    rank: int | None = None,
    *,
    channels: Channels | None = None,
    pace: Pace | None = None,
    blank: bool = False,
    recorded: Sequence[Seen] = (),
    graphs: bool = False,
) -> Any:
    """Make `pipe` perform `plan` as its rank `rank` (default: this process's rank); returns the same object.

    Every rank calls the pipeline alike, with the same arguments; a CPU generator (or latents) makes the start equal.
    After a call `pipe.polyrhythm.timeline` holds what happened, and `.performed` the plan as it was performed, which is
    another one where a scheme has adapted. blank: stand-in zeros for what other ranks would have sent, to time one rank
    alone. recorded: what an adapting scheme is told in place of what is seen: `Timeline.seen` of an image that is to be
    made again. graphs: record evaluations as CUDA graphs (`exec.graphs`), so that later ones cost no Python. Raises
    InputError, PlanError or RanksDisagree before the first forward.
    """
    if hasattr(pipe, "polyrhythm"):
        unparallelize(pipe)
    if rank is None:
        rank = dist.get_rank() if dist.is_initialized() else 0
    if channels is None and plan.ranks > 1 and not blank:
        if not dist.is_initialized():
            raise PlanError(
                f"the plan has {plan.ranks} ranks but torch.distributed is not initialised; start with `polyrhythm run` or torchrun"
            )
        if dist.get_world_size() != plan.ranks:
            raise PlanError(
                f"the plan has {plan.ranks} ranks, the process group {dist.get_world_size()}; start as many as the plan has"
            )
        later = (CONTEXT, STATE) if plan.recipe else ()  # what plans that follow may use
        channels = Channels(tuple({*plan.channels(), *later}))
    pipe.polyrhythm = Parallel(pipe, plan, rank, channels, pace, blank, recorded, graphs)
    return pipe


def unparallelize(pipe: Any) -> Any:
    """Undo `parallelize`; the pipeline is as it was. No-op on a pipeline that is not parallel."""
    if hasattr(pipe, "polyrhythm"):
        pipe.polyrhythm.remove()
        del pipe.polyrhythm
    return pipe


class Parallel:
    """The state of one parallel pipeline on one rank."""

    def __init__(
        self,
        pipe: Any,
        plan: Plan,
        rank: int,
        channels: Channels | None,
        pace: Pace | None,
        blank: bool,
        recorded: Sequence[Seen] = (),
        graphs: bool = False,
    ) -> None:
        self.pipe, self.plan, self.rank, self.channels, self.pace, self.blank = pipe, plan, rank, channels, pace, blank
        self.recorded = recorded
        self.denoiser = getattr(pipe, "unet", None) or pipe.transformer
        self.scheduler = pipe.scheduler
        self.adapter = adapter_for(self.denoiser)
        self.model: Model = skeleton(plan.job.model, self.adapter, pipe.vae_scale_factor)
        self._check(plan)
        self.seam = Seam(recorder(self.denoiser.device) if graphs else None)
        self.phases: list[Phase] = []  # that were recorded
        self.clock = clock_for(self.denoiser.device)
        self.timeline: Timeline | None = None
        self.performed = plan
        self.versions = preflight.versions(self.denoiser)
        self.calls, self.forwards = 0, 0
        self.levels: list[float] = []
        self.stepper: sampler.Stepper | None = None
        self.stepped: Phase | None = None
        self.evaluated: tuple[int, Rows, Tensor] | None = None
        self.adapter.install(self.seam)
        original = type(self.denoiser).forward
        self.denoiser.forward = partial(self._forward, partial(original, self.denoiser))
        for name in ("step", "scale_model_input", "set_timesteps"):
            if hasattr(self.scheduler, name):
                before = getattr(self.scheduler, name)
                after = partial(getattr(self, f"_{name}"), before)
                signature = inspect.signature(before)  # pipelines ask it whether to pass eta, sigmas, ...
                setattr(after, "__signature__", signature)  # noqa: B010
                setattr(self.scheduler, name, after)

    def remove(self) -> None:
        self.seam.close()
        if self.seam.recorder is not None:
            self.seam.recorder.forget()
        self.adapter.remove()
        self.denoiser.__dict__.pop("forward", None)
        for name in ("step", "scale_model_input", "set_timesteps"):
            self.scheduler.__dict__.pop(name, None)

    def _check(self, plan: Plan) -> None:
        if not 0 <= self.rank < plan.ranks:
            raise PlanError(f"rank {self.rank}: the plan has ranks 0 to {plan.ranks - 1}")
        if self.model.takes_guidance and len(plan.job.branches) > 1:
            raise InputError(
                f"{type(self.denoiser).__name__} takes the guidance scale as an input and has one branch, the plan has "
                f"{len(plan.job.branches)}; plan with a job that says so (`embedded`)"
            )
        kind = sampler.kind_of(self.scheduler)
        if kind != plan.job.sampler:
            raise InputError(
                f"the plan is for sampler {plan.job.sampler}, the pipeline has {kind}; plan anew or change pipe.scheduler"
            )
        highest = max(op.stop for p in plan.phases for op in p.ops[self.rank] if isinstance(op, Compute))
        if highest != self.model.latent:
            raise PlanError(
                f"the plan is for a model of {highest} stops, {type(self.denoiser).__name__} here has {self.model.latent}; plan anew"
            )
        dtype = str(self.denoiser.dtype).removeprefix("torch.")
        if dtype != plan.job.dtype:
            raise InputError(
                f"the plan is for {plan.job.dtype}, the pipeline's denoiser is {dtype}; load it with dtype={plan.job.dtype}"
            )

    # The three replaced methods

    def _set_timesteps(self, original: Any, *args: Any, **kwargs: Any) -> None:
        self.seam.close()  # a new image begins; whatever an interrupted one left is void
        self.calls, self.forwards = 0, 0
        original(*args, **kwargs)
        self.stepper, self.stepped, self.evaluated = sampler.Stepper(self.scheduler), None, None
        self.levels = sampler.levels(self.scheduler)

    def _scale_model_input(self, original: Any, sample: Tensor, timestep: Any = None) -> Tensor:
        return self.stepper.scale(self.calls, sample)

    def _forward(self, original: Any, *args: Any, **kwargs: Any) -> Any:
        if args:
            sample, args = args[0], args[1:]
        else:
            name = "sample" if "sample" in kwargs else "hidden_states"
            sample = kwargs.pop(name)
        if self.calls == self.forwards == 0:
            self._begin(sample, kwargs.get("encoder_hidden_states"))
        if self.forwards > self.calls:
            raise InputError(
                "the pipeline evaluates its denoiser twice in a step, a plan once (guidance goes through the batch); "
                "switch off true_cfg_scale or skip_guidance_layers"
            )
        self.forwards += 1
        if not self.seam.live or self.seam.step != self.calls:  # a slow rank's off-beat
            noise = torch.zeros_like(sample)
        elif self.seam.op.start == self.model.noise:  # of a pair of steps, the second
            noise = self._packed(self.seam.context.noise())
        else:
            noise = self._evaluate(original, sample, *self._told(args, kwargs))
        return_dict = kwargs.get("return_dict", True)
        return _Output(noise) if return_dict else (noise,)

    def _told(self, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        """The arguments, with the timestep of another grid step where the phase has the denoiser told that one's."""
        ahead = self.seam.phase.ahead[self.rank] if self.seam.phase.ahead else 0
        if not ahead:
            return args, kwargs
        grid = self.scheduler.timesteps
        further = grid[min(self.calls + ahead, len(grid) - 1)] - grid[self.calls]
        if args:
            return (args[0] + further, *args[1:]), kwargs
        return args, {**kwargs, "timestep": kwargs["timestep"] + further}

    def _evaluate(self, original: Any, sample: Tensor, args: tuple, kwargs: dict) -> Tensor:
        """One evaluation on the own branches and rows. sample: (images x branches, ...) as the pipeline has it."""
        job, phase = self.plan.job, self.seam.phase
        rows, own = phase.rows[self.rank], phase.branches[self.rank]
        chosen = [k for k, branch in enumerate(job.branches) if branch in own]
        whole = len(chosen) == len(job.branches)

        def pick(value: Any) -> Any:
            if isinstance(value, dict):
                return {k: pick(v) for k, v in value.items()}
            if whole or not (isinstance(value, Tensor) and value.ndim and value.shape[0] == sample.shape[0]):
                return value
            branches = value.unflatten(0, (len(job.branches), job.batch))
            return torch.cat([branches[k] for k in chosen])  # a list as index would wait for the GPU

        def forward(inputs: tuple[Tensor, Tensor, list[Any], dict[str, Any]]) -> Tensor:
            self.seam.full, band, args, kwargs = inputs
            return original(band, *args, **kwargs, return_dict=False)[0]

        full = pick(sample)
        band = self._packed(self._latents(full)[:, :, rows.start : rows.stop])
        inputs = full, band, [*map(pick, args)], pick({k: v for k, v in kwargs.items() if k != "return_dict"})
        known = self.seam.recorder
        out = known.evaluate(self._kind(phase), forward, inputs) if known else forward(inputs)
        out = unpack(out, self.adapter.packed, rows.count)
        channels = self.model.stops[self.model.noise].channels
        if not self.seam.foreign(self.model.noise):
            self.seam.at(self.model.noise, out[:, :channels])
        noise = self.seam.context.noise()
        # PixArt also predicts variances, which its pipeline throws away: they do not travel.
        return self._packed(F.pad(noise, (0, 0, 0, 0, 0, out.shape[1] - channels)))

    def _kind(self, phase: Phase) -> tuple[int, int]:
        """Evaluations of one kind do the same on other numbers: the phase's number, and the step within the beat."""
        known = next((n for n, other in enumerate(self.phases) if other is phase or other == phase), None)
        if known is None:
            self.phases.append(phase)
        return len(self.phases) - 1 if known is None else known, self.seam.op.step

    def _latents(self, sample: Tensor) -> Tensor:
        return unpack(sample, self.adapter.packed, self.model.latent_size(self.plan.job)[0])

    def _packed(self, latents: Tensor) -> Tensor:
        return pack(latents, self.adapter.packed)

    def _step(self, original: Any, prediction: Tensor, timestep: Any, sample: Tensor, *args: Any, **kwargs: Any) -> Any:
        """The pipeline's scheduler step: own rows (or all) from sigma[i] to sigma[i + stride]; then latents are shared."""
        return_dict = kwargs.pop("return_dict", True)
        i = self.calls
        self.calls += 1
        if self.plan.ranks > 1 and self.stepper.draws(kwargs.get("eta", 0.0)):
            sampler.check_generator(kwargs.get("generator"), self.stepper.kind)
        if self.seam.live and self.seam.step == i:
            phase = self.seam.phase
            rows, own = sampled_rows(self.model, phase, self.rank), phase.rows[self.rank]
            band = slice(rows.start, rows.stop)
            latents = self._latents(sample).clone()
            stepped = self._sampled(i, phase, rows, sample, prediction, kwargs)
            latents[:, :, band] = self._latents(stepped)[:, :, band]
            context = self.seam.context
            self.seam.at(self.model.latent, latents[:, :, own.start : own.stop])
            context.place_latents(latents)
            sample = self._packed(latents)
            if not self.seam.live:
                self._finish(latents)
        else:
            self.stepper.skip(i, sample, prediction, **kwargs)
        return _Output(sample) if return_dict else (sample,)

    def _sampled(
        self, i: int, phase: Phase, rows: Rows, sample: Tensor, prediction: Tensor, how: dict[str, Any]
    ) -> Tensor:
        """From sigma[i] to sigma[i + stride], right in `rows`; what is skipped is held, or predicted from the last two."""
        if phase is not self.stepped:
            self._check_rescale(phase)  # of a plan that came later, too
            if self.stepped and not carried(self.model, self.stepped, phase):
                self.stepper.restart()
            self.stepped = phase
        end, damping = i + phase.strides[self.rank], phase.context.skipped
        last, self.evaluated = self.evaluated, (i, rows, prediction)
        known = last is not None and last[1].start <= rows.start and rows.stop <= last[1].stop
        if not (known and damping) or end == i + 1:
            return self.stepper.step(i, end, sample, prediction, **how)
        if self.stepper.draws(how.get("eta", 0.0)):
            raise InputError(
                f"sampler {self.stepper.kind} draws noise in every step, so skipped evaluations cannot be predicted; "
                "plan with --skipped hold"
            )
        step, _, before = last
        for j in range(i, end):
            predicted = torch.lerp(before, prediction, 1 + damping * ahead(self.levels, j, i, step))
            sample = self.stepper.step(j, j + 1, sample, predicted, **how)
        return sample

    def _check_rescale(self, phase: Phase) -> None:
        whole = Rows(0, self.model.latent_size(self.plan.job)[0])
        known = [sampled_rows(self.model, phase, rank) == whole for rank in range(self.plan.ranks)]
        if getattr(self.pipe, "guidance_rescale", 0) and not all(known):
            raise InputError(
                "guidance_rescale takes the spread of the whole noise, which not every rank of this plan has in every "
                "step; switch it off, or take a plan of strides 1"
            )

    # The frame of an image

    def _begin(self, sample: Tensor, text: Tensor | None) -> None:
        job = self.plan.job
        tokens = text.shape[1] if text is not None else 0
        self.model = skeleton(job.model, self.adapter, self.pipe.vae_scale_factor, text_tokens=tokens)
        steps, size = len(self.scheduler.timesteps), self.model.latent_size(job)
        expected: tuple[int, ...] = (job.batch * len(job.branches), *size)
        found, what = (sample.shape[0], *sample.shape[2:]), "rows, columns"
        if self.adapter.packed > 1:
            expected = expected[0], size[0] * size[1] // self.adapter.packed**2
            found, what = tuple(sample.shape[:2]), "tokens"
        if steps != job.steps or found != expected:
            raise InputError(
                f"the plan is for {job.steps} steps of (batch, {what}) {expected}, the call has {steps} of {found}; "
                "call the pipeline as planned (num_inference_steps, height, width, guidance_scale) or plan anew"
            )
        whole = Rows(0, size[0])
        known = [
            sampled_rows(self.model, phase, r) == whole for phase in self.plan.phases for r in range(self.plan.ranks)
        ]
        if getattr(self.pipe, "guidance_rescale", 0) and not all(known):
            raise InputError(
                "guidance_rescale takes the spread of the whole noise, which not every rank of this plan has in every "
                "step; switch it off, or take a plan of strides 1"
            )
        self.course = Course(self.plan, self.model, self.recorded)
        # A scheme that adapts may cut where its first plan does not.
        wanted = self.model.borders if self.plan.recipe else self.plan.carried()
        context = Context(self.model, job, self.rank, self.blank, self.levels, wanted, self.denoiser.device)
        if self.channels is not None and self.plan.ranks > 1:
            self._agree(sample)
        self.clock.start()
        program = run(self.course, self.rank, context, self.channels, self.clock, self.pace)
        self.seam.begin(annotate.image(program, self.plan, self.rank), context)

    def _agree(self, sample: Tensor) -> None:
        digest = hashlib.sha256(sample.detach().float().cpu().numpy().tobytes()).hexdigest()
        recipe = self.plan.recipe.digest if self.plan.recipe else ""
        fields = {"plan": self.plan.digest, "what its scheme is given": recipe, "start latents (seed)": digest}
        preflight.agree(self.channels, self.plan, self.rank, fields | self.versions)

    def _finish(self, latents: Tensor) -> None:
        received = {self.rank: dict(self.channels.received)} if self.channels is not None else {}
        done = self.performed = self.course.plan
        said = {"seconds": "measured", "clock": self.clock.said()}
        events, seen = self.seam.done, self.course.seen
        self.timeline = Timeline("measured", done.digest, done.devices, events, received, said, seen=seen)
        if not bool(torch.isfinite(latents).all()):
            raise NotANumber(f"rank {self.rank} ({self.plan.devices[self.rank]}): the final latents are not finite")


def carried(model: Model, before: Phase, phase: Phase) -> bool:
    """Whether every rank has the sampler's history of all rows that it will update in `phase`.

    All must know it: ranks that update the same rows must do so alike.
    """
    ranks = range(len(phase.rows))
    known = [(sampled_rows(model, before, rank), sampled_rows(model, phase, rank)) for rank in ranks]
    return all(old.start <= new.start and new.stop <= old.stop for old, new in known)


class _Output(tuple):
    """Quacks as both diffusers outputs: `.sample`, `.prev_sample` and item 0."""

    def __new__(cls, tensor: Tensor) -> _Output:
        return super().__new__(cls, (tensor,))

    @property
    def sample(self) -> Tensor:
        return self[0]

    prev_sample = sample
