"""Ranks are real processes here: they talk over gloo, are killed and stopped, and none may be left behind."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from exec.launch import Ranks, under_torchrun
from exec.worker import describe, injection
from planner.errors import InputError, NotANumber, RankFailed, RanksDisagree, RankStalled

LONG = {"steps": 100_000, "seconds": 0.01}


def alive(pids):
    """Those of `pids` that still run; a zombie does not."""
    return [pid for pid in pids if state(pid) not in ("", "Z")]


def state(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


def soon(condition, seconds):
    """Does `condition()` come true within so many seconds?"""
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    return condition()


@pytest.fixture(scope="module")
def pair():
    with Ranks(2) as ranks:
        yield ranks
    assert alive(ranks.pids) == []


def test_results_come_back_in_rank_order(pair):
    answers = pair.call("echo", [{"word": "one"}, {"word": "two"}])
    assert [(a["word"], a["rank"], a["pid"]) for a in answers] == [("one", 0, pair.pids[0]), ("two", 1, pair.pids[1])]


def test_ranks_serve_one_call_after_another(pair):
    heard = []
    for _ in range(2):
        results = pair.call("exercise", {"steps": 3}, on_progress=lambda rank, beat: heard.append((rank, beat["beat"])))
        assert results == [{"sum": 2.0, "left": 1.0}, {"sum": 2.0, "left": 0.0}]
    assert sorted(heard) == sorted(2 * [(rank, step) for rank in (0, 1) for step in (0, 1, 2)])


def test_a_long_argument_and_a_long_result_fit_the_pipes(pair):
    assert pair.call("echo", {"text": "x" * 1_000_000})[1]["text"] == "x" * 1_000_000


def test_a_wrong_call_is_refused_and_harms_nobody(pair):
    with pytest.raises(ValueError, match="there are echo, exercise"):
        pair.call("os:system", {})
    with pytest.raises(ValueError, match="1 args for 2 ranks"):
        pair.call("echo", [{}])
    assert len(pair.call("echo", {})) == 2


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        ("raise:rank=0:step=3", r"rank 0 \(pid \d+\) raised ValueError: .*injected fault.* at step 3 of"),
        ("exit:rank=1:step=2", r"rank 1 \(pid \d+\) exited with code 0 at step 2 of 100000"),
    ],
)
def test_the_cause_is_named_not_its_echo(monkeypatch, fault, sentence):
    monkeypatch.setenv("POLYRHYTHM_FAULT", fault)
    with Ranks(2) as ranks, pytest.raises(RankFailed, match=sentence) as caught:
        ranks.call("exercise", LONG)
    assert caught.value.exit_code == 5
    assert alive(ranks.pids) == []
    if "raise" in fault:
        assert "Traceback" in caught.value.__notes__[0]


def test_an_error_of_ours_keeps_its_class_and_exit_code(monkeypatch):
    monkeypatch.setenv("POLYRHYTHM_FAULT", "RanksDisagree:rank=0:step=1")
    with Ranks(1) as ranks, pytest.raises(RanksDisagree, match=r"^injected fault") as caught:
        ranks.call("exercise", LONG)
    assert caught.value.exit_code == 7


def test_a_killed_rank_is_named_at_once(tmp_path):
    killed = []

    def kill(rank, beat):
        if rank == 1 and beat["beat"] == 7 and not killed:
            os.kill(ranks.pids[1], signal.SIGKILL)
            killed.append(time.monotonic())

    core = min(os.sched_getaffinity(0))
    with Ranks(2, cores=(core, core), log_directory=tmp_path) as ranks:
        with pytest.raises(RankFailed) as caught:
            ranks.call("exercise", {**LONG, "seconds": 0.1}, on_progress=kill)
        assert time.monotonic() - killed[0] < 2
        name = rf"rank 1 \(pid {ranks.pids[1]}, cpu{core}\)"
        assert re.fullmatch(rf"{name} was killed by SIGKILL at step 7 of 100000; all ranks stopped", str(caught.value))
        assert alive(ranks.pids) == []
        with pytest.raises(RuntimeError, match="start new ones"):
            ranks.call("echo", {})
    assert (tmp_path / "rank0.log").exists()


def test_a_stopped_rank_is_named_at_its_limit():
    stopped = []

    def stop(rank, beat):
        if rank == 0 and beat["beat"] == 5:
            os.kill(ranks.pids[0], signal.SIGSTOP)
            stopped.append(time.monotonic())

    sentence = r"^rank 0 .* was silent beyond its limit: .*limit 1.0 s.* at step 5 of 100000, stopped by a signal"
    with Ranks(2) as ranks, pytest.raises(RankStalled, match=sentence) as caught:
        ranks.call("exercise", LONG, silent_seconds=1.0, on_progress=stop)
    assert caught.value.exit_code == 6
    assert 1.0 < time.monotonic() - stopped[0] < 3.0
    assert alive(ranks.pids) == []


def test_at_the_deadline_the_sleeper_is_named_not_who_waits_for_it(monkeypatch):
    monkeypatch.setenv("POLYRHYTHM_FAULT", "sleep:rank=1:step=3")
    with Ranks(2) as ranks, pytest.raises(RankStalled, match=r"^rank 1 .* has not finished within 1.5 s.* at step 3"):
        ranks.call("exercise", LONG, deadline_seconds=1.5)
    assert alive(ranks.pids) == []


SUPERVISOR = """
import sys
from exec.launch import Ranks
with Ranks(int(sys.argv[1])) as ranks:
    print(*ranks.pids, flush=True)
    ranks.call("exercise", {"steps": 100_000, "seconds": 0.01}, on_progress=lambda *beat: print("beat", flush=True))
