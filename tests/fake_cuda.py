"""A GPU that computes nothing, to see without one what a GPU would complain of: torch's fake tensors with device cuda.

Ops give shapes, dtypes and devices, and refuse tensors of unlike devices. `Watch` sees what else matters: where the host
would have to wait for the GPU, and what cannot be in a CUDA graph.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from exec.channels import Channels
from planner.plan import Plan

READS = ("_local_scalar_dense", "nonzero", "equal", "is_nonzero", "unique", "masked_select")


class Watch(TorchDispatchMode):
    """waits: ops for which the host waits; frozen: what a graph could not hold, or would hold as it is now for ever."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []
        self.frozen: list[str] = []
        self.capturing = False

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        given = devices((args, kwargs))
        name = func._schema.name.split("::")[1]
        if "cuda" in given and name in READS:
            self.waits.append(name)
            raise AssertionError(f"{name} reads numbers from the GPU")
        out = func(*args, **kwargs)
        moved = len(given | devices(out)) > 1 and (name in ("_to_copy", "copy_") or given.isdisjoint(devices(out)))
        if moved:
            self.waits.append(name)
        if self.capturing and (moved or len(given) > 1):
            self.frozen.append(name)
        return out


def devices(tree: Any) -> set[str]:
    return {x.device.type for x in tree_leaves(tree) if isinstance(x, Tensor)}


class Guardless(TorchFunctionMode):
    """What in a torch without CUDA asks for its device guard, in ops that do not."""

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        if not (args and isinstance(args[0], FakeTensor)):
            return func(*args, **(kwargs or {}))
        if func is Tensor.__getitem__:
            return at(*args)
        if func is Tensor.__setitem__:
            place, value = at(*args[:2]), args[2]
            copied(place, value) if isinstance(value, Tensor) else place.fill_(value)
            return None
        if func is Tensor.copy_:
            return copied(*args)
        if func is Tensor.contiguous:
            return args[0] if args[0].is_contiguous() else args[0].clone(memory_format=torch.contiguous_format)
        return func(*args, **(kwargs or {}))


def copied(to: Tensor, value: Tensor) -> Tensor:
    return torch.ops.aten.copy_.default(to, value)


def at(x: Tensor, index: Any) -> Tensor:
    """x[index]."""
    index = index if isinstance(index, tuple) else (index,)
    dim = 0
    for n, i in enumerate(index):
        if i is Ellipsis:
            dim = x.ndim - sum(j is not None for j in index[n + 1 :])
        elif i is None:
            x = x.unsqueeze(dim)
        elif isinstance(i, slice):
            x = torch.ops.aten.slice.Tensor(x, dim, i.start, i.stop, i.step or 1)
        elif isinstance(i, int):
            x, dim = x.select(dim, i), dim - 1
        else:  # a list would be brought to the GPU first
            places = torch.tensor(i).to(x.device) if isinstance(i, list) else i
            x = torch.ops.aten.index.Tensor(x, [None] * dim + [places])
        dim += i is not Ellipsis
    return x


class FakeCuda:
    """Inside of `on`, tensors that are made for `cuda` are fake, and `watch` sees what happens to them."""

    def __init__(self) -> None:
        self.mode, self.watch = FakeTensorMode(allow_non_fake_inputs=True), Watch()

    @contextmanager
    def on(self) -> Iterator[None]:
        with self.mode, Guardless(), self.watch, torch.no_grad():
            yield

    def module(self, kind: type, config: dict[str, Any], dtype: torch.dtype) -> nn.Module:
        """A diffusers model there, of any size: it takes no memory."""
        with torch.device("meta"):
            made = kind.from_config(config).to(dtype)
        with self.mode:
            return made.to_empty(device="cuda")


class Graphs:
    """In place of `exec.graphs.CudaGraphs`."""

    def __init__(self, watch: Watch) -> None:
        self.watch = watch

    def graph(self) -> Graphs:
        return self

    @contextmanager
    def recording(self) -> Iterator[None]:
        yield

    def begin(self) -> None:
        assert not self.watch.capturing
        self.watch.capturing = True

    def end(self) -> None:
        assert self.watch.capturing
        self.watch.capturing = False

    def replay(self) -> None:
        assert not self.watch.capturing


class Nobody(Channels):
    """Channels on which nothing comes, of the right size. staged: through the host, as gloo does; else as NCCL does."""

    def __init__(self, plan: Plan, staged: bool) -> None:
        self.groups = dict.fromkeys(plan.channels())
        self.staged, self.device = staged, torch.device("cpu" if staged else "cuda")
        self.members, self.received = tuple(range(plan.ranks)), Counter()

    def _call(self, *args: Any) -> None:
        """A message of which nobody hears."""


def on_the_host(method: Any) -> Any:
    """`method`, in which tensors that are not fake are real: a scheduler's numbers."""

    def called(*args: Any, **kwargs: Any) -> Any:
        with unset_fake_temporarily():
            return method(*args, **kwargs)

    return called
