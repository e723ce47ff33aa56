"""Ranks: start, watch and stop the processes of a plan; no orphans. Does not import torch.

The supervisor is this process. It hears every rank on a pipe of its own, apart from the data plane: a rank that dies
closes its pipe, which is noticed in milliseconds; a rank that lives but does not beat is noticed at its limit. On the
first fault it looks for the root cause (a peer's "connection reset" is only its echo), stops all and raises one
sentence.
"""

from __future__ import annotations

import json
import os
import secrets
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import IO, Any, NoReturn

from exec.worker import TASKS, die_with_parent, leave, take_gpu
from planner import errors
from planner.errors import InputError, PolyrhythmError, RankFailed, RankStalled

__all__ = ["Ranks", "join_torchrun", "leave", "under_torchrun"]

Progress = Callable[[int, dict[str, Any]], None]

_TICK_SECONDS = 0.1
_SETTLE_SECONDS = 0.3  # for the cause to arrive behind its echo
_GRACE_SECONDS = 2.0  # between SIGTERM and SIGKILL
_GENUINE, _ABORT, _ECHO = 0, 1, 2


@dataclass(frozen=True)
class Fault:
    """What went wrong on a rank, as the error it becomes. weight: the lower, the likelier it is the root cause."""

    rank: int
    weight: int
    kind: type[PolyrhythmError]
    sentence: str


@dataclass(eq=False)
class _Rank:
    """One worker as its supervisor sees it. seen: monotonic seconds of the last sign of life; limit: of silence."""

    index: int
    name: str
    process: subprocess.Popen[bytes]
    commands: int
    reports: int
    log: IO[bytes]
    partial: list[bytes] = field(default_factory=list)
    step: int | None = None
    steps: int | None = None
    seen: float = 0.0
    limit: float = float("inf")
    result: dict[str, Any] | None = None
    where: dict[str, Any] | None = None
    fault: Fault | None = None

    def begin(self, limit: float) -> None:
        self.step = self.steps = self.result = self.where = None
        self.seen, self.limit = time.monotonic(), limit

    @property
    def at(self) -> str:
        if self.result is not None:
            return "after its task"
        if self.step is None:
            return "before its first step"
        return f"at step {self.step}" + (f" of {self.steps}" if self.steps is not None else "")

    @property
    def stopped(self) -> bool:
        """Stopped by a signal or a debugger (Linux)."""
        try:
            return Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()[0] in "Tt"
        except OSError:
            return False

    def tail(self, nbytes: int = 2000) -> str:
        """The end of its log; read without moving the offset, which the rank shares."""
        size = os.fstat(self.log.fileno()).st_size
        return os.pread(self.log.fileno(), nbytes, max(0, size - nbytes)).decode(errors="replace").strip()


