"""The events of Chrome trace JSON, a few MiB at a time, without ever holding the file.

No parser of ours: a stretch is cut where one event seems to end and the next to begin, and the JSON decoder says
whether that is so. A cut inside a string or a nested value leaves something open, so that only true cuts decode.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec

from planner.errors import InputError
from traces.unpack import MAX_BYTES, blocks

CHUNK_BYTES = 2**23
MAX_CHUNK_BYTES = 2**26  # of one event, and of what stands before or after the events
TRIES = 32  # cuts that are tried per stretch

_START = re.compile(rb'"traceEvents"\s*:\s*\[')
_CUT = re.compile(rb"\}\s*,\s*\{")
_LIST = re.compile(rb"\s*\[")
_ERRORS = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class Event(msgspec.Struct, gc=False):
    """One event; ts and dur in microseconds. args stay undecoded: most are never looked at."""

    ph: str = ""
    cat: str = ""
    name: str = ""
    pid: int | str = 0
    tid: int | str = 0
    ts: float = 0.0
    dur: float = 0.0
    args: msgspec.Raw = msgspec.Raw(b"{}")


class About(msgspec.Struct):
    """What the file says beside its events; whoever uses a field checks it."""

    host_name: Any = None
    distributedInfo: Any = None
    deviceProperties: Any = None
    baseTimeNanoseconds: Any = None


class _Document(About):
    traceEvents: list[Event] = []


_EVENTS = msgspec.json.Decoder(list[Event])
_DOCUMENT = msgspec.json.Decoder(_Document)
_OPEN = b'{"traceEvents":['


class EventStream:
    """Read `batches()` to its end; then `about`, `count` (events seen) and `truncated` are known."""

    def __init__(self, path: Path | str, limit: int = MAX_BYTES) -> None:
        self.path = path
        self.about = About()
        self.count = 0
        self.truncated = False
        self._blocks = blocks(path, limit)
        self._offset = 0  # of what is held, in the unpacked file
        self._is_list = False

    def batches(self) -> Iterator[list[Event]]:
        """All whole events in order; InputError names the event or byte where the file stops being a trace."""
        held, want = self._skip_head(), CHUNK_BYTES
        for block in self._blocks:
            held += block
            if len(held) < want:
                continue
            events, cut = self._take(held)
            if events is not None:
                self._offset += cut
                self.count += len(events)
                yield events
                held, want = held[cut:], CHUNK_BYTES
            elif (want := 2 * want) > MAX_CHUNK_BYTES:
                raise InputError(f"{self.path}: after event {self.count}: {len(held)} bytes without an end of an event")
        events = self._last(held)
        self.count += len(events)
        yield events

    def _skip_head(self) -> bytes:
        """Read up to the first event; what was read beyond it."""
        held = b""
        for block in self._blocks:
            held += block
            self._is_list = _LIST.match(held) is not None
            if self._is_list:
                return self._after(held, held.index(b"[") + 1)
            for match in islice(_START.finditer(held), TRIES):
                try:
                    self._learn(_DOCUMENT.decode(held[: match.end()] + b"]}"))
                except _ERRORS:
                    continue
                return self._after(held, match.end())
            if len(held) > MAX_CHUNK_BYTES:
                break
        raise InputError(f"{self.path}: no traceEvents; is it a trace of torch.profiler?")

    def _after(self, held: bytes, position: int) -> bytes:
        self._offset = position
        return held[position:]

    def _learn(self, about: About) -> None:
        for field in About.__struct_fields__:
            if getattr(about, field) is not None:
                setattr(self.about, field, getattr(about, field))

    def _take(self, held: bytes) -> tuple[list[Event] | None, int]:
        """As many whole events as are sure, and where the next begins; None if no cut is sure yet."""
        for match in _cuts(held):
            text = b"[" + held[: match.start() + 1] + b"]"
            try:
                return _EVENTS.decode(text), match.end() - 1
            except msgspec.ValidationError as error:
                raise self._fault(error, 1) from error
            except _ERRORS as error:
                if not _at_end(error, len(text) - 1):
                    break  # garbage, or the events are over: the end of the file will tell
        return None, 0

    def _last(self, held: bytes) -> list[Event]:
        opening = b"[" if self._is_list else _OPEN
        text = opening + held
        try:
            if self._is_list:
                return _EVENTS.decode(text)
            document = _DOCUMENT.decode(text)
        except _ERRORS as error:
            if isinstance(error, msgspec.ValidationError) or not _at_end(error, len(text)):
                raise self._fault(error, len(opening)) from error
        else:
            self._learn(document)
            return document.traceEvents
        self.truncated = True
        return self._whole(held)

    def _whole(self, held: bytes) -> list[Event]:
        """The events that are whole in what is left of a truncated file."""
        events, cut = self._take(held)
        events, rest = events or [], held[cut:]
        ends = islice(re.finditer(rb"\}", rest[::-1]), TRIES)
        for match in ends:
            try:
                return events + _EVENTS.decode(b"[" + rest[: len(rest) - match.start()] + b"]")
            except _ERRORS:
                continue
        return events

    def _fault(self, error: Exception, opening: int) -> InputError:
        """The error with its place in the file rather than in the stretch, of which `opening` bytes are ours."""
        text = str(error)
        place = re.search(r" - at `\$(?:\.traceEvents)?\[(\d+)\](.*)`$", text)
        if place:
            number = self.count + int(place[1])
            return InputError(f"{self.path}: event {number}{place[2]}: {text[: place.start()]}")
        position = _byte(error)
        if position is not None:
            where = self._offset + position - opening
            return InputError(f"{self.path}: byte {where}: {text[: text.rindex('(byte')].strip()}")
        if isinstance(error, RecursionError):
            text = "nested too deeply"
        elif isinstance(error, UnicodeDecodeError):
            text = "not UTF-8 text"
        return InputError(f"{self.path}: after event {self.count}: {text}")


def _cuts(held: bytes) -> Iterator[re.Match[bytes]]:
    """Where one event may end and another begin, last first, the last few only."""
    for window in (2**12, 2**16, len(held)):
        found = list(_CUT.finditer(held, max(0, len(held) - window)))
        if found:
            return iter(found[: -TRIES - 1 : -1])
    return iter(())


def _byte(error: Exception) -> int | None:
    match = re.search(r"\(byte (\d+)\)$", str(error))
    return int(match[1]) if match else None


def _at_end(error: Exception, end: int) -> bool:
    """Whether all was well up to byte `end`: more text could have made it right."""
    position = _byte(error)
    return "truncated" in str(error) if position is None else position >= end
