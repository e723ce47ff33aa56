"""What NVIDIA's nccl-tests (all_gather_perf and the like) measured: their text, old columns and new, and their JSON.

A row has the size and, out of place and in place each, time (us), algbw, busbw (GB/s) and #wrong; since 2.14 also the
root, with `-I 1` min, max, p99 and cv% of the iterations, with `-S` a time stamp at the end. The JSON of `-J` has the
time of every iteration where `-I 1` was given; it also holds the whole environment, which is not kept.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from planner.errors import InputError
from planner.trace import MessageSample
from traces.collectives import kind_of, received_bytes, verb_of
from traces.files import MAX_BYTES, parse_json, read_text

MAX_RANKS = 2**16
_COLUMNS = {12: (4, 4), 13: (5, 4), 21: (5, 8)}  # by width: columns before the results, columns of each result
_ROW = re.compile(r"\s*[0-9]+\s+\S")
_STAMP = re.compile(r"\s+\d{4}-\d{2}-\d{2}[ T]\d{2}:\d{2}:\d{2}\s*$")
_RANK = re.compile(
    r"#\s+Rank\s+(\d{1,6})(?:\s+Group\s+(\d{1,6}))?\s+Pid\s+\d+\s+on\s+(\S+)\s+device\s+\d+\s+\[\S*\]\s*(.*)"
)
_STARTING = re.compile(r"# Collective test starting: (\S+)")
_FILE_NAME = re.compile(
    r"(all_?gather|all_?reduce|reduce_?scatter|all_?to_?all|broadcast|send_?recv|reduce|gather|scatter)"
)
_VERSION = re.compile(r"# nccl-tests version (.*)")


@dataclass(frozen=True)
class Row:
    """One size: nbytes as printed (`size`), received_bytes by each rank, seconds of every iteration or their mean.

    cv: standard deviation over mean of the iterations, if known.
    """

    nbytes: int
    received_bytes: int
    seconds: tuple[float, ...]
    cv: float | None = None


@dataclass(frozen=True)
class NcclTests:
    """One run. collective: its kind, or `unknown`; devices: of the ranks; meta: versions and arguments, no environment."""

    path: str
    collective: str
    ranks: int
    devices: tuple[str, ...]
    rows: tuple[Row, ...]
    meta: dict[str, Any]
    notes: tuple[str, ...] = ()

    def messages(self, link: str) -> dict[str, tuple[MessageSample, ...]]:
        """Samples by kind, over a link of the given name: each iteration where known, else the mean.

        post_seconds and hidden_seconds are 0: nccl-tests do not measure them. sendrecv sends to one neighbour and
        receives from the other at once; with two ranks that is a gather.
        """
        ring = self.collective == "send_recv"
        verb, ranks = ("gather" if ring and self.ranks == 2 else verb_of(self.collective)), 2 if ring else self.ranks
        repeats: Counter[int] = Counter()
        samples = []
        for row in self.rows:
            for seconds in row.seconds if row.received_bytes else ():
                number = repeats[row.received_bytes]
                samples.append(MessageSample(link, ranks, row.received_bytes, number, 0.0, seconds, 0.0, verb))
                repeats[row.received_bytes] += 1
        return {self.collective: tuple(samples)} if samples else {}


@dataclass(frozen=True)
class _Result:
    """Of one size, in place or out of it."""

    nbytes: int
    seconds: tuple[float, ...]
    algbw: float
    busbw: float
    wrong: float
    cv: float | None = None


def read_nccl_tests(path: Path | str, collective: str | None = None) -> NcclTests:
    """The run in a text or JSON file; InputError with the line, or the place in the JSON, for what cannot be.

    collective: what ran, where the file does not say (older versions); else its name, as in all_gather_perf.txt, or the
    ratio of busbw to algbw decides how many bytes each rank received. Out-of-place times count where both are there.
    """
    text = read_text(path, MAX_BYTES)
    run = _from_json(path, text) if text.lstrip().startswith("{") else _from_text(path, text)
    name = collective or run.said or (match[0] if (match := _FILE_NAME.search(Path(path).stem)) else "")
    kind = kind_of(name) if name else "unknown"
    if not run.results:
        raise InputError(f"{path}: no results of nccl-tests; was the run cut off?")
    share = None if name else _share(run.results, run.ranks)
    rows = tuple(
        Row(
            r.nbytes,
            received_bytes(kind, run.ranks, r.nbytes) if share is None else round(r.nbytes * share),
            r.seconds,
            r.cv,
        )
        for r in run.results
    )
    notes = (
        run.notes if name else [*run.notes, f"which collective ran is not said; busbw / algbw is taken as {share:.4g}"]
    )
    return NcclTests(str(path), kind, run.ranks, tuple(run.devices), rows, run.meta, tuple(notes))


@dataclass
class _Run:
    said: str
    ranks: int
    devices: list[str]
    results: list[_Result]
    meta: dict[str, Any]
    notes: list[str]


def _share(results: list[_Result], ranks: int) -> float:
    """Received bytes per byte of `size`: the factor that busbw / algbw is nearest to, at the largest size."""
    last = max(results, key=lambda result: result.nbytes)
    known = [received_bytes(kind, ranks, 10**6) / 1e6 for kind in ("broadcast", "all_gather", "all_reduce")]
    ratio = last.busbw / last.algbw if last.algbw else 1.0
    return min(known, key=lambda factor: abs(factor - ratio))


def _from_text(path: Path | str, text: str) -> _Run:
    run = _Run("", 0, [], [], {}, [])
    groups: dict[tuple[str, str], str] = {}
    lines = text.splitlines()
    wrong = width = 0
    counts_wrong = False
    for number, line in enumerate(lines, 1):
        if match := _RANK.match(line):
            if (match[1], match[2]) in groups:
                raise InputError(
                    f"{path}:{number}: rank {match[1]} twice: separate runs in one file, or built without MPI"
                )
            groups[match[1], match[2]] = match[2] or "0"
            run.devices.append(match[4].strip())
        elif match := _STARTING.match(line):
            if run.results:
                raise InputError(f"{path}:{number}: a second test starts here; give one test per file")
            run.said = match[1]
        elif match := _VERSION.match(line):
            run.meta["nccl_tests"] = match[1].strip()
        elif line.startswith("#"):
            counts_wrong |= "#wrong" in line  # older versions print the largest `error` instead, which is rarely 0
        elif _ROW.match(line):
            words = _STAMP.sub("", line).split()
            if number == len(lines) and not text.endswith("\n") and len(words) != width:
                break  # cut off in the middle of the row
            width = width or len(words)
            result = _row(path, number, words, width)
            is_wrong = counts_wrong and result is not None and result.wrong > 0
            wrong += is_wrong
            run.results += [result] if result is not None and not is_wrong else []
    run.ranks = sum(group == "0" for group in groups.values())
    _check_ranks(path, run.ranks)
    if wrong:
        run.notes.append(f"{path}: {wrong} sizes with wrong results left out")
    return run


def _check_ranks(path: Path | str, ranks: int) -> None:
    if not 2 <= ranks <= MAX_RANKS:
        raise InputError(
            f"{path}: {ranks} ranks listed; expected lines like '#  Rank  0 Group  0 Pid ...' of two or more"
        )


def _row(path: Path | str, number: int, words: list[str], width: int) -> _Result | None:
    """One row, out of place if that was measured; None if nothing was, or the size is 0."""
    if len(words) not in _COLUMNS or len(words) != width:
        raise InputError(
            f"{path}:{number}: {len(words)} columns; nccl-tests print 12, 13 or, with -I 1, 21 in all rows"
        )
    before, each = _COLUMNS[width]
    try:
        for side in (words[before : before + each], words[before + each :]):
            if side[0] != "N/A" and int(words[0]):
                return _text_result(int(words[0]), side)
    except ValueError as error:
        raise InputError(f"{path}:{number}: {error}") from error
    return None


def _text_result(nbytes: int, side: list[str]) -> _Result:
    time, algbw, busbw = (_number(word) for word in side[:3])
    wrong = 0.0 if side[3] == "N/A" else _number(side[3])
    cv = _number(side[7]) / 100 if len(side) == 8 else None
    return _Result(_size(nbytes), (_seconds(time),), algbw, busbw, wrong, cv)


def _number(word: Any) -> float:
    value = float(word)
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"expected a number of at least 0, found {str(word)[:20]!r}")
    return value


def _seconds(microseconds: float) -> float:
    if not microseconds > 0:
        raise ValueError("a time of 0")
    return microseconds / 1e6


def _size(nbytes: Any) -> int:
    if type(nbytes) is not int or not 0 <= nbytes < 2**62:
        raise ValueError(f"expected a size in bytes, found {str(nbytes)[:20]!r}")
    return nbytes


def _from_json(path: Path | str, text: str) -> _Run:
    document = parse_json(_closed(text), path)
    results = document.get("results")
    config = document.get("config")
    if not isinstance(results, list) or not isinstance(config, dict):
        raise InputError(f"{path}: no config and results; is it the JSON of nccl-tests -J?")
    listed = (
        [d for d in config.get("devices", []) if isinstance(d, dict)] if isinstance(config.get("devices"), list) else []
    )
    devices = [str(d.get("device_info", "")) for d in listed]
    arguments = [str(word) for word in document.get("args", [])] if isinstance(document.get("args"), list) else []
    keep = {"version", "start_time", "end_time", "nccl_version"}
    meta = {key: value for key, value in document.items() if key in keep} | {"args": arguments[1:]}
    said = Path(arguments[0]).name if arguments else ""
    run = _Run(said, _json_ranks(listed, config), devices, [], meta, [])
    _check_ranks(path, run.ranks)
    for i, entry in enumerate(results):
        try:
            found = list(_json_results(entry))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise InputError(f"{path}: results[{i}]: {type(error).__name__}: {error}") from error
        good = [result for result in found if not result.wrong > 0]
        run.results += good[:1]
        if found and not good:
            run.notes.append(f"{path}: results[{i}]: wrong results, left out")
    return run


def _json_ranks(devices: list[dict[str, Any]], config: dict[str, Any]) -> int:
    """Ranks of group 0. Version 2 of the JSON lists the first device of each process only, however many it has."""
    own = [device for device in devices if device.get("group", 0) == 0]
    each = 1
    for name in ("nthreads", "ngpus"):
        each *= config[name] if type(config.get(name)) is int and 0 < config[name] <= 64 else 1
    processes = {(str(device.get("hostname")), str(device.get("pid"))) for device in own}
    return len(own) * (each if len(processes) == len(own) else 1)


def _json_results(entry: dict[str, Any]) -> Iterator[_Result]:
    """Out of place, then in place, as far as they are there."""
    for side in ("out_of_place", "in_place"):
        result = entry.get(side)
        if (
            not entry["size"] or result is None or "time" not in result
        ):  # with -C it is cpu_time, which is not the transfer's
            continue
        each = entry.get(f"{side}_per_iter") or {}
        times = each.get("times_us") or [result["time"]]
        wrong = 0.0 if result.get("nwrong") is None else _number(result["nwrong"])
        cv = _number(each["cv_pct"]) / 100 if "cv_pct" in each else None
        seconds = tuple(_seconds(_number(time)) for time in times)
        yield _Result(_size(entry["size"]), seconds, _number(result["alg_bw"]), _number(result["bus_bw"]), wrong, cv)


def _closed(text: str) -> str:
    """The JSON of a run that was cut off, closed after its last whole result; any other text as it is."""
    try:
        json.loads(text)
        return text
    except (ValueError, RecursionError):
        pass
    results = text.find('"results"')
    for match in list(re.finditer(r"\}(?=\s*,\s*\{)", text[results:]))[-4:][::-1] if results >= 0 else ():
        closed = text[: results + match.end()] + "]}"
        try:
            json.loads(closed)
            return closed
        except (ValueError, RecursionError):
            continue
    return text
