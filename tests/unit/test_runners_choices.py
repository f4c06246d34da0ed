"""Remembered measurements: told back for the same question only, and never in the way."""

import json
import threading

import pytest
import torch

from gpt2.config import GPT2Config
from gpt2.runners import choices

CONFIG = GPT2Config(n_layer=1, n_embd=64, n_head=1, vocab_size=100, n_positions=16)
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("GPT2_CACHE", str(tmp_path / "cache"))


def remember(rates, config=CONFIG, dtype="float32", threads=2):
    choices.remember(config, dtype, CPU, threads, rates)


def remembered(config=CONFIG, dtype="float32", threads=2):
    return choices.remembered(config, dtype, CPU, threads)


def test_told_back_beside_what_was_there():
    assert remembered() == {}
    remember({"plain": 10.0})
    remember({"compiled": 20.0})
    remember({"plain": 11.0})
    assert remembered() == {"plain": 11.0, "compiled": 20.0}


def test_verdicts_stay_until_others_come_and_are_no_rates():
    def wrong(dtype="float32"):
        return choices.known_wrong(CONFIG, dtype, CPU)

    assert wrong() == set()
    choices.remember_verdicts(CONFIG, "float32", CPU, {"native": False, "compiled": False, "plain": True})
    remember({"plain": 10.0})
    assert (wrong(), wrong("bfloat16"), remembered()) == ({"native", "compiled"}, set(), {"plain": 10.0})
    choices.remember_verdicts(CONFIG, "float32", CPU, {"native": True})
    assert wrong() == {"compiled"}


def test_another_question_has_another_answer(monkeypatch):
    remember({"plain": 10.0})
    assert remembered(dtype="bfloat16") == {}
    assert remembered(threads=1) == {}
    assert remembered(config=GPT2Config(n_layer=2, n_embd=64, n_head=1, vocab_size=100, n_positions=16)) == {}
    assert remembered() == {"plain": 10.0}
    for name, value in (("torch.__version__", "99.0"), ("gpt2.runners.machine.processor", lambda: "another")):
        with monkeypatch.context() as patch:
            patch.setattr(name, value)
            assert remembered() == {}


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", "\x00\xff", '{"a": 1}', "[" * 100_000, '{"key": {"plain": "fast", "compiled": NaN}}'],
)
def test_a_damaged_file_is_as_if_it_were_not_there(text):
    remember({"plain": 10.0})
    key = next(iter(json.loads(choices.choices_file().read_text())))
    choices.choices_file().write_text(text.replace("key", key))
    assert remembered() == {}
    remember({"plain": 12.0})
    assert remembered() == {"plain": 12.0}


@pytest.mark.parametrize("rate", [0.0, -1.0, float("nan"), float("inf"), True, "10"])
def test_what_is_no_rate_is_not_remembered(rate):
    remember({"plain": rate, "compiled": 3.0})
    assert remembered() == {"compiled": 3.0}


def test_writers_at_once_lose_nothing():
    def write(threads):
        remember({"plain": float(threads)}, threads=threads)

    writers = [threading.Thread(target=write, args=(number,)) for number in range(1, 17)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [remembered(threads=number) for number in range(1, 17)] == [{"plain": float(n)} for n in range(1, 17)]


def test_a_cache_that_cannot_be_written_is_no_error(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("GPT2_CACHE", str(tmp_path / "file" / "below"))
    remember({"plain": 10.0})
    assert remembered() == {}


def test_the_oldest_make_room(monkeypatch):
    monkeypatch.setattr(choices, "_MOST_ENTRIES", 3)
    for threads in range(1, 6):
        remember({"plain": 1.0}, threads=threads)
    assert [bool(remembered(threads=threads)) for threads in range(1, 6)] == [False, False, True, True, True]
