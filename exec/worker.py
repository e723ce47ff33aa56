"""One rank: performs tasks by name for its supervisor, `launch.py`, which starts it as `python -m exec.worker OPTIONS`.

Control is JSON lines on two inherited pipes, never on stdout (libraries print) nor on the data plane (it may hang). In
come {"task": name, "args": {...}} and {"where": true}; out go {"beat": step, ...}, {"result": {...}}, {"where": {...}}
and {"error": {"type", "message", "exit_code", "step", "echo"}}. After an error the rank keeps its sockets open until it
is killed, so no peer's "connection reset" hides the cause. When the command pipe ends, so does the rank.

Fault injection, for tests and `benchmarks/faults.py`: POLYRHYTHM_FAULT=KIND:rank=1:step=3 makes rank 1 fail when it
beats step 3. Kinds: those of FAULTS, and the name of any class in `planner.errors`, which is raised.
"""

from __future__ import annotations

import ctypes
import faulthandler
import importlib
import json
import os
import queue
import re
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, Protocol

from exec.pinning import pin, unpinned
from planner import errors
from planner.ops import Op, label

# What may be asked for, and nothing else: a name on the wire never becomes an import by itself.
TASKS = {
    "echo": "exec.worker:echo",
    "exercise": "exec.worker:exercise",
    "run": "exec.tasks:run",
    "measure": "exec.tasks:measure",
}

_PR_SET_PDEATHSIG = 1
_LEAVE_SECONDS = 5
_HERE = Path(__file__).parent
# What the survivors of somebody else's death say.
_ECHO = re.compile(r"\b(gloo|nccl|tcpstore|c10d)\b|connection (reset|closed|refused)|pair closure|timed out", re.I)


class Beat(Protocol):
    """beat(step): the task is alive and at `step`; keywords (of=50, ...) travel along to the caller's `on_progress`."""

    def __call__(self, step: int, /, **note: Any) -> None: ...


def main() -> None:
    """Join the other ranks, then perform tasks until the supervisor leaves."""
    options = json.loads(sys.argv[1])
    die_with_parent(options["supervisor"])
    faulthandler.enable()
    if options["core"] is not None:
        pin(options["core"])  # before torch makes its threads
    worker = Worker(options["commands"], options["reports"])
    worker.perform(lambda: join(options))
    while (command := worker.desk.get()) is not None:
        worker.perform(lambda: task(command["task"])(command["args"], worker.beat))
    leave(0)


class Worker:
    """The control plane of one rank. `busy`: leaving now would break off a task."""

    def __init__(self, commands: int, reports: int) -> None:
        for pipe in (commands, reports):
            os.set_inheritable(pipe, False)  # a task's own children must not keep it open
        self.desk: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self.busy = True
        self.step: int | None = None
        self.injection = injection(os.environ.get("POLYRHYTHM_FAULT", ""))
        self._commands, self._reports, self._lock = commands, reports, threading.Lock()
        threading.Thread(target=self._listen, daemon=True).start()

    def perform(self, work: Callable[[], dict[str, Any]]) -> None:
        """Report the result of `work`, or its error."""
        self.step = None
        try:
            line = _line(result=work())
        except BaseException as error:
            traceback.print_exc()
            line = _line(error=describe(error, self.step))
        self.busy = False
        self._write(line)

    def beat(self, step: int, /, **note: Any) -> None:
        self.step = step
        self._write(_line(beat=step, **note))
        if (int(os.environ["RANK"]), step) == self.injection[1:]:
            inject(self.injection[0])

    def _listen(self) -> None:
        """Commands to the desk; questions answered at once, whatever the main thread does."""
        with open(self._commands, "rb") as lines:
            for line in lines:
                command = json.loads(line)
                if "where" in command:
                    self._write(_line(where=where(sys._current_frames().get(threading.main_thread().ident or 0))))
                else:
                    self.busy = True
                    self.desk.put(command)
        if self.busy:
            os._exit(1)
        signal.alarm(_LEAVE_SECONDS)  # a leave that hangs ends too
        self.desk.put(None)

    def _write(self, line: bytes) -> None:
        with self._lock:
            try:
                while line:
                    line = line[os.write(self._reports, line) :]
            except BrokenPipeError:
                os._exit(1)


def task(name: str) -> Callable[[dict[str, Any], Beat], dict[str, Any]]:
    """The function of that name in TASKS."""
    module, function = TASKS[name].split(":")
    return getattr(importlib.import_module(module), function)


def join(options: dict[str, Any]) -> dict[str, Any]:
    """Initialise torch.distributed over the supervisor's store socket; InputError if torch or a GPU is missing."""
    try:
        import torch
        import torch.distributed as dist
    except ImportError as error:
        raise errors.InputError(f"{error}; ranks need torch: pip install 'polyrhythm[exec]'") from error
    backend, timeout = options["backend"], timedelta(seconds=options["timeout_seconds"])
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    device = take_gpu(int(os.environ["LOCAL_RANK"]), backend)
    hosting = {} if options["store"] is None else {"master_listen_fd": options["store"]}
    store = dist.TCPStore(address, port, world, bool(hosting), timeout, wait_for_workers=False, **hosting)
    mine = dist.PrefixStore(os.environ["POLYRHYTHM_RUN"], store)
    with unpinned():
        bound = device if backend == "nccl" else None
        dist.init_process_group(backend, store=mine, rank=rank, world_size=world, timeout=timeout, device_id=bound)
    return {"pid": os.getpid(), "torch": torch.__version__}


