"""What a plan does to the picture: PSNR to the picture of one device with all the steps, by a model fitted to runs.

Errors of different causes add up as mean squared errors of pixels in 0..1. With N the steps of the reference, K those of
the plan, w of them synchronous, n bands per branch, and e steps from one exchange to the next:

- fewer steps: A (K^-p - N^-p)^2, p the order of the sampler as it is seen here;
- skipped evaluations: the same with what a device of stride r really evaluates, w + (K - w)/r, in place of K and K in
  place of N, by the share of rows that it holds, times a factor (another one if the skipped ones are predicted);
- stale context: exp(b) (K/50)^s w^-a (1 - w/K)^t (2 - 2/n)^u e^v, with b of the kind of context, less if it is predicted.

Ours, not of the papers; how well it holds is in `error_db`, from runs that were left out of the fit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from math import inf
from typing import Any

import numpy as np

from planner.errors import InputError
from planner.plan import Damping, Plan
from planner.wires import Array

LEVELS = {"any": -inf, "fast": 20.0, "high": 30.0, "strict": inf}  # least dB
PRIOR = {"steps": 0.0, "warm": -1.0, "late": 1.0, "bands": 1.0, "age": 1.0, "predicted": -0.5}
SLOPES = tuple(PRIOR)
# Kinds that are wrong in more than their age, which predicting does not mend.
BIASED = ("pcpp", "separate_gn", "no_sync")
FOLDS = 10
EXACT = ("single", "cfg", "ulysses", "ring")
BANDS = ("distrifusion", "pcpp", "stadi")
BEST_DB = 100.0
SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Look:
    """What a plan does to the picture, but for its steps and warm-up.

    kind: of stale context, "" if all is fresh; predicted, skipped_predicted: whether stale context and skipped
    evaluations are predicted; bands: per branch; shares: (stride, share of the rows), one per stride; age: steps from
    one exchange of stale context to the next.
    """

    kind: str = ""
    predicted: bool = False
    skipped_predicted: bool = False
    bands: int = 1
    shares: tuple[tuple[float, ...], ...] = ((1, 1.0),)
    age: int = 1

    @property
    def exact(self) -> bool:
        return not self.kind and max(stride for stride, _ in self.shares) == 1


def shares(rows: Sequence[int], strides: Sequence[int]) -> tuple[tuple[float, ...], ...]:
    """Share of the rows by stride."""
    total = {stride: 0 for stride in sorted(set(strides))}
    for count, stride in zip(rows, strides, strict=True):
        total[stride] += count
    return tuple((stride, count / sum(rows)) for stride, count in total.items())


@dataclass(frozen=True)
class Fidelity:
    """Coefficients for one model. source: `measured` on it or `transferred` from another; error_db: held out, median.

    sampler: the one it was measured with, which others may differ from. runs: what it was fitted to.
    """

    model: str
    sampler: str = ""
    few: tuple[float, ...] = (1.0, 1.0)  # log A, p
    skip: tuple[float, ...] = (0.0, 0.0)  # log of the factor if held, if predicted
    kinds: dict[str, float] = field(default_factory=dict)  # b
    slopes: dict[str, float] = field(default_factory=lambda: dict(PRIOR))
    offset_db: float = 0.0
    source: str = "measured"
    error_db: float = 0.0
    about: dict[str, Any] = field(default_factory=dict)
    runs: tuple[Run, ...] = ()

    def psnr(self, look: Look, steps: Any, warmup: Any, reference: int) -> Array:
        """dB for arrays of steps and (effective) warm-ups; BEST_DB at most. A kind nobody measured is as bad as any."""
        k, w = np.asarray(steps, float), np.minimum(np.asarray(warmup, float), steps)
        error = self._few(k, reference)
        for stride, share in look.shares:
            if stride > 1:
                factor = np.exp(self.skip[look.skipped_predicted])
                error = error + factor * share * self._few(w + (k - w) / stride, k)
        if look.kind:
            error = error + self._stale(look, k, w)
        with np.errstate(divide="ignore"):
            return np.asarray(np.minimum(-10 * np.log10(error) + self.offset_db * (error > 0), BEST_DB))

    def _few(self, steps: Array, reference: Any) -> Array:
        log_a, p = self.few
        return np.asarray(np.exp(log_a) * (steps**-p - np.asarray(reference, float) ** -p) ** 2)

    def _stale(self, look: Look, k: Array, w: Array) -> Array:
        slope = self.slopes
        base = self.kinds.get(look.kind, max(self.kinds.values(), default=0.0))
        late, mends = np.maximum(1 - w / k, 0.0), look.predicted and not look.kind.startswith(BIASED)
        size = base + slope["steps"] * np.log(k / 50) + slope["predicted"] * mends
        size = size + slope["warm"] * np.log(np.maximum(w, 1.0)) + slope["age"] * np.log(look.age)
        size = size + slope["bands"] * np.log(2 - 2 / max(look.bands, 2))
        return np.asarray(np.exp(size) * late ** max(slope["late"], 0.0))

    def of_another(self, model: str, offset_db: float = 0.0) -> Fidelity:
        """The same for a model on which nothing was measured, less sure of it."""
        return replace(self, model=model, source="transferred", offset_db=offset_db)

    def to_json(self) -> dict[str, Any]:
        return {"schema_version": SCHEMA_VERSION} | asdict(self)

    @staticmethod
    def from_json(document: dict[str, Any]) -> Fidelity:
        """Inverse of `to_json`; InputError for what is not one."""
        try:
            if document["schema_version"] != SCHEMA_VERSION:
                raise ValueError(f"schema_version {document['schema_version']} is not {SCHEMA_VERSION}")
            rest = {name: value for name, value in document.items() if name != "schema_version"}
            pairs = {name: tuple(map(float, rest[name])) for name in ("few", "skip")}
            return Fidelity(**rest | pairs | {"runs": tuple(map(Run.from_json, rest["runs"]))})
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"fidelity: not a table of `polyrhythm calibrate` ({error})") from error


def look(plan: Plan) -> Look:
    """What `plan` does to the picture."""
    last = max(plan.phases, key=lambda phase: phase.steps * phase.beats if phase.name != "warm-up" else 0)
    context = last.context
    bands = max(len(last.band_group(rank)) for rank in range(plan.ranks))
    cut = [(rows.count, stride) for rows, stride in zip(last.rows, last.strides, strict=True)]
    return Look(
        kind_of(plan.scheme, plan.knobs, bands),
        plan.scheme in BANDS and context.damping != Damping(),
        context.skipped > 0,
        bands,
        shares(*zip(*cut, strict=True)),
        last.steps,
    )


def kind_of(scheme: str, knobs: dict[str, Any], bands: int) -> str:
    """The kind of stale context that a scheme's knobs make; "" where everything is fresh."""
    mode = knobs.get("mode") or "corrected_async_gn"
    if scheme in EXACT or (scheme in BANDS and bands < 2):
        return ""
    if scheme == "pcpp":
        portion = knobs.get("portion") or 0.3
        nearest = max(portion) if isinstance(portion, tuple | list) else portion
        return f"pcpp {nearest:g}"
    if scheme in BANDS:
        return "" if mode == "full_sync" else str(mode)
    stages = knobs.get("stages")
    count = max(stages) if isinstance(stages, tuple | list) else stages
    predicted = "predicted" if scheme == "asyncdiff" and knobs.get("context") != "hold" else None
    rest = [str(v) for v in (count, knobs.get("stride"), knobs.get("direction"), predicted) if v is not None]
    return " ".join([scheme, *rest])


