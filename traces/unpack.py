"""Bytes of a plain or gzip file, block by block: no file makes us unpack or hold more than we said we would."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from pathlib import Path

from planner.errors import InputError

MAX_BYTES = 2**30  # unpacked
MAX_RATIO = 200  # unpacked to packed; profiler JSON reaches 10 to 40
SLACK_BYTES = 2**24  # unpacked before the ratio counts
BLOCK_BYTES = 2**22

_GZIP = b"\x1f\x8b"
_GZIP_WINDOW = 31  # zlib's name for gzip with the largest window


def blocks(path: Path | str, limit: int = MAX_BYTES) -> Iterator[bytes]:
    """The content in blocks of at most 4 MiB; of a gzip file that was cut off, all that can be unpacked.

    Raises InputError for a file that cannot be read, is damaged, holds more than `limit` bytes, or grows too much.
    """
    total = 0
    for block in _unpacked(path):
        total += len(block)
        if total > limit:
            raise InputError(f"{path}: more than {limit / 2**20:.0f} MiB of content, which is more than we read")
        yield block


def _unpacked(path: Path | str) -> Iterator[bytes]:
    packed = _raw(path)
    first = next(packed, b"")
    if first[:2] != _GZIP:
        yield first
        yield from packed
        return
    taken = given = 0
    unpack = zlib.decompressobj(_GZIP_WINDOW)
    while first:
        taken += len(first)
        while first:
            try:
                block = unpack.decompress(first, BLOCK_BYTES)
            except zlib.error as error:
                raise InputError(f"{path}: damaged gzip data near byte {taken}: {error}") from error
            given += len(block)
            if given > SLACK_BYTES and given > MAX_RATIO * taken:
                raise InputError(f"{path}: unpacks to more than {MAX_RATIO} times its size; refused")
            yield block
            first = unpack.unconsumed_tail
            if unpack.eof:
                # Another member may follow; whatever else does is padding, as gzip(1) sees it.
                first = unpack.unused_data if unpack.unused_data[:2] == _GZIP else b""
                unpack = zlib.decompressobj(_GZIP_WINDOW)
        first = next(packed, b"")


def _raw(path: Path | str) -> Iterator[bytes]:
    try:
        with open(path, "rb") as file:
            while block := file.read(BLOCK_BYTES):
                yield block
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        raise InputError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error
