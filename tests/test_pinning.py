"""Threads that carry messages run on any core; the rank's own thread stays where it was, as it was."""

import os
import threading

import pytest

from exec import pinning

pytestmark = pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="cores are chosen on Linux only")


def standing():
    return os.sched_getaffinity(0), os.getpriority(os.PRIO_PROCESS, 0), os.sched_getscheduler(0)


def of_new_thread():
    found = []
    thread = threading.Thread(target=lambda: found.append(standing()))
    thread.start()
    thread.join()
    return found[0]


def test_new_threads_are_free_and_the_own_one_is_not():
    cores, nice, policy = standing()
    own = {min(cores)}

    def rank():
        pinning.pin(min(own))
        assert of_new_thread() == (own, nice, policy)
        with pinning.unpinned():
            assert of_new_thread() == (pinning._CORES, nice, policy)
        assert standing() == (own, nice, policy)

    failed = []

    def guarded():
        try:
            rank()
        except AssertionError as error:
            failed.append(error)

    thread = threading.Thread(target=guarded)
    thread.start()
    thread.join()
    assert not failed
    assert standing() == (cores, nice, policy)