class Ranks:
    """`count` worker processes that perform one task after another; a context manager.

    cores: one core per rank to pin it to. silent_seconds: how long a rank may go without a beat in a task.
    start_seconds: how long all may take to import torch and meet. environments: per rank more environment variables.
    log_directory: where rank0.log, rank1.log, ... (stdout and stderr) go; default: nowhere, but their ends are shown
    if something fails. On Linux the ranks die with the thread that entered the context, however it ends. Raises
    InputError for a count or cores that cannot be.
    """

    def __init__(
        self,
        count: int,
        *,
        backend: str = "gloo",
        cores: Sequence[int] | None = None,
        silent_seconds: float = 30.0,
        start_seconds: float = 120.0,
        environments: Sequence[Mapping[str, str]] = (),
        log_directory: str | os.PathLike[str] | None = None,
    ) -> None:
        if count < 1:
            raise InputError(f"{count} ranks: at least one is needed")
        if cores is not None:
            _check_cores(count, cores)
        self.count, self.backend, self.cores = count, backend, cores
        self.silent_seconds, self.start_seconds = silent_seconds, start_seconds
        self.closed = True
        self._own = [dict(each) for each in environments] or [{}] * count
        self._log_directory = None if log_directory is None else Path(log_directory)
        self._ranks: list[_Rank] = []
        self._faults: list[Fault] = []
        self._on_progress: Progress | None = None
        self._limit = silent_seconds

    def __enter__(self) -> Ranks:
        """Start the processes; they import torch while the caller goes on, and meet in the first `call`."""
        self._selector = selectors.DefaultSelector()
        self._ranks, self._faults = [], []
        self._kills, self._polled = _out_of_memory_kills(), time.monotonic()
        self.closed, self._joined = False, False
        try:
            # Bound here, listening before anyone connects, only on loopback: no port to guess, none taken twice.
            with socket.create_server(("127.0.0.1", 0), backlog=max(128, self.count)) as store:
                environment = self._environment(store.getsockname()[1])
                for index in range(self.count):
                    self._ranks.append(self._spawn(index, store, environment))
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if kind is None and not self.closed:
            for rank in self._ranks:
                os.close(rank.commands)  # they take it as a request to leave
                rank.commands = -1
            self._await_end()
        self.stop()

    @property
    def pids(self) -> list[int]:
        return [rank.process.pid for rank in self._ranks]

    def call(
        self,
        task: str,
        args: dict[str, Any] | list[dict[str, Any]],
        *,
        deadline_seconds: float | None = None,
        silent_seconds: float | None = None,
        on_progress: Progress | None = None,
    ) -> list[dict[str, Any]]:
        """Perform `task` on every rank, with the same `args` or one dict each; the results in rank order.

        on_progress(rank, report) hears every beat as {"beat": step, ...}. silent_seconds: the limit in this call, after
        a rank's first beat; until then it may be loading, and the larger of this and the ranks' own limit holds. Raises
        RankFailed, RankStalled or the error a rank reported; then all ranks are stopped and this object is closed.
        """
        if self.closed:
            raise RuntimeError("these ranks are stopped; start new ones")
        if task not in TASKS:
            raise ValueError(f"task {task!r}: there are {', '.join(TASKS)}")
        each = [args] * self.count if isinstance(args, dict) else args
        if len(each) != self.count:
            raise ValueError(f"{len(each)} args for {self.count} ranks")
        limit = self.silent_seconds if silent_seconds is None else silent_seconds
        try:
            if not self._joined:
                self._collect(self.start_seconds)
                self._joined = True
            self._poll(0)  # who died meanwhile did so between tasks
            if self._faults:
                self._raise_root_cause()
            self._on_progress, self._limit = on_progress, limit
            for rank, own in zip(self._ranks, each):
                rank.begin(max(limit, self.silent_seconds))
                self._send(rank, {"task": task, "args": own})
            return self._collect(deadline_seconds)
        except BaseException:
            self.stop()
            raise
        finally:
            self._on_progress = None

    def stop(self) -> str:
        """SIGTERM, up to 2 s, SIGKILL, to the ranks and whatever they started; says in words what came of it."""
        if self.closed:
            return "all ranks stopped"
        try:
            self._signal(signal.SIGTERM)
            self._signal(signal.SIGCONT)  # a stopped process cannot obey
            self._await_end()
        finally:  # a second Ctrl-C shortens the wait, no more
            self._signal(signal.SIGKILL)
            self._await_end()
            alive = [rank.name for rank in self._ranks if _exit_code(rank.process) is None]
            self._let_go()
        return f"{', '.join(alive)} could not be stopped" if alive else "all ranks stopped"

    def _signal(self, number: signal.Signals) -> None:
        for rank in self._ranks:
            try:
                os.killpg(rank.process.pid, number)
            except (ProcessLookupError, PermissionError):
                pass

    def _await_end(self, seconds: float = _GRACE_SECONDS) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end and any(_exit_code(rank.process) is None for rank in self._ranks):
            time.sleep(0.002)

    def _let_go(self) -> None:
        """Give back what the dead ranks leave: zombies, pipes, logs."""
        self.closed = True
        self._selector.close()
        for rank in self._ranks:
            rank.process.poll()
            rank.log.close()
            os.close(rank.reports)
            if rank.commands >= 0:
                os.close(rank.commands)

    # Starting

    def _environment(self, port: int) -> dict[str, str]:
        """What all ranks inherit. The search path is ours, in our order, so that they import what we import."""
        path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
        master = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        world = {"WORLD_SIZE": str(self.count), "LOCAL_WORLD_SIZE": str(self.count)}
        environment = os.environ | master | world | {"PYTHONPATH": path, "POLYRHYTHM_RUN": secrets.token_hex(8)}
        if self.backend == "gloo":
            environment.setdefault("OMP_NUM_THREADS", "1")
            environment.setdefault("GLOO_SOCKET_IFNAME", "lo" if sys.platform == "linux" else "lo0")
            # glibc keeps what a layer frees for the next one, instead of faulting it in anew page by page: a tenth of a step.
            environment.setdefault("MALLOC_MMAP_MAX_", "0")
            environment.setdefault("MALLOC_TRIM_THRESHOLD_", str(1 << 36))
        return environment

    def _spawn(self, index: int, store: socket.socket, environment: dict[str, str]) -> _Rank:
        """Start one worker in a process group of its own, so that a Ctrl-C reaches only the supervisor."""
        commands_out, commands = os.pipe()
        reports, reports_in = os.pipe()
        core = self.cores[index] if self.cores is not None else None
        options = {
            "supervisor": os.getpid(),
            "commands": commands_out,
            "reports": reports_in,
            "store": store.fileno() if index == 0 else None,  # rank 0 hosts it: that needs torch
            "backend": self.backend,
            "core": core,
            "timeout_seconds": max(60.0, 2 * self.silent_seconds),  # our own limits speak first
        }
        log = self._open_log(index)
        try:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "exec.worker", json.dumps(options)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment | self._own[index] | {"RANK": str(index), "LOCAL_RANK": str(index)},
                pass_fds=[commands_out, reports_in, *([store.fileno()] if index == 0 else [])],
                process_group=0,
            )
        except BaseException:
            os.close(commands)
            os.close(reports)
            log.close()
            raise
        finally:
            os.close(commands_out)
            os.close(reports_in)
        os.set_blocking(commands, False)
        os.set_blocking(reports, False)
        place = f"gpu{index}" if self.backend == "nccl" else None if core is None else f"cpu{core}"
        name = f"rank {index} (pid {process.pid}{f', {place}' if place else ''})"
        rank = _Rank(index, name, process, commands, reports, log, seen=time.monotonic())
        self._selector.register(reports, selectors.EVENT_READ, rank)
        return rank

    def _open_log(self, index: int) -> IO[bytes]:
        """A file without a name unless a directory was asked for: nothing is left of it, however we end."""
        if self._log_directory is None:
            return tempfile.TemporaryFile()
        self._log_directory.mkdir(parents=True, exist_ok=True)
        return open(self._log_directory / f"rank{index}.log", "w+b")

    # Talking

    def _send(self, rank: _Rank, command: dict[str, Any]) -> None:
        """Write a command; a rank that does not take it within its limit is a silent one."""
        line, end = json.dumps(command).encode() + b"\n", time.monotonic() + rank.limit
        while line:
            try:
                line = line[os.write(rank.commands, line) :]
            except BlockingIOError:
                if time.monotonic() > end:
                    self._raise_stalled([rank], "took no command")
                time.sleep(0.001)
            except BrokenPipeError:
                return  # its death is noticed where it is looked for

    def _poll(self, seconds: float = _TICK_SECONDS) -> None:
        """Take in what the ranks say within `seconds`, and who has died."""
        for key, _ in self._selector.select(seconds):
            if not self._read(key.data):
                self._bury(key.data)
        for rank in self._ranks:
            if rank.fault is None and _exit_code(rank.process) is not None:
                self._bury(rank)
        now = time.monotonic()
        if (overslept := now - self._polled - seconds) > 0.5:  # the supervisor was stopped: that is no rank's silence
            for rank in self._ranks:
                rank.seen = min(now, rank.seen + overslept)
        self._polled = now

    def _read(self, rank: _Rank) -> bool:
        """Take in one chunk; False if there is none, now or ever."""
        try:
            chunk = os.read(rank.reports, 1 << 16)
        except BlockingIOError:
            return False
        head, *pieces = chunk.split(b"\n")
        rank.partial.append(head)
        for piece in pieces:
            self._note(rank, json.loads(b"".join(rank.partial)))
            rank.partial = [piece]
        return bool(chunk)

    def _note(self, rank: _Rank, report: dict[str, Any]) -> None:
        if "where" in report:
            rank.where = report["where"]
            return
        rank.seen = time.monotonic()
        if "result" in report:
            rank.result = report["result"]
        elif "error" in report:
            self._note_fault(rank, *_reported(rank, report["error"]))
        else:
            rank.step, rank.steps, rank.limit = report["beat"], report.get("of", rank.steps), self._limit
            if self._on_progress is not None:
                self._on_progress(rank.index, report)

    # Watching

    def _collect(self, deadline_seconds: float | None) -> list[dict[str, Any]]:
        """Results of all ranks; raises at the first fault, silence or missed deadline."""
        begun = self._polled = time.monotonic()
        while any(rank.result is None for rank in self._ranks):
            self._poll()
            if self._faults:
                self._raise_root_cause()
            overdue = deadline_seconds is not None and time.monotonic() - begun > deadline_seconds
            if overdue or self._silent():
                self._ask_where()
                if overdue and self._unfinished() and not self._faults:
                    due = "finished" if self._joined else "joined the others"
                    self._raise_stalled(self._unfinished(), f"has not {due} within {deadline_seconds:.1f} s")
                elif self._silent() and not self._faults:
                    self._raise_stalled(self._silent(share=0.5), "was silent beyond its limit")
        return [rank.result or {} for rank in self._ranks]

    def _unfinished(self) -> list[_Rank]:
        return [rank for rank in self._ranks if rank.result is None and rank.fault is None]

    def _silent(self, share: float = 1.0) -> list[_Rank]:
        now = time.monotonic()
        return [rank for rank in self._unfinished() if now - rank.seen > share * rank.limit]

    def _note_fault(self, rank: _Rank, weight: int, kind: type[PolyrhythmError], sentence: str) -> None:
        if rank.fault is None:
            rank.fault = Fault(rank.index, weight, kind, sentence)
            self._faults.append(rank.fault)

    def _bury(self, rank: _Rank) -> None:
        """Note a rank's death, after its last words."""
        while self._read(rank):
            pass
        if rank.reports in self._selector.get_map():
            self._selector.unregister(rank.reports)
        end = time.monotonic() + 1.0
        while (code := _exit_code(rank.process)) is None and time.monotonic() < end:
            time.sleep(0.001)
        cause = _death(code)
        if code == -signal.SIGKILL and _out_of_memory_kills() > self._kills:
            cause += " (the machine ran out of memory)"
        weight = _ABORT if code == -signal.SIGABRT else _GENUINE
        self._note_fault(rank, weight, RankFailed, f"{rank.name} {cause} {rank.at}")

    def _ask_where(self) -> None:
        """Ask the unfinished ranks what they are doing; those that can answer do so within milliseconds."""
        asked, end = self._unfinished(), time.monotonic() + _SETTLE_SECONDS
        for rank in asked:
            rank.where = None
            try:
                os.write(rank.commands, b'{"where": true}\n')
            except OSError:
                pass
        while time.monotonic() < end and any(rank.where is None and not rank.stopped for rank in asked):
            self._poll(0.02)

    def _raise_root_cause(self) -> NoReturn:
        """The first genuine fault; if there are only echoes, they may be those of a rank that stalled."""
        end = time.monotonic() + _SETTLE_SECONDS
        while time.monotonic() < end and all(fault.weight for fault in self._faults) and self._unfinished():
            self._poll(0.02)
        root = min(self._faults, key=lambda fault: fault.weight)
        if root.weight == _ECHO and "timed out" in root.sentence.lower():
            self._ask_where()
            if idle := [rank for rank in self._unfinished() if rank.where is None or not rank.where["waits"]]:
                self._raise_stalled(idle, f"kept rank {root.rank} waiting too long")
        self._fail(self._ranks[root.rank], root.kind, root.sentence)

    def _raise_stalled(self, among: list[_Rank], sentence: str) -> NoReturn:
        """Name the rank that holds the others up: not one that waits for a peer, else the one furthest behind."""
        rank = min(among, key=_innocence)
        silence = f"not heard for {time.monotonic() - rank.seen:.1f} s (limit {rank.limit:.1f} s) {rank.at}"
        self._fail(rank, RankStalled, f"{rank.name} {sentence}: {silence}, {_doing(rank)}")

    def _fail(self, rank: _Rank, kind: type[PolyrhythmError], sentence: str) -> NoReturn:
        """Stop all ranks, then raise; the end of the rank's log goes along as a note, unless the sentence says all."""
        tail = rank.tail()
        error = kind(f"{sentence}; {self.stop()}")
        if tail and kind in (RankFailed, RankStalled):
            error.add_note(f"the end of rank {rank.index}'s log:\n{tail}")
        raise error