def take_gpu(local_rank: int, backend: str) -> Any:
    """This process's device: with NCCL GPU `local_rank`, with gloo ranks share what there is; None without a GPU.

    InputError if NCCL has not so many. Single precision is single precision from here on, not TF32: else ranks could not
    be held against one device.
    """
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if backend == "nccl" and local_rank >= count:
        raise errors.InputError(f"backend nccl: rank {local_rank} needs a GPU of its own, here are {count}; use gloo")
    if not count:
        return None
    torch.cuda.set_device(local_rank % count)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    return torch.device("cuda", local_rank % count)


def leave(code: int) -> NoReturn:
    """End this process with `code`, which the teardown of gloo's threads would turn into 134 now and then."""
    import torch.distributed as dist

    if dist.is_initialized():
        dist.destroy_process_group()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def die_with_parent(parent: int | None = None) -> None:
    """Have the kernel kill this process when its parent ends (Linux). parent: its pid, if it may be gone already."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if parent is not None and os.getppid() != parent:
        os._exit(1)


# What went wrong, and where


def describe(error: BaseException, step: int | None) -> dict[str, Any]:
    """An error line. echo: probably only the consequence of what happened to a peer."""
    message = " ".join(str(error).split())[:500]
    echo = isinstance(error, RuntimeError | ConnectionError) and bool(_ECHO.search(message))
    code = getattr(error, "exit_code", errors.RankFailed.exit_code)
    return {"type": type(error).__name__, "message": message, "exit_code": code, "step": step, "echo": echo}


def where(frame: FrameType | None) -> dict[str, Any]:
    """Innermost line of ours at or around `frame`, the plan's op performed there, and whether a peer is waited for."""
    place, op, waits = "", "", False
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        waits = waits or path == _HERE / "channels.py" or "torch/distributed" in path.as_posix()
        waits = waits or "torch/cuda" in path.as_posix()  # for the GPU, which itself waits for a peer
        if path.parent == _HERE:
            place = place or f"exec/{path.name}:{frame.f_lineno} {frame.f_code.co_name}"
            if path.name == "run.py" and isinstance(word := frame.f_locals.get("op"), Op):
                op = op or label(word, frame.f_locals.get("base", 0))
        frame = frame.f_back
    return {"place": place, "op": op, "waits": waits}


def _line(**report: Any) -> bytes:
    return json.dumps(report).encode() + b"\n"


def _hold_interpreter() -> None:
    ctypes.PyDLL(None).sleep(3600)


FAULTS: dict[str, Callable[[], object]] = {
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "segv": lambda: os.kill(os.getpid(), signal.SIGSEGV),
    "exit": lambda: os._exit(0),
    "stop": lambda: os.kill(os.getpid(), signal.SIGSTOP),
    "sleep": lambda: time.sleep(3600),
    "gil": _hold_interpreter,
    "raise": lambda: int("injected fault"),
}


def injection(text: str) -> tuple[str, int, int]:
    """(kind, rank, step) of POLYRHYTHM_FAULT; rank -1 where it is empty. ValueError if it is malformed."""
    if not text:
        return "", -1, -1
    match = re.fullmatch(r"(\w+):rank=(\d+):step=(\d+)", text)
    if match is None or not (match[1] in FAULTS or hasattr(errors, match[1])):
        kinds = ", ".join(FAULTS)
        raise ValueError(f"POLYRHYTHM_FAULT={text!r}: must be KIND:rank=R:step=S, KIND of {kinds} or an error's name")
    return match[1], int(match[2]), int(match[3])


def inject(kind: str) -> None:
    if kind in FAULTS:
        FAULTS[kind]()
    else:
        raise getattr(errors, kind)("injected fault")


# Two small tasks, for tests, benchmarks and a look at the machine


def echo(args: dict[str, Any], beat: Beat) -> dict[str, Any]:
    """`args` again, with who answered."""
    beat(0)
    return {**args, "rank": int(os.environ["RANK"]), "pid": os.getpid()}


def exercise(args: dict[str, Any], beat: Beat) -> dict[str, Any]:
    """`steps` rounds of an all_reduce and a ring of `numel` floats (default 1024), `seconds` apart (default 0).

    Returns what came last: `sum` of ones over the ranks, `left` the number of the rank before.
    """
    import torch
    import torch.distributed as dist

    rank, world, steps, numel = dist.get_rank(), dist.get_world_size(), args["steps"], args.get("numel", 1024)
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    ones, left = torch.ones(numel, device=device), torch.full((numel,), float(rank), device=device)
    for step in range(steps):
        beat(step, of=steps)
        time.sleep(args.get("seconds", 0.0))
        ones.fill_(1)
        dist.all_reduce(ones)
        if world > 1:
            sent = dist.isend(torch.full_like(left, rank), (rank + 1) % world)
            dist.recv(left, (rank - 1) % world)
            sent.wait()
    return {"sum": float(ones[-1]), "left": float(left[-1])}


if __name__ == "__main__":
    main()