"""


@pytest.mark.parametrize(("number", "count"), [(signal.SIGKILL, "2"), (signal.SIGINT, "1")])
def test_no_rank_outlives_its_supervisor(number, count):
    command = [sys.executable, "-c", SUPERVISOR, count]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as supervisor:
        pids = [int(word) for word in supervisor.stdout.readline().split()]
        assert supervisor.stdout.readline() == b"beat\n"
        assert alive(pids) == pids
        supervisor.send_signal(number)
        assert soon(lambda: not alive(pids), 2.0), "orphans"
        supervisor.stdout.close()
        assert supervisor.wait(5) != 0


def test_a_rank_of_torchrun_joins_and_leaves_with_its_own_exit_code(monkeypatch):
    assert not under_torchrun()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    ours = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    code = "from exec.launch import *\nassert under_torchrun()\nassert join_torchrun() == (0, 1)\nleave(7)"
    assert subprocess.run([sys.executable, "-c", code], env=os.environ | ours).returncode == 7


def test_the_supervisor_needs_no_torch():
    code = "import sys, exec.launch as launch\nassert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_ranks_that_cannot_be_are_refused():
    with pytest.raises(InputError, match="at least one"):
        Ranks(0)
    with pytest.raises(InputError, match="one for each of 2 ranks"):
        Ranks(2, cores=(0,))
    with pytest.raises(InputError, match=r"out of \["):
        Ranks(1, cores=(100_000,))


@pytest.mark.parametrize(
    ("error", "echo"),
    [
        (RuntimeError("[/gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:4242"), True),
        (ConnectionResetError(104, "Connection reset by peer"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)"), False),
        (ValueError("connection reset"), False),
        (NotANumber("rank 1: not finite"), False),
    ],
)
def test_an_echo_is_told_from_a_cause(error, echo):
    assert describe(error, 3)["echo"] is echo


def test_a_fault_to_inject_is_read_or_refused():
    assert injection("kill:rank=1:step=3") == ("kill", 1, 3)
    assert injection("NotANumber:rank=0:step=0") == ("NotANumber", 0, 0)
    assert injection("") == ("", -1, -1)
    for bad in ("kill", "kill:rank=1", "os.system:rank=1:step=3", "tickle:rank=1:step=3"):
        with pytest.raises(ValueError, match="must be KIND"):
            injection(bad)
