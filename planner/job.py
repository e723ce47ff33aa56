"""Job: one image (or batch of images) to make."""

from __future__ import annotations

from dataclasses import dataclass

from planner.errors import InputError, one_of

SAMPLERS = ("ddim", "euler", "euler-a", "flow-euler", "dpm++2m", "dpm++2m-sde", "unipc")
DRAWING = ("euler-a", "dpm++2m-sde")  # add noise in every step
DTYPE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


@dataclass(frozen=True)
class Job:
    """One image to make.

    model: name of a model description or a directory; height, width: pixels; steps: length of the global sigma grid;
    guidance: classifier-free guidance scale, 1 is no guidance (one branch); embedded: the model takes the scale as an
    input, so that there is one branch at any scale (FLUX); batch: images made at once; more: names of further branches
    beside the unconditional and the conditional one, as three-way guidance has them.
    Raises InputError for a value that no run could have.
    """

    model: str
    height: int
    width: int
    steps: int = 50
    guidance: float = 5.0
    sampler: str = "ddim"
    dtype: str = "float16"
    batch: int = 1
    seed: int = 0
    embedded: bool = False
    more: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "more", tuple(self.more))  # a list where it comes from a file
        if len({"uncond", "cond", *self.more}) < 2 + len(self.more):
            raise InputError(f"job: branches must differ, not uncond, cond, {', '.join(self.more)}")
        for name in ("height", "width", "steps", "batch"):
            value = getattr(self, name)
            if not _whole(value) or value < 1:
                raise InputError(f"job: {name} must be a whole number of at least 1, not {value!r}")
        if not _whole(self.seed):
            raise InputError(f"job: seed must be a whole number, not {self.seed!r}")
        if not (_whole(self.guidance) or isinstance(self.guidance, float)) or not 0 <= self.guidance < 1e4:
            raise InputError(f"job: guidance must be between 0 and 10000, not {self.guidance!r}")
        one_of("job: dtype", self.dtype, DTYPE_BYTES)
        one_of("job: sampler", self.sampler, SAMPLERS)

    @property
    def branches(self) -> tuple[str, ...]:
        """Branches of the denoiser, in the order in which diffusers stacks them on the batch."""
        return ("cond",) if self.guidance == 1 or self.embedded else ("uncond", "cond", *self.more)

    @property
    def draws(self) -> bool:
        """Whether the sampler adds noise in every step (DDIM only where the call says eta)."""
        return self.sampler in DRAWING

    @property
    def element_bytes(self) -> int:
        return DTYPE_BYTES[self.dtype]


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
