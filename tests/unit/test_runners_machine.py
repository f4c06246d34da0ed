"""The machine's limits: plausible, and bounded by what is there. No speed is asserted."""

import math
import resource
import subprocess
import sys

import torch

from gpt2.runners import machine


def test_what_this_machine_is():
    found = machine.describe()
    assert found["processor"]
    assert found["cores"] >= 1
    assert found["torch"] == torch.__version__
    assert 2**28 < found["memory"] < 2**50


def test_rates_are_measured_and_threads_are_given_back():
    before = torch.get_num_threads()
    assert 1e7 < machine.read_rate(2**22, threads=1) < 1e13
    assert 1e7 < machine.matrix_rate("float32", threads=1) < 1e15
    assert torch.get_num_threads() == before


def test_a_rate_is_bytes_over_seconds(monkeypatch):
    """The clock is replaced: every measurement takes a second."""
    ticks = iter(range(1000))
    monkeypatch.setattr(machine.time, "perf_counter", lambda: float(next(ticks)))
    monkeypatch.setattr(machine, "_native_read_rate", lambda n_bytes, threads: 0.0)
    assert machine.read_rate(2**26, threads=1) == 2**26
    # Small buffers are read several times while the clock runs.
    assert machine.read_rate(2**20, threads=1) == 2**25
    assert machine.matrix_rate("float32", threads=1) == 2 * 2048**3


def test_memory_obeys_a_limit_of_the_process():
    script = (
        "import resource; from gpt2.runners import machine; before = machine.available_memory();"
        "hard = resource.getrlimit(resource.RLIMIT_DATA)[1];"
        "resource.setrlimit(resource.RLIMIT_DATA, (10**9, hard));"
        "print(before, machine.available_memory())"
    )
    assert resource.RLIMIT_DATA is not None
    out = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout
    before, limited = map(int, out.split())
    assert limited == min(before, 10**9)
    assert math.isfinite(before)
    assert before > 2**27


def test_a_system_without_proc_is_described_all_the_same(monkeypatch):
    monkeypatch.setattr(machine, "_field", lambda path, *keys: "")
    assert machine.describe()["processor"]
    assert machine.available_memory() > 0
