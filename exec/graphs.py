"""An evaluation as CUDA graphs: one for each segment of the forward between two places where the plan goes on.

A graph is replayed without Python, but in the forward of one of several ranks there are messages. So the first
evaluation of its kind runs as it is, the second is recorded: where the seam leaves the forward a graph ends and is
launched, so that what travels is there; the plan's ops are performed as ever; and what they give is copied to where the
next graph reads it. From the third on graphs and ops take turns, and diffusers' Python is not run at all.

A kind is a phase of a plan, a place in its beat, and the shapes of the inputs. On a CPU the same is done with tapes,
which perform their ops one by one: no faster, but it shows without a GPU that nothing is lost.
"""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from planner.errors import InputError

Work = Callable[[], tuple[Tensor, ...]]


class Graph(Protocol):
    """What is recorded between `begin` and `end` is done by the `end`, and again by `replay`, in the same memory."""

    def begin(self) -> None: ...

    def end(self) -> None: ...

    def replay(self) -> None: ...


class Device(Protocol):
    def graph(self) -> Graph: ...

    def recording(self) -> Any:
        """A context in which an evaluation can be recorded, and the one before that is like it."""


@dataclass
class Segment:
    """A graph, what the plan does after it, and where the next graph reads what that gives."""

    graph: Graph
    work: Work
    brought: tuple[Tensor, ...]


@dataclass
class Evaluation:
    """inputs: where the graphs read them; out: where the last one leaves its output."""

    inputs: list[Tensor]
    segments: list[Segment] = field(default_factory=list)
    last: Graph | None = None
    out: Tensor | None = None


class Recorder:
    """Records evaluations, and replays those that it knows."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.known: dict[Hashable, Evaluation | None] = {}
        self.replayed = 0  # evaluations
        self._open: Evaluation | None = None
        self._graph: Graph | None = None  # that is being recorded

    def evaluate(self, kind: Hashable, forward: Callable[[Any], Tensor], inputs: Any) -> Tensor:
        """`forward(inputs)`, which leaves for the plan by `pause` only. inputs: a tree of tensors and other things.

        What is returned is overwritten by the next evaluation of this kind.
        """
        leaves, tree = pytree.tree_flatten(inputs)
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        shape = [(x.shape, x.dtype) if isinstance(x, Tensor) else repr(x) for x in leaves]
        kind = kind, str(tree), tuple(shape)
        if kind not in self.known:
            self.known[kind] = None
            with self.device.recording():  # where kernels are chosen and their workspaces made
                return forward(inputs)
        found = self.known[kind]
        if found is None:
            self.known[kind] = found = self._recorded(forward, tensors, leaves, tree)
            return found.out
        for place, value in zip(found.inputs, tensors, strict=True):
            place.copy_(value)
        for segment in found.segments:
            segment.graph.replay()
            for place, value in zip(segment.brought, segment.work(), strict=True):
                place.copy_(value)
        found.last.replay()
        self.replayed += 1
        return found.out

    def forget(self) -> None:
        """Let go of all graphs and their memory."""
        self.known.clear()

    def pause(self, work: Work) -> tuple[Tensor, ...]:
        """Leave the forward for `work`, and come back with what it gives."""
        if self._open is None:
            return work()
        graph = self._end()
        brought = tuple(value.clone() for value in work())
        self._open.segments.append(Segment(graph, work, brought))
        self._begin()
        return brought

    def _recorded(self, forward: Callable[[Any], Tensor], tensors: list[Tensor], leaves: list[Any], tree: Any) -> Evaluation:
        home = max((x.device for x in tensors), key=lambda device: device.type == "cuda")
        with self.device.recording(), uncollected():
            made = self._open = Evaluation([x.to(home, copy=True) for x in tensors])
            places = iter(made.inputs)
            inside = [next(places) if isinstance(x, Tensor) else x for x in leaves]
            try:
                self._begin()
                made.out = forward(pytree.tree_unflatten(inside, tree))
                made.last = self._end()
            except BaseException:
                if self._graph is not None:
                    with suppress(RuntimeError):  # of a capture that has failed
                        self._end()
                raise
            finally:
                self._open = self._graph = None
        return made

    def _begin(self) -> None:
        self._graph = self.device.graph()
        self._graph.begin()

    def _end(self) -> Graph:
        graph, self._graph = self._graph, None
        graph.end()
        return graph


@contextmanager
def uncollected() -> Iterator[None]:
    """Garbage that holds old graphs must not be found in here: to destroy one breaks off the capture of another."""
    gc.collect()
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def recorder(device: torch.device) -> Recorder:
    return Recorder(CudaGraphs() if device.type == "cuda" else Tapes())


# GPUs


class CudaGraphs:
    """Graphs that share a pool of memory: they are replayed in the order in which they were recorded, or not at all."""

    def __init__(self) -> None:
        self.pool, self.stream = torch.cuda.graph_pool_handle(), torch.cuda.Stream()

    def graph(self) -> Graph:
        return CudaGraph(self.pool)

    @contextmanager
    def recording(self) -> Iterator[None]:
        """On a stream of its own: the default one cannot be recorded."""
        outer = torch.cuda.current_stream()
        self.stream.wait_stream(outer)
        with torch.cuda.stream(self.stream), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The CUDA Graph is empty")
            yield
        outer.wait_stream(self.stream)
        torch.cuda.empty_cache()  # what this stream keeps, neither the others nor the graphs can have


class CudaGraph:
    def __init__(self, pool: tuple[int, int]) -> None:
        self.recorded, self.pool = torch.cuda.CUDAGraph(), pool

    def begin(self) -> None:
        # Threads that carry messages may call the driver meanwhile.
        self.recorded.capture_begin(pool=self.pool, capture_error_mode="thread_local")

    def end(self) -> None:
        self.recorded.capture_end()
        self.recorded.replay()  # a capture performs nothing

    def replay(self) -> None:
        self.recorded.replay()


# CPUs


class Tapes:
    def graph(self) -> Graph:
        return Tape()

    @contextmanager
    def recording(self) -> Iterator[None]:
        yield


class Tape(TorchDispatchMode):
    """The ops in the order in which they were called, with their arguments and results, which it keeps."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple, dict[str, Any], tuple[Tensor, ...]]] = []

    def begin(self) -> None:
        self.__enter__()

    def end(self) -> None:
        self.__exit__(None, None, None)

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        aliases = [r.alias_info for r in func._schema.returns]
        if func._schema.returns and not isinstance(out, Tensor | tuple | list):
            raise InputError(f"{func}: the forward reads a number from a tensor, so it cannot be recorded; run without graphs")
        if not any(aliases):
            self.calls.append((func, args, kwargs, (out,) if isinstance(out, Tensor) else tuple(out)))
        elif any(alias is not None and alias.is_write for alias in aliases):
            self.calls.append((func, args, kwargs, ()))  # writes to its arguments; a view needs nothing
        return out

    def replay(self) -> None:
        for func, args, kwargs, results in self.calls:
            out = func(*args, **kwargs)
            for place, value in zip(results, (out,) if isinstance(out, Tensor) else out, strict=False):
                place.copy_(value)
