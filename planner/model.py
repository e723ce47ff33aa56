"""Model: a denoiser as a list of parts between the stops where ranks may interact. No weights, no torch.

Descriptions are made by counting the real diffusers classes on the meta device (`exec/describe.py`) and shipped as JSON.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import asdict, astuple, dataclass
from functools import cached_property
from math import ceil
from typing import Any

from planner.errors import InputError
from planner.job import Job
from planner.ops import Parcel, Rows


@dataclass(frozen=True, slots=True)
class Stop:
    """A point where ranks may interact, and what one rank's band contributes there.

    kind: `entry`, `halo` (edge rows beside a convolution), `stat` (GroupNorm moments), `kv` (keys and values of
    self-attention), `border` (the output of a block, where another rank may go on), `noise`, `latent`. channels: per
    position (kv: 2C, stat: groups). scale: latent rows per row here (2^downsamplings, or the patch size). pad: edge rows
    a convolution needs on each side. tokens: text tokens that go on with the image at a border, of as many channels; of
    kv, those whose outputs are needed, too. again: the later border whose following work reads this border's tensor a
    second time (a skip connection), 0 if none. heads: of the attention, 0 if it cannot be divided by them.
    """

    name: str
    kind: str
    channels: int = 0
    scale: int = 1
    pad: int = 0
    tokens: int = 0
    again: int = 0
    heads: int = 0

    def positions(self, rows: int, width: int, portion: float = 1.0) -> int:
        """Positions (tokens, pixels) of a band here; of a portion of them, whole ones, rounded up."""
        count = (rows // self.scale) * (width // self.scale)
        return min(count, ceil(portion * count - 1e-9))  # 0.1 of 30 is 3, whatever the product's last bit

    def elements(self, rows: int, width: int, part: str = "own", portion: float = 1.0, heads: int = 0) -> int:
        """Elements per batch item that a band of `rows` latent rows, `width` latent columns wide, hands over.

        part, portion: as in `planner.ops.Parcel`. Of a divided attention, rows: the sender's of `heads`, the receiver's
        of `outputs`; heads: whose they are.
        """
        match self.kind:
            case "kv" if part == "heads":
                return self.positions(rows, width) * 3 * self._of_heads(heads)
            case "kv" if part == "outputs":
                return (self.positions(rows, width) + self.tokens) * self._of_heads(heads)
            case "kv" | "noise" | "latent":
                return self.positions(rows, width, portion if self.kind == "kv" else 1.0) * self.channels
            case "halo":  # top and bottom edge, whether or not there is a neighbour (DistriFusion registers both)
                edges = 2 if part == "own" else 1
                return edges * self.channels * self.pad * (width // self.scale)
            case "stat":  # E[x] and E[x^2] per group
                return 2 * self.channels
            case "border":
                return (self.positions(rows, width) + self.tokens) * self.channels
            case _:
                return 0

    def _of_heads(self, heads: int) -> int:
        """Channels of so many of the heads."""
        return self.channels // 2 // self.heads * heads


@dataclass(frozen=True, slots=True)
class Part:
    """The work between one stop and the next, per batch item.

    FLOPs are fixed + per_own p + per_pair p h + per_all h, with p the latent pixels of the own band and h those of the
    whole image (self-attention is own queries times all keys). parameters: weights touched; kernels: device kernels
    launched, which is what bounds small bands.
    """

    fixed: float = 0.0
    per_own: float = 0.0
    per_pair: float = 0.0
    per_all: float = 0.0
    parameters: int = 0
    kernels: int = 0

    def flops(self, own: float, total: int) -> float:
        return self.fixed + self.per_own * own + self.per_pair * own * total + self.per_all * total

    def attention(self, own: int, keys: int) -> float:
        """Of these, FLOPs of attention over the keys of `keys` latent pixels: by the own queries, and by the text's."""
        return self.per_pair * own * keys + self.per_all * keys