def under_torchrun() -> bool:
    """Is this process already a rank that torchrun (or srun, or anything that sets its variables) has started?"""
    needed = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    return all(name in os.environ for name in needed) and "POLYRHYTHM_RUN" not in os.environ


def join_torchrun(backend: str = "gloo", timeout_seconds: float = 60.0) -> tuple[int, int]:
    """Join the process group that the environment describes; (rank, ranks). End such a process with `leave`.

    timeout_seconds: of what is said outside of channels, such as waiting for who loads longest; torch's own is half an hour.
    """
    import torch.distributed as dist

    die_with_parent()  # torchrun, when killed itself, leaves its workers behind
    device = take_gpu(int(os.environ.get("LOCAL_RANK", "0")), backend)
    bound = device if backend == "nccl" else None
    dist.init_process_group(backend, timeout=timedelta(seconds=timeout_seconds), device_id=bound)
    return dist.get_rank(), dist.get_world_size()


def _check_cores(count: int, cores: Sequence[int]) -> None:
    if not hasattr(os, "sched_setaffinity"):
        raise InputError("cores: this system cannot pin a process to a core; leave them out")
    ours = sorted(os.sched_getaffinity(0))
    if len(cores) != count or not set(cores) <= set(ours):
        raise InputError(f"cores {list(cores)}: needed is one for each of {count} ranks, out of {ours}")


