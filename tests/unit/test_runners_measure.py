"""Speeds are tokens over the clock's seconds, and the limit counts the bytes that are really there."""

import pytest
import torch

from gpt2.config import SIZES, GPT2Config
from gpt2.errors import BadOption
from gpt2.runners import measure, quantise
from gpt2.runners.plain import PlainRunner
from tests.helpers import tiny_model


def test_tokens_over_seconds(monkeypatch):
    """The clock is replaced: reading the prompt takes 1 second, all tokens together 2."""
    times = iter([0.0, 1.0, 3.0] * 10)
    monkeypatch.setattr(measure.time, "perf_counter", lambda: next(times))
    runner = PlainRunner(tiny_model().network, 1)
    assert measure.speed(runner, prompt=8, tokens=20) == measure.Speed(prefill=8.0, decode=10.0)
    assert runner.length(0) == 0


def test_a_text_beyond_the_window_is_refused():
    with pytest.raises(BadOption, match="window of 32"):
        measure.speed(PlainRunner(tiny_model().network, 1), prompt=16, tokens=17)


def test_ids_are_the_same_every_time_and_in_the_vocabulary():
    config = GPT2Config(n_layer=1, n_embd=32, n_head=1, vocab_size=50, n_positions=512)
    ids = measure.some_ids(config, 512)
    assert ids == measure.some_ids(config, 512)
    assert set(ids) == set(range(50))


@pytest.mark.parametrize("width", [4, 2])
def test_bytes_of_float_weights_are_all_but_the_positions(width):
    network = tiny_model().network
    total = sum(parameter.numel() for name, parameter in network.named_parameters() if name != "wpe.weight")
    assert measure.weight_bytes(network.config, {4: "float32", 2: "bfloat16"}[width]) == width * total


@pytest.mark.parametrize("dtype", ["int8", "int4"])
def test_bytes_of_quantised_weights_are_what_quantising_gives(dtype):
    config = GPT2Config(n_layer=2, n_embd=64, n_head=2, vocab_size=96, n_positions=16)
    from gpt2.model import GPT2

    total = 0
    for name, parameter in GPT2(config).initialise(0).named_parameters():
        kind = quantise.kind(name, dtype)
        if kind == "int8":
            q, scale = quantise.int8_columns(parameter.data.t() if name == "wte.weight" else parameter.data)
            total += q.numel() + scale.numel() * 4
        elif kind == "int4":
            q, scale = quantise.int4_groups(parameter.data)
            total += q.numel() // 2 + scale.numel() * 2
        elif name != "wpe.weight":
            total += parameter.numel() * 4
    assert measure.weight_bytes(config, dtype) == total


def test_an_unknown_width_is_refused():
    with pytest.raises(BadOption, match="float16"):
        measure.weight_bytes(SIZES["gpt2"].config, "float16")
    assert torch.get_num_threads() >= 1
