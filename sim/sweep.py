"""Many tasks, each once: those that are done are not done again, the others in parallel by joblib, with an ETA."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from importlib.util import find_spec
from time import monotonic
from typing import TypeVar

from planner.errors import InputError, one_of

BACKENDS = ("loky", "multiprocessing", "threading", "dask", "ray")
NEEDS = {"dask": "distributed", "ray": "ray"}
PER_WORKER = 8  # tasks at a time, where a backend gives back nothing before all of them are done

Task = TypeVar("Task")
Row = TypeVar("Row")


def sweep(
    work: Callable[[Task], Row],
    tasks: Mapping[str, Task],
    *,
    known: Mapping[str, Row],
    keep: Callable[[str, Row], None],
    processes: int = 1,
    backend: str | None = None,
    progress: Callable[[str], None] = lambda text: None,
) -> dict[str, Row]:
    """{key: work(task)} of all tasks, in their order.

    known: what is done already; keep: told of every other one as soon as it is done. processes: how many at a time, on
    `backend`, one of BACKENDS (None: loky, or this process alone if it is one). progress: a line now and then.
    Raises InputError for a backend that is not there, and whatever `work` raises.
    """
    done = {key: known[key] for key in tasks if key in known}
    left = [(key, task) for key, task in tasks.items() if key not in done]
    begin = monotonic()
    for count, (key, row) in enumerate(_performed(work, left, processes, backend), 1):
        keep(key, row)
        done[key] = row
        rest = (monotonic() - begin) / count * (len(left) - count)
        progress(f"{len(done)} of {len(tasks)} points" + (f", {_duration(rest)} left" if count < len(left) else ""))
    return {key: done[key] for key in tasks}


def check_backend(backend: str | None, processes: int) -> None:
    """InputError for what `sweep` could not run on."""
    if backend is None and processes == 1:
        return
    if backend is not None:
        one_of("backend", backend, BACKENDS)
    for module in ("joblib", *([NEEDS[backend]] if backend in NEEDS else [])):
        if find_spec(module) is None:
            raise InputError(
                f"{f'backend {backend}' if backend else 'more than one process'} needs {module}: pip install "
                f"{chr(39) + 'polyrhythm[sweep]' + chr(39) if module == 'joblib' else module}"
            )


def _performed(
    work: Callable[[Task], Row], tasks: Sequence[tuple[str, Task]], processes: int, backend: str | None
) -> Iterator[tuple[str, Row]]:
    """As they are done."""
    check_backend(backend, processes)
    if not tasks:
        return
    if backend is None and processes == 1:
        yield from ((key, work(task)) for key, task in tasks)
        return
    from joblib import Parallel, delayed, parallel_config

    with ExitStack() as stack:
        _connect(backend, stack)
        stack.enter_context(parallel_config(backend=backend or "loky"))
        calls = [delayed(_keyed)(work, key, task) for key, task in tasks]
        if backend == "ray":  # it gives back whole lists only
            pool = stack.enter_context(Parallel(n_jobs=processes))
            many = PER_WORKER * processes
            for begin in range(0, len(calls), many):
                yield from pool(calls[begin : begin + many])
        else:
            yield from Parallel(n_jobs=processes, return_as="generator_unordered")(calls)


def _connect(backend: str | None, stack: ExitStack) -> None:
    """To a cluster of Dask or Ray: that of DASK_SCHEDULER_ADDRESS or RAY_ADDRESS, else one on this machine."""
    if backend == "dask":
        from distributed import Client

        stack.enter_context(Client())
    elif backend == "ray":
        from ray.util.joblib import register_ray

        register_ray()


def _keyed(work: Callable[[Task], Row], key: str, task: Task) -> tuple[str, Row]:
    return key, work(task)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
