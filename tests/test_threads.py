"""Threads that do not collapse beside other work."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time

import pytest
import torch

from melreformer_hf import _threads


@pytest.fixture
def four_threads(monkeypatch):
    """Spinning threads on a machine of four cores, whose load is set by the test."""
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    monkeypatch.setattr(_threads, "available_cores", lambda: 4)
    usual = torch.get_num_threads()
    torch.set_num_threads(4)
    yield monkeypatch
    torch.set_num_threads(usual)


@pytest.mark.parametrize(("load", "expected"), [(0.0, 4), (1.2, 3), (3.9, 1), (12.0, 1)])
def test_spinning_threads_leave_busy_cores_alone(four_threads, load, expected):
    four_threads.setattr(os, "getloadavg", lambda: (load, 0.0, 0.0))
    assert _threads.calm_number(torch.device("cpu")) == expected
    assert _threads.calm_number(torch.device("cuda")) == 4
    four_threads.setenv("OMP_WAIT_POLICY", "passive")
    assert _threads.calm_number(torch.device("cpu")) == 4  # they sleep: no need


def test_streams_use_calm_threads_and_give_the_number_back(four_threads):
    from pipeline_utils_for_tests import seeded, tiny_pipeline

    four_threads.setattr(os, "getloadavg", lambda: (3.0, 0.0, 0.0))
    pipe, inside = tiny_pipeline(), []
    pipe.vocoder.register_forward_pre_hook(lambda *_: inside.append(torch.get_num_threads()))
    outside = [torch.get_num_threads() for _ in pipe.stream(1.0, num_inference_steps=1, generator=seeded())]
    assert set(inside) == {1} and set(outside) == {4} and torch.get_num_threads() == 4


@pytest.mark.parametrize(("text", "expected"), [("max 100000", 8), ("150000 100000", 1), ("400000 100000", 4)])
def test_the_quota_of_a_container_counts(tmp_path, monkeypatch, text, expected):
    (tmp_path / "cpu.max").write_text(text)
    monkeypatch.setattr(_threads, "_QUOTA", tmp_path / "cpu.max")
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)), raising=False)
    assert _threads.available_cores() == expected


def test_commands_choose_the_policy_before_torch_reads_it():
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    environment["OMP_NUM_THREADS"] = "2"
    words = [sys.executable, "-m", "melreformer_hf", "doctor"]
    text = subprocess.run(words, capture_output=True, text=True, check=True, env=environment).stdout
    assert "sleep while they wait" in text or "1 thread of 1" in text
    environment["OMP_WAIT_POLICY"] = "ACTIVE"  # the user's own choice stays
    code = (
        "from melreformer_hf._threads import sleep_while_waiting, threads_sleep\n"
        "sleep_while_waiting(); print(threads_sleep())"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert result.stdout.strip() == "False"


def test_items_are_made_ahead_in_order_and_no_further_than_asked():
    made = []

    def count(stopped):
        assert torch.get_num_threads() == 1 and threading.current_thread() is not threading.main_thread()
        for number in range(20):
            made.append(number)
            yield number

    usual, taken = torch.get_num_threads(), []
    for number in _threads.made_ahead(count, most=2):
        time.sleep(0.005)
        assert len(made) <= number + 3
        taken.append(number)
    assert taken == made == list(range(20)) and torch.get_num_threads() == usual
    assert list(_threads.made_ahead(lambda stopped: iter(()))) == []


def workers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "melreformer-ahead"]


def test_errors_of_the_other_thread_arrive_with_their_traceback():
    def fail_after_two(stopped):
        yield from (1, 2)
        raise KeyError("third")

    items, taken = _threads.made_ahead(fail_after_two), []
    with pytest.raises(KeyError, match="third") as error:
        taken.extend(items)
    assert "fail_after_two" in [entry.name for entry in error.traceback] and not workers()
    items = _threads.made_ahead(fail_after_two)
    assert [next(items), next(items)] == [1, 2]
    with pytest.raises(KeyError):
        next(items)
    with pytest.raises(ZeroDivisionError):
        next(_threads.made_ahead(lambda stopped: iter([1 // 0])))


def test_whoever_stops_listening_stops_the_other_thread():
    closed = []

    def endless(stopped):
        try:
            while not stopped():
                yield 1
                for _ in range(1000):
                    if stopped():
                        return
                    time.sleep(0.01)
        finally:
            closed.append(threading.current_thread())

    items = _threads.made_ahead(endless)
    assert next(items) == 1
    (worker,) = workers()
    started = time.perf_counter()
    items.close()
    assert closed == [worker] and not workers() and time.perf_counter() - started < 5
    _threads.made_ahead(endless).close()  # never begun
    assert len(closed) == 1


def test_a_program_ends_though_a_stream_was_left_open():
    program = (
        "import itertools, torch; from melreformer_hf._threads import made_ahead\n"
        "items = made_ahead(lambda stopped: (torch.ones(1) for _ in itertools.count())); next(items); print('end')"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert (run.returncode, run.stdout, run.stderr) == (0, "end\n", "")
