"""Every file format of ours in one place: what is loaded is checked, what is saved is there completely or not at all.

Plans, timelines, profiles and model descriptions are JSON; a trace is a directory (`traces/tables.py`); a cluster is
TOML, JSON or a few words on the command line (`traces/clusters.py`). Whatever is wrong with a file is an `InputError`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import astuple
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from planner.errors import InputError
from traces.clusters import cluster_from_flags, load_cluster, save_cluster
from traces.files import format_json, read_json, write
from traces.hints import unknown
from traces.tables import load_trace, save_trace

if TYPE_CHECKING:  # importing the vocabulary takes longer than `--help` may
    from planner.fidelity import Fidelity
    from planner.job import Job
    from planner.model import Model
    from planner.plan import Plan
    from planner.profile import Profile
    from planner.switching import Curve
    from planner.timeline import Seen, Timeline

__all__ = [
    "cluster_from_flags",
    "known_fidelity",
    "load_cluster",
    "load_fidelity",
    "load_model",
    "load_plan",
    "load_profile",
    "load_seen",
    "load_timeline",
    "load_trace",
    "model_names",
    "save_cluster",
    "save_model",
    "save_plan",
    "save_profile",
    "save_timeline",
    "save_trace",
]

SCHEMA_VERSION = 1  # of all JSON formats so far
MODELS = Path(__file__).parent / "data" / "models"
FIDELITY = Path(__file__).parent / "data" / "fidelity"
OF_FAMILY = {"unet": "shapes-unet"}  # whose fidelity tells about a model of this family; shapes-mmdit's else
DESCRIPTION = "polyrhythm.json"  # of a model, in the model's own directory

Record = TypeVar("Record")


def load_plan(path: Path | str) -> Plan:
    """A plan, also out of the document of `plan --json`."""
    from planner.plan import Plan

    return _load(path, "plan", Plan.from_json, _plan_sense)


def save_plan(path: Path | str, plan: Plan) -> None:
    write(path, format_json(plan.to_json()))


def load_timeline(path: Path | str) -> Timeline:
    from planner.timeline import Timeline

    return _load(path, "timeline", Timeline.from_json, _timeline_sense)


def load_seen(path: Path | str) -> list[Seen]:
    """What schemes that adapt are told: what a timeline saw, or a curve, {"discrepancy": [of each step]}."""
    from planner.switching import Curve

    if "discrepancy" in read_json(path):
        return _load(path, "curve", Curve.from_json, _curve_sense).seen()
    return load_timeline(path).seen


def save_timeline(path: Path | str, timeline: Timeline) -> None:
    write(path, format_json(timeline.to_json()))


def load_fidelity(path: Path | str) -> Fidelity:
    """What plans do to the picture of a model, from `polyrhythm calibrate`."""
    from planner.fidelity import Fidelity

    return _load(path, "fidelity", Fidelity.from_json, lambda record: "")


def known_fidelity(model: Model, job: Job) -> Fidelity | None:
    """What is shipped about the pictures of `model`, else what was measured on another one of its family.

    Transferred where the model or the sampler is another; then moved by what the papers say of the model, or, where they
    say nothing, of SDXL (`fidelity/published.json`).
    """
    from planner.fidelity import Run

    path = FIDELITY / f"{model.name}.json"
    if path.is_file():
        found = load_fidelity(path)
        return found if job.sampler == found.sampler else found.of_another(model.name)
    path = FIDELITY / f"{OF_FAMILY.get(model.family, 'shapes-mmdit')}.json"
    if not path.is_file():
        return None
    found = load_fidelity(path)
    published = read_json(FIDELITY / "published.json")["runs"]
    own = [entry for entry in published if entry["model"] == model.name] or published
    runs = [Run.from_json(entry["run"]) for entry in own]
    off = [run.psnr_db - float(found.psnr(run.look, run.steps, run.warmup, run.reference)) for run in runs]
    return found.of_another(model.name, sum(off) / len(off))


def load_profile(path: Path | str) -> Profile:
    from planner.profile import Profile

    return _load(path, "profile", Profile.from_json, _profile_sense)


def save_profile(path: Path | str, profile: Profile) -> None:
    write(path, format_json(profile.to_json()))


def load_model(name_or_path: Path | str) -> Model:
    """A model description: a shipped one's name, a JSON file, or a model's directory with `polyrhythm.json` in it."""
    name, path = str(name_or_path), Path(name_or_path)
    if name in model_names():
        return _load_model(MODELS / f"{name}.json")
    if os.path.isdir(path):  # os.path: no exception for names that no file can have
        if not (path / DESCRIPTION).is_file():
            raise InputError(
                f"{path}: no {DESCRIPTION} in it; describe the model first, or name one that is described"
            )
        return _load_model(path / DESCRIPTION)
    if os.path.isfile(path):
        return _load_model(path)
    raise InputError(
        unknown("model", name, model_names()) + "; a path to a description or its directory will do too"
    )


def save_model(path: Path | str, model: Model) -> None:
    write(path, format_json(model.to_json()))


def model_names() -> list[str]:
    """Names of the shipped model descriptions."""
    return sorted(path.stem for path in MODELS.glob("*.json"))


def _load_model(path: Path) -> Model:
    from planner.model import Model

    return _load(path, "model description", Model.from_json, _model_sense)


def _load(
    path: Path | str, what: str, decode: Callable[[dict[str, Any]], Record], sense: Callable[[Record], str]
) -> Record:
    """Decode the file's document, check the record's types and its `sense` (which says what is wrong, or "")."""
    from traces.typed import Misfit, check

    document = read_json(path)
    if document.get("schema_version") != SCHEMA_VERSION:
        version = document.get("schema_version")
        raise InputError(f"{path}: schema_version {version!r} is not {SCHEMA_VERSION}; is it a {what}?")
    try:
        record = decode(document)
        check(record)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    except Misfit as misfit:
        raise InputError(f"{path}: {misfit}") from None
    except (ArithmeticError, AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: not a {what} ({type(error).__name__}: {error})") from error
    fault = sense(record)
    if fault:
        raise InputError(f"{path}: {fault}")
    return record


# What no annotation says, and what the readers of a record rely on.


def _plan_sense(plan: Plan) -> str:
    if not plan.devices:
        return "devices: a plan needs at least one"
    for i, phase in enumerate(plan.phases):
        for name in ("rows", "branches", "strides", "ops"):
            if len(getattr(phase, name)) != plan.ranks:
                return f"phases[{i}].{name}: {len(getattr(phase, name))} entries for {plan.ranks} devices"
        if phase.beats < 1 or phase.steps < 1 or min(phase.strides) < 1:
            return f"phases[{i}]: beats, steps and strides must be at least 1"
    return ""


def _timeline_sense(timeline: Timeline) -> str:
    ranks = len(timeline.devices)
    if timeline.peak_memory_bytes and len(timeline.peak_memory_bytes) != ranks:
        return f"peak_memory_bytes: {len(timeline.peak_memory_bytes)} entries for {ranks} devices"
    named = {*timeline.received, *(peer for peers in timeline.received.values() for peer in peers)}
    if any(not 0 <= rank < ranks for rank in named):
        return f"received: a rank that is not one of {ranks} devices"
    for i, event in enumerate(timeline.events):
        if not 0 <= event.rank < ranks:
            return f"events[{i}]: rank {event.rank} is not one of {ranks} devices"
        if not 0 <= event.start_ns <= event.end_ns:
            return f"events[{i}]: must start at 0 or later and not end before it starts"
    return ""


def _curve_sense(curve: Curve) -> str:
    wrong = [step for step, value in enumerate(curve.discrepancy) if not 0 <= value < inf]
    return f"discrepancy[{wrong[0]}]: must be a number of at least 0" if wrong else ""


def _profile_sense(profile: Profile) -> str:
    for i, table in enumerate(profile.parts):
        if table.rows[0] < 1 or table.height < 1 or table.width < 1 or table.batch < 1:
            return f"parts[{i}]: rows, height, width and batch must be at least 1"
        if len({len(line) for line in table.seconds}) != 1:
            return f"parts[{i}].seconds: lines of different length"
        if any(seconds < 0 for line in table.seconds for seconds in line):
            return f"parts[{i}].seconds: below 0"
    for i, messages in enumerate(profile.messages):
        columns = (messages.post, messages.total, messages.hidden)
        if messages.nbytes[0] < 1 or any(len(column) != len(messages.nbytes) for column in columns):
            return f"messages[{i}]: nbytes must be at least 1, with as many post, total and hidden seconds"
        if any(seconds < 0 for column in columns for seconds in column):
            return f"messages[{i}]: seconds below 0"
    return ""


def _model_sense(model: Model) -> str:
    if min(model.vae_scale, model.granule, model.latent_channels) < 1:
        return "vae_scale, granule and latent_channels must be at least 1"
    for i, stop in enumerate(model.stops):
        if stop.scale < 1 or stop.channels < 0 or stop.pad < 0:
            return f"stops[{i}]: scale must be at least 1, channels and pad at least 0"
    for i, part in enumerate(model.parts):
        if min(astuple(part)) < 0:
            return f"parts[{i}]: a number below 0"
    return ""
