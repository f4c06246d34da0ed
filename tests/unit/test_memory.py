"""How much memory there is in all: the least of what the machine has and its container may have."""

import pytest
import torch

from gpt2 import memory
from gpt2.runners import machine
from gpt2.training import memory as training


@pytest.fixture
def limits(monkeypatch, tmp_path):
    """Writes what the container may have, in both versions of Linux's control groups."""
    paths = (tmp_path / "new", tmp_path / "old")
    monkeypatch.setattr(memory, "_LIMITS", tuple(map(str, paths)))

    def write(*texts):
        for path, text in zip(paths, texts, strict=True):
            path.write_text(text)

    return write


def test_the_machines_own_where_there_is_no_limit(limits):
    whole = memory.total_memory()
    assert whole > 2**27
    limits("max\n", "9223372036854771712\n")
    assert memory.total_memory(torch.device("cpu")) == whole


@pytest.mark.parametrize("texts", [("1000000\n", "max"), ("max", "1000000")])
def test_a_container_may_have_less_for_running_and_for_training(limits, texts):
    limits(*texts)
    assert memory.total_memory() == 1000000
    assert machine.describe()["memory"] == 1000000
    assert machine.available_memory() == 1000000
    with pytest.raises(training.BadOption, match=r"0\.0 GB in all"):
        training.check_memory(training.TrainingOptions(), torch.device("cpu"), 1000, 128)


def test_nobody_can_tell(monkeypatch, limits):
    limits("max", "max")
    monkeypatch.setattr(memory.os, "sysconf", lambda name: -1 if name == "SC_PHYS_PAGES" else 4096)
    assert memory.total_memory() is None
    assert machine.describe()["memory"] == 0
    assert machine.available_memory() > 0
