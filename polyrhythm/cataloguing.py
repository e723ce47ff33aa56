"""What we know of devices, links, boxes, models, schemes and shipped traces: `catalog`."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

from planner.errors import InputError
from planner.model import Model
from planner.schemes import SCHEMES
from polyrhythm.api import SCHEMA_VERSION, knobs_of, usual
from traces.hints import unknown

SECTIONS = ("devices", "links", "boxes", "models", "schemes", "traces")


@dataclass(frozen=True)
class Catalog:
    """Entries by section; every entry has a `name`, and numbers have their source beside them."""

    sections: dict[str, tuple[dict[str, Any], ...]]

    def to_json(self) -> dict[str, Any]:
        return {"schema_version": SCHEMA_VERSION} | {name: list(entries) for name, entries in self.sections.items()}


def catalog(section: str | None = None, name: str | None = None) -> Catalog:
    """All we know, one section of it, or one entry; InputError with the nearest names for one that is not there."""
    if section is not None and section not in SECTIONS:
        raise InputError(unknown("section", section, SECTIONS))
    sections = {s: _entries(s) for s in SECTIONS if section in (None, s)}
    if name is None:
        return Catalog(sections)
    found = {s: tuple(e for e in entries if e["name"] == name) for s, entries in sections.items()}
    if not any(found.values()):
        known = [e["name"] for entries in sections.values() for e in entries]
        raise InputError(
            unknown({"boxes": "box"}.get(section, section.rstrip("s")) if section else "name", name, known)
        )
    return Catalog({s: entries for s, entries in found.items() if entries})


def _entries(section: str) -> tuple[dict[str, Any], ...]:
    from traces import catalogue, recorded, store
    from traces.boxes import box_entries

    if section == "models":
        return tuple(_model_entry(store.load_model(name)) for name in store.model_names())
    if section == "schemes":
        return tuple(_scheme_entry(name) for name in SCHEMES)
    if section == "boxes":
        return tuple({"name": name} | entry for name, entry in box_entries().items())
    if section == "traces":
        return tuple({"name": name} | entry for name, entry in recorded.entries().items())
    entries = catalogue.device_entries() if section == "devices" else catalogue.link_entries()
    return tuple({"name": name} | entry for name, entry in entries.items())


def _model_entry(model: Model) -> dict[str, Any]:
    """The description in numbers; flops of one forward of one item at the usual size."""
    norm = usual(model)
    side = norm.pixels // model.vae_scale
    return {
        "name": model.name,
        "family": model.family,
        "parameters": model.parameters,
        "height": norm.pixels,
        "width": norm.pixels,
        "flops_per_forward": model.flops(0, model.noise, side, side, side),
        "sampler": norm.sampler,
        "dtype": norm.dtype,
        "guidance": norm.guidance,
        "rows_multiple_of": model.granule,
        "pixels_multiple_of": model.granule * model.vae_scale,
        "stops": len(model.stops),
        "source": model.source,
    }


def _scheme_entry(name: str) -> dict[str, Any]:
    """Knobs with their defaults, and the first line of the scheme's module, which cites its paper."""
    module = inspect.getmodule(SCHEMES[name])
    idea = (inspect.getdoc(module) or "").split("\n")[0]
    return {"name": name, "idea": idea, "knobs": knobs_of(name)}