@dataclass(frozen=True)
class Model:
    """A denoiser.

    family: the executor's adapter, `unet`, `mmdit`, `pixart` or `flux`. vae_scale: pixels per latent pixel. granule: the smallest cut of
    latent rows that the model's downsampling allows. stops has P+3 entries (entry, P points, noise, latent); parts[k]
    lies between stops[k] and stops[k+1], so there are P+2, the last of which is guidance and the sampler's update.
    """

    name: str
    family: str
    latent_channels: int
    vae_scale: int
    granule: int
    parameters: int
    stops: tuple[Stop, ...]
    parts: tuple[Part, ...]
    source: str = ""

    @property
    def noise(self) -> int:
        """Index of the stop whose tensor is the predicted noise."""
        return len(self.stops) - 2

    @property
    def latent(self) -> int:
        """Index of the stop whose tensor is the updated latent: the end of a step."""
        return len(self.stops) - 1

    @property
    def has_skips(self) -> bool:
        """Whether there are skip connections, as in a U-Net."""
        return any(stop.again for stop in self.stops)

    @property
    def takes_guidance(self) -> bool:
        """Whether the guidance scale is an input, so that there is one branch whatever it is."""
        return self.family == "flux"

    @cached_property
    def points(self) -> tuple[int, ...]:
        """Indices of the inner stops."""
        return tuple(range(1, self.noise))

    @cached_property
    def borders(self) -> tuple[int, ...]:
        """Indices of the stops where one rank may end and another go on: where the model can be cut into stages."""
        return tuple(s for s in self.points if self.stops[s].kind == "border")

    def reads(self, start: int, stop: int) -> tuple[int, ...]:
        """Borders up to `start` whose tensors the work from stop `start` to stop `stop` reads."""
        known = self.borders[: bisect_right(self.borders, start)]
        return tuple(s for s in known if s == start or start <= self.stops[s].again < stop)

    def latent_size(self, job: Job) -> tuple[int, int]:
        """Latent rows and columns of the job's image; InputError if the model cannot make that size."""
        unit = self.vae_scale * self.granule
        for name, pixels in (("height", job.height), ("width", job.width)):
            if pixels % unit:
                near = max(unit, round(pixels / unit) * unit)
                raise InputError(
                    f"{name} {pixels} is not a multiple of {unit} pixels, as {self.name} needs; take {near}"
                )
        return job.height // self.vae_scale, job.width // self.vae_scale

    def flops(self, start: int, stop: int, rows: int, height: int, width: int, batch: int = 1) -> float:
        """FLOPs (2 per multiply-add) of the parts from stop `start` to stop `stop` for a band of `rows` latent rows."""
        own, total = rows * width, height * width
        return batch * sum(part.flops(own, total) for part in self.parts[start:stop])

    def elements(self, what: Parcel, rows: Rows, width: int, batch: int, heads: int = 0) -> int:
        """Elements that a band contributes to the parcel; heads: as in `Stop.elements`.

        The one place where traffic is counted.
        """
        how = (what.part, what.portion, heads)
        return batch * sum(self.stops[s].elements(rows.count, width, *how) for s in what.stops)

    def to_json(self) -> dict[str, Any]:
        document = {"schema_version": 1, "name": self.name, "family": self.family, "source": self.source}
        document |= {k: getattr(self, k) for k in ("latent_channels", "vae_scale", "granule", "parameters")}
        document["stops"] = [list(astuple(s)[: 8 if s.heads else 7 if s.tokens or s.again else 5]) for s in self.stops]
        document["parts"] = [list(asdict(p).values()) for p in self.parts]
        return document

    @staticmethod
    def from_json(document: dict[str, Any]) -> Model:
        """Inverse of `to_json`; InputError if the document is not a model description."""
        try:
            fields = {
                k: document[k] for k in ("name", "family", "latent_channels", "vae_scale", "granule", "parameters")
            }
            stops = tuple(Stop(*s) for s in document["stops"])
            parts = tuple(Part(*p) for p in document["parts"])
        except (KeyError, TypeError) as error:
            raise InputError(f"not a model description: {error}") from error
        if len(parts) != len(stops) - 1 or len(stops) < 3:
            raise InputError(
                f"model {fields['name']}: {len(stops)} stops need {len(stops) - 1} parts, not {len(parts)}"
            )
        return Model(**fields, stops=stops, parts=parts, source=document.get("source", ""))