def _innocence(rank: _Rank) -> tuple[bool, bool, bool, int]:
    """The smaller, the likelier it is this rank that holds the others up."""
    waits = rank.where is not None and rank.where["waits"]
    return not rank.stopped, rank.where is not None, waits, -1 if rank.step is None else rank.step


def _doing(rank: _Rank) -> str:
    if rank.stopped:
        return "stopped by a signal or debugger"
    if rank.where is None:
        return "not answering, stuck outside Python"
    op = f"performing {rank.where['op']}, " if rank.where["op"] else ""
    return op + ("waiting for a peer in " if rank.where["waits"] else "in ") + (rank.where["place"] or "Python")


def _reported(rank: _Rank, error: dict[str, Any]) -> tuple[int, type[PolyrhythmError], str]:
    """(weight, kind, sentence) of a rank's error line: our own errors speak for themselves."""
    kind = getattr(errors, error["type"], None)
    if kind is not None:
        return _GENUINE, kind, error["message"]
    text = error["message"].rstrip(".")
    sentence = f"{rank.name} raised {error['type']}{': ' if text else ''}{text}, {rank.at}"
    return _ECHO if error["echo"] else _GENUINE, RankFailed, sentence


def _death(code: int | None) -> str:
    if code is None:
        return "closed its control pipe"
    if code >= 0:
        return f"exited with code {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"


def _exit_code(process: subprocess.Popen[bytes]) -> int | None:
    """Like `poll`, but leaves the zombie where the system can: while it lies there, nobody else gets its pid."""
    if process.returncode is not None or not hasattr(os, "waitid"):
        return process.poll()
    try:
        end = os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return process.poll()
    if end is None:
        return None
    return end.si_status if end.si_code == os.CLD_EXITED else -end.si_status


def _out_of_memory_kills() -> int:
    """How often the kernel has killed for want of memory since boot (Linux; else 0)."""
    try:
        counters = dict(line.split() for line in Path("/proc/vmstat").read_text().splitlines())
    except OSError:
        return 0
    return int(counters.get("oom_kill", 0))