def fresh_steps(plan: Plan) -> int:
    """Steps of the plan in which everything is fresh, before stale context is used."""
    return sum(phase.steps * phase.beats for phase in plan.phases if phase.name in ("warm-up", "recut"))


@dataclass(frozen=True)
class Run:
    """Pictures that were made and compared: what did it, steps and effective warm-up, steps of the reference, dB (mean)."""

    look: Look
    steps: int
    warmup: int
    reference: int
    psnr_db: float
    name: str = ""

    @staticmethod
    def of(plan: Plan, reference: int, psnr_db: float, name: str = "") -> Run:
        return Run(look(plan), plan.steps, fresh_steps(plan), reference, psnr_db, name)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(document: dict[str, Any]) -> Run:
        """Inverse of `to_json`; InputError for what is not one."""
        try:
            look = document["look"]
            cut = tuple((int(stride), float(share)) for stride, share in look["shares"])
            return Run(**document | {"look": Look(**look | {"shares": cut})})
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"fidelity: not a run of `polyrhythm calibrate` ({error})") from error


def fit(model: str, sampler: str, runs: Sequence[Run], about: dict[str, Any] | None = None) -> Fidelity:
    """Coefficients of least squared dB, and how far they miss runs that they did not see; InputError without runs."""
    able = [run for run in runs if run.psnr_db < BEST_DB]
    if not able:
        raise InputError("fidelity: no run of a plan that changes the picture; nothing to fit")
    misses = [miss for fold in range(FOLDS) for miss in _left_out(able, fold)] if len(able) > FOLDS else []
    error = round(float(np.median(np.abs(misses))), 2) if misses else 0.0
    found = _fitted(able)
    return replace(found, model=model, sampler=sampler, error_db=error, about=about or {}, runs=tuple(runs))


def _fitted(runs: Sequence[Run]) -> Fidelity:
    """Slopes are drawn a little towards PRIOR, so that few runs are enough."""
    from scipy.optimize import least_squares

    kinds = sorted({run.look.kind for run in runs} - {""})

    def unpack(x: Any) -> Fidelity:
        slopes = dict(zip(SLOPES, map(float, x[4 : 4 + len(SLOPES)]), strict=True))
        bases = dict(zip(kinds, map(float, x[4 + len(SLOPES) :]), strict=True))
        return Fidelity("", "", (float(x[0]), float(x[1])), (float(x[2]), float(x[3])), bases, slopes)

    prior = np.array([0.0, 1.0, 0.0, -0.3, *(PRIOR[name] for name in SLOPES), *([-7.0] * len(kinds))])
    weight = np.array([0.01, 1.0, 0.5, 0.5, *([0.5] * len(SLOPES)), *([0.02] * len(kinds))])

    def residuals(x: Any) -> Any:
        found = unpack(x)
        off = [float(found.psnr(r.look, r.steps, r.warmup, r.reference)) - r.psnr_db for r in runs]
        return np.concatenate([off, weight * (x - prior)])

    return unpack(least_squares(residuals, prior, loss="soft_l1").x)


def _left_out(runs: Sequence[Run], fold: int) -> list[float]:
    """dB by which every FOLDS-th run is missed by a fit of the others."""
    found = _fitted([run for i, run in enumerate(runs) if i % FOLDS != fold])
    seen = {run.look.kind for i, run in enumerate(runs) if i % FOLDS != fold}
    left = [run for i, run in enumerate(runs) if i % FOLDS == fold and run.look.kind in seen]
    return [float(found.psnr(run.look, run.steps, run.warmup, run.reference)) - run.psnr_db for run in left]
