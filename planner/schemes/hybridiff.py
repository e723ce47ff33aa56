"""Hybridiff (Jung et al., CVPR 2026): guidance branches on different devices, and for a while one branch on all of them.

The branches are evaluated apart (condition partitioning). Every step observes how much they differ. When that has
become flat, for k steps they are taken for one, whose denoiser is cut into stages on all devices, one step behind each
other (a window of pipeline parallelism); then they are apart again.

In the paper's window the two branches are one estimate, the conditional branch in one stage and the unconditional one
in the other, and there is no guidance; its end cannot be observed. In the released code every block sends its output
to everybody, and the window's first step computes everything on both devices, so that there are outputs to send.
`direction="dropped"` is this. Not taken over are the code's defects: a cap that crashes, a wrong block sent for SD3, a
slope over L - 1 steps, state kept from image to image.

Ours: all stages compute the conditional branch, and the unconditional one is taken to differ from it as before the
window (`kept`) or as the last two differences predict (`predicted`), so that guidance goes on; only what is read
travels, and the window needs no step to fill it. It may so begin early, and be short: after a few steps together one
apart renews the direction and tells whether to go on, so the end is detected. More devices than branches share each
branch, and the window's one, by rows or by stages; stages are as long as their devices are fast.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from math import nan
from typing import Any

from planner.beats import CONTEXT, STATE, evaluation
from planner.cluster import Cluster
from planner.cost import Cost
from planner.course import resumed
from planner.errors import Infeasible, InputError, one_of
from planner.job import Job
from planner.model import Model
from planner.ops import DISCREPANCY, Compute, Observe, Op, Parcel, Recv, Send, Wait
from planner.plan import Context, Damping, Phase, Plan
from planner.replan import ordered
from planner.schemes.asyncdiff import PREDICT as STAGE
from planner.schemes.asyncdiff import Crew, Task, asyncdiff, team_of
from planner.schemes.cfg import cfg
from planner.schemes.stadi import stadi
from planner.stages import borders_named
from planner.switching import OURS, PUBLISHED, Switching, agree, discrepancy, part
from planner.timeline import Seen

PREDICT = 0.5  # damping of a predicted direction (`benchmarks/window.py`)


def hybridiff(
    job: Job,
    model: Model,
    cluster: Cluster,
    cost: Cost,
    *,
    window: int | None = None,
    threshold: float | None = None,
    cap: int | None = None,
    length: int | None = None,
    detect: bool | None = None,
    direction: str = "predicted",
    context: str | None = None,
    damping: float | tuple[float, ...] | None = None,
    send: str | None = None,
    within: str | None = None,
    split: tuple[int, ...] | None = None,
    cuts: tuple[str, ...] | None = None,
    outer: bool | None = None,
    warmup: int = 5,
    mode: str = "corrected_async_gn",
) -> Generator[Plan, Seen, None]:
    """Branches apart, together for a while, apart again. The first plan is the one if nothing is ever seen.

    window, threshold, cap: of the slope, see `planner.switching.Switching`; length: steps together. Those not given are
    the paper's for the model's family, or ours where the end is detected, scaled from 50 steps to the job's. A cap beyond
    the image's end is none.
    direction: `dropped` in the window, as published, or `kept`, or `predicted` from the last two, damped by `damping`.
    detect: after `length` steps together a step apart, and so on until the discrepancy has risen by the threshold per
    step; None does where each branch has one device, unless the direction is dropped. send: in the window, `all` or what
    is `needed`; context: whether stages and bands `hold` what they read last or `predict` it; None is as published, all
    and hold, if the direction is dropped, else needed and predict. cuts, outer: of the stages, as in `asyncdiff`.
    within: how devices share a branch: by `rows` (as `stadi` does with strides 1) or by `stages`; None takes stages where
    there is one device per branch, else rows. split: devices per branch, the first of the cluster; None takes all, as
    even as can be. warmup, mode: of rows, or of stages, of a branch that several devices share.

    Raises InputError where the knobs do not fit, Infeasible without guidance or with fewer devices than branches.
    """
    names, ways = tuple(device.name for device in cluster.devices), len(job.branches)
    split = _split(len(names), ways, split)
    alone, faithful = sum(split) == ways, direction == "dropped"
    detect = alone and not faithful if detect is None else detect
    send = send or ("all" if faithful else "needed")
    within = within or ("stages" if alone else "rows")
    context = context or ("hold" if faithful else "predict")
    one_of("hybridiff: direction", direction, ("dropped", "kept", "predicted"))
    one_of("hybridiff: send", send, ("needed", "all"))
    one_of("hybridiff: within", within, ("rows", "stages"))
    one_of("hybridiff: context", context, ("hold", "predict"))
    given: dict[str, Any] = {"window": window, "threshold": threshold, "cap": cap, "length": length}
    usual = OURS if detect else PUBLISHED.get(model.family, PUBLISHED["unet"])
    how = replace(usual.scaled(job.steps), **{name: n for name, n in given.items() if n is not None})
    policy = Context(
        guidance="dropped" if faithful else "kept",
        damping=Damping(border=STAGE if context == "predict" else 0.0, direction=_damping(direction, damping)),
    )
    devices = cluster.subset(names[: sum(split)])
    borders = None if cuts is None else borders_named(model, cuts)
    script = Script(job, model, devices, cost, policy, context, send, within, split, borders, outer, warmup, mode)
    knobs = {name: getattr(how, name) for name in given}
    knobs |= {"detect": detect, "direction": direction, "context": context}
    knobs |= {"send": send, "within": within, "split": list(split)}
    yield from switching(script, how, detect, knobs)


def _split(devices: int, ways: int, split: tuple[int, ...] | None) -> tuple[int, ...]:
    """Devices per branch: as given, or all of them, as even as can be, the larger last."""
    if ways < 2:
        raise Infeasible("hybridiff: guidance 1 leaves one branch; use another scheme or --guidance above 1")
    if devices < ways:
        raise Infeasible(f"hybridiff: {ways} branches need {ways} devices, the cluster has {devices}")
    split = split or tuple(devices // ways + (i >= ways - devices % ways) for i in range(ways))
    listed = ",".join(map(str, split))
    if len(split) != ways or min(split) < 1:
        raise InputError(f"hybridiff: split {listed} must name at least one device for each of {ways} branches")
    if sum(split) > devices:
        raise Infeasible(f"hybridiff: split {listed} needs {sum(split)} devices, the cluster has {devices}")
    return split


def _damping(direction: str, damping: float | tuple[float, ...] | None) -> float:
    each = damping if isinstance(damping, tuple) else (PREDICT if damping is None else damping,)
    if len(each) != 1 or not 0 <= each[0] <= 2:
        raise InputError(f"hybridiff: damping {damping}: give one number from 0 (kept) to 2")
    return each[0] if direction == "predicted" else 0.0


def switching(script: Script, how: Switching, detect: bool, knobs: dict[str, Any]) -> Generator[Plan, Seen, None]:
    """The plan with windows from the cap on, and what follows from the discrepancy of each step with the branches apart."""
    apart = replace(script.apart_throughout, knobs=knobs)
    plan = replace(apart, phases=script.together(apart, how.cap + 1, how.length, detect))
    curve: list[float] = []
    tau: int | None = None  # the step at which the branches agreed
    parted = not detect

    def changed(phases: tuple[Phase, ...], together: int) -> Plan:
        entry = {"step": seen.step, "together": together, "discrepancy": float(f"{curve[-1]:.4g}")}
        return replace(plan, phases=phases, knobs=plan.knobs | {"adapted": [*plan.knobs.get("adapted", []), entry]})

    while True:
        seen = yield plan
        step = seen.step - 1
        computed = plan.at(step).context.guidance == "computed"
        numbers = seen.values.get(DISCREPANCY) if computed else None
        curve += [nan] * (step - len(curve)) + [discrepancy(numbers) if numbers else nan]
        if tau is None:
            tau = agree(curve, how)
            if tau is not None and step < how.cap and how.length:  # at the cap the plan has it anyway
                plan = changed(script.together(apart, seen.step, how.length, detect), how.length)
        elif not parted and part(curve, how, tau) is not None:
            parted = True
            plan = changed(resumed(plan, seen.step, script.apart(script.job.steps - seen.step)), 0)


@dataclass(frozen=True)
class Script:
    """What the phases are made of. policy: of the window; split: devices per branch; cuts: as stops."""

    job: Job
    model: Model
    cluster: Cluster
    cost: Cost
    policy: Context
    context: str
    send: str
    within: str
    split: tuple[int, ...]
    cuts: tuple[int, ...] | None
    outer: bool | None
    warmup: int
    mode: str

    @property
    def alone(self) -> bool:
        """Whether each branch has a device of its own."""
        return max(self.split) == 1

    @property
    def branch(self) -> str:
        """The one that the window computes."""
        return self.job.branches[1]

    # Branches apart.

    @cached_property
    def apart_throughout(self) -> Plan:
        plan = self._apart(self.job.steps, self.warmup)
        return replace(plan, scheme="hybridiff", phases=self._watched(plan.phases))

    def apart(self, steps: int) -> tuple[Phase, ...]:
        """Phases for ranks that come out of a window, on the devices in their places."""
        plan = ordered(self._apart(steps, 1), self.apart_throughout.devices)
        return self._watched(plan.phases)

    def _watched(self, phases: tuple[Phase, ...]) -> tuple[Phase, ...]:
        """Observed, and with the tensors kept by which a window predicts."""
        border = self.policy.damping.border
        kept = (replace(p, context=replace(p.context, damping=replace(p.context.damping, border=border))) for p in phases)
        return observed(kept, self.job, self.model)

    def _apart(self, steps: int, warmup: int) -> Plan:
        job = replace(self.job, steps=steps)
        if self.alone:
            return next(cfg(job, self.model, self.cluster, self.cost))
        how: dict[str, Any] = {"warmup": warmup, "split": self.split, "context": self.context}
        if self.within == "rows":
            how |= {"temporal": False, "exclude": False, "mode": self.mode}
            return next(stadi(job, self.model, self.cluster, self.cost, **how))
        return next(asyncdiff(job, self.model, self.cluster, self.cost, **how, outer=self.outer))

    # One branch on all devices.

    def together(self, plan: Plan, step: int, length: int, again: bool) -> tuple[Phase, ...]:
        """The phases of `plan` up to the downbeat at `step`, of one branch for `length` steps, then of both apart.

        again: for one step, after which it begins anew.
        """
        left = self.job.steps - step
        if min(length, left) < 1:
            return plan.phases
        found: list[Phase] = []
        while left > 0:
            count = min(length, left)
            found += self._window(count)
            left -= count
            rest = min(1, left) if again else left
            found += self.apart(rest) if rest else ()
            left -= rest
        return resumed(plan, step, found)

    def _window(self, steps: int) -> tuple[Phase, ...]:
        phases = self._rows(steps) if self.within == "rows" else self._stages(steps)
        named = (replace(p, name=f"window {p.name}", context=_under(self.policy, p.context)) for p in phases)
        return observed(named, self.job, self.model)

    def _rows(self, steps: int) -> tuple[Phase, ...]:
        """Bands of the whole image on all devices, by their speeds."""
        devices = self.apart_throughout.devices
        job = replace(self.job, steps=steps, guidance=1.0, more=())
        how: dict[str, Any] = {"warmup": 1, "temporal": False, "exclude": False, "mode": self.mode, "context": self.context}
        plan = ordered(next(stadi(job, self.model, self.cluster.subset(devices), self.cost, **how)), devices)
        named = ((self.branch,),) * len(devices)
        return tuple(replace(phase, branches=named, ops=_of_branch(phase.ops, self.branch)) for phase in plan.phases)

    @cached_property
    def crew(self) -> Crew:
        """Stages on all devices, as long as these are fast; as published each computes the branch that it computes anyway."""
        devices, own = self.apart_throughout.devices, self.apart_throughout.phases[0].branches
        outer = self.model.has_skips if self.outer is None else self.outer
        task = Task(self.job, self.model, self.cost, len(devices), 1, self.cuts, outer)
        mixed = self.policy.guidance == "dropped"
        return Crew(task, (team_of(task, (self.branch,), devices),), own if mixed else None)

    def _stages(self, steps: int) -> tuple[Phase, ...]:
        crew, own = self.crew, self.apart_throughout.phases[0].branches
        after = Context(damping=Damping(border=self.policy.damping.border))
        if self.send == "all":
            everyone, makers = crew.where.everyone, crew.heads
            fill = [tuple(evaluation(self.model, crew.alike, r, noise=everyone, makers=makers)) for r in everyone]
            first = replace(crew.warm_up(1, "chain", after), name="fill", ops=tuple(fill))
            return (first, *crew.phases(steps - 1, "all", False, after))
        if not self.alone:  # nobody has had the whole image of the branch
            return (crew.warm_up(1, crew.quicker(), after), *crew.phases(steps - 1, "needed", False, after))
        first, *more = crew.phases(steps, "needed", False, after)
        return (_entered(first, crew, own), *more)


def _entered(first: Phase, crew: Crew, own: tuple[tuple[str, ...], ...]) -> Phase:
    """The window's first step, before which those who read what they have not computed are sent it, of the step before.

    own: per rank, the branches that it computed then, all stops of them.
    """
    ops = list(first.ops)
    for reader in crew.where.everyone:
        wanted: dict[int, list[int]] = {}
        for c in crew.crossing:
            branches = crew.where.branches[c.source]
            if c.reader == reader and own[reader] != branches:
                wanted.setdefault(own.index(branches), []).append(c.stop)
        for source, stops in wanted.items():
            what = Parcel(f"entry{source}-{reader}", tuple(stops))
            ops[source] = (Send(what, reader, CONTEXT), *ops[source], Wait(what.name))
            ops[reader] = (Recv(what, source, CONTEXT), Wait(what.name), *ops[reader])
    return replace(first, ops=tuple(ops))


def _under(policy: Context, context: Context) -> Context:
    """A phase's context with the window's guidance."""
    damping = replace(context.damping, direction=policy.damping.direction)
    return replace(context, guidance=policy.guidance, damping=damping)


def _of_branch(ops: tuple[tuple[Op, ...], ...], branch: str) -> tuple[tuple[Op, ...], ...]:
    """The same computes for this branch."""
    return tuple(
        tuple(replace(op, branches=(branch,)) if isinstance(op, Compute) else op for op in of_rank) for of_rank in ops
    )


def observed(phases: Iterable[Phase], job: Job, model: Model) -> tuple[Phase, ...]:
    """Each step shares how much the branches differ as soon as their noise is there, behind the latent's update."""

    def sharing(ops: tuple[Op, ...], share: Observe) -> Iterable[Op]:
        for op in ops:
            if not isinstance(op, Compute) or op.stop != model.latent:
                yield op
                continue
            if op.start < model.noise:
                yield replace(op, stop=model.noise)
            yield from (share, replace(op, start=model.noise))
        yield Wait(DISCREPANCY)

    found = []
    for phase in phases:
        share = Observe(DISCREPANCY, len(job.branches), tuple(range(len(phase.rows))), STATE)
        found.append(replace(phase, ops=tuple(tuple(sharing(ops, share)) for ops in phase.ops)))
    return tuple(found)
