"""int8 and int4 by PyTorch's kernels: odd shapes, missing kernels, and what the runner says of itself."""

import pytest
import torch

from gpt2.checkpoint import LanguageModel
from gpt2.config import GPT2Config
from gpt2.errors import BadOption, BadPrompt, ContextOverflow
from gpt2.model import GPT2
from gpt2.runners import aten
from gpt2.runners.aten import AtenRunner
from gpt2.runners.calibrate import rounded
from gpt2.runners.runner import Feed
from tests.layouts import random_network, small_tokenizer

# Widths that the kernels like, and widths that they do not: no whole groups, odd numbers of outputs.
SHAPES = [
    GPT2Config(vocab_size=300, n_positions=32, n_embd=64, n_layer=2, n_head=2),
    GPT2Config(vocab_size=301, n_positions=32, n_embd=48, n_layer=1, n_head=3, n_inner=50),
    GPT2Config(vocab_size=300, n_positions=16, n_embd=20, n_layer=2, n_head=4, activation_function="relu"),
]
IDS = [5, 280, 7, 9, 11, 13, 1, 2, 3, 4]


def model(config: GPT2Config, dtype: str) -> LanguageModel:
    return LanguageModel(random_network(config), small_tokenizer(), dtype=dtype)


def oracle(config: GPT2Config, dtype: str) -> GPT2:
    return rounded(random_network(config), dtype)


@pytest.mark.parametrize("dtype", ["int8", "int4"])
@pytest.mark.parametrize("config", SHAPES, ids=lambda config: f"width {config.n_embd}")
@pytest.mark.parametrize("exact", [True, None])
def test_every_shape_runs(config: GPT2Config, dtype: str, exact: bool | None) -> None:
    runner = AtenRunner(model(config, dtype), 2, exact=exact)
    truth = oracle(config, dtype)(torch.tensor([IDS]))[0]
    got = torch.cat([runner.read([Feed(1, IDS[:4], 4)]), *[runner.read([Feed(1, [id])]) for id in IDS[4:]]])
    assert got.dtype == torch.float32
    # bfloat16 has 8 bits: each projection may be off by 0.4 % of its largest output.
    allowed = 1e-4 if exact else 0.02 * float(truth.abs().max())
    assert float((got - truth).abs().max()) <= allowed


@pytest.mark.parametrize("dtype", ["int8", "int4"])
def test_where_no_kernel_is_weights_are_widened(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(*_: object) -> None:
        raise NotImplementedError("no such kernel for this processor")

    monkeypatch.setattr(aten, "_by_kernel", gone)
    aten._kernel_works.cache_clear()
    try:
        runner = AtenRunner(model(SHAPES[0], dtype), 1)
        truth = oracle(SHAPES[0], dtype)(torch.tensor([IDS]))[0]
        assert float((runner.read([Feed(0, IDS, len(IDS))]) - truth).abs().max()) <= 1e-4
    finally:
        aten._kernel_works.cache_clear()


@pytest.mark.parametrize("dtype", ["int8", "int4"])
def test_a_kernel_that_is_wrong_is_not_used(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    true = aten._by_kernel
    monkeypatch.setattr(aten, "_by_kernel", lambda *arguments: 1.1 * true(*arguments))
    aten._kernel_works.cache_clear()
    try:
        assert not aten._kernel_works(dtype)
    finally:
        aten._kernel_works.cache_clear()


def test_what_it_says_of_itself_and_refuses() -> None:
    runner = AtenRunner(model(SHAPES[0], "int4"), 3)
    assert (runner.name, runner.dtype, runner.slots, runner.config) == ("aten", "int4", 3, SHAPES[0])
    with pytest.raises(BadPrompt):
        runner.read([Feed(0, [300])])
    with pytest.raises(ContextOverflow):
        runner.read([Feed(0, [1] * 33)])
    with pytest.raises(BadOption, match="float32"):
        AtenRunner(LanguageModel(random_network(), small_tokenizer()), 1)


def test_slots_are_of_their_own() -> None:
    runner = AtenRunner(model(SHAPES[0], "int8"), 3, exact=True)
    truth = oracle(SHAPES[0], "int8")
    runner.read([Feed(0, IDS[:5]), Feed(2, IDS[3:6])])
    got = runner.read([Feed(2, [8]), Feed(0, [9])])
    for row, ids in zip(got, ([*IDS[3:6], 8], [*IDS[:5], 9]), strict=True):
        assert torch.allclose(row, truth(torch.tensor([ids]))[0, -1], atol=1e-4)
    assert [runner.length(slot) for slot in range(3)] == [6, 0, 4]
    runner.copy(0, 1, 3)
    got = runner.read([Feed(1, IDS[3:5])])
    assert torch.allclose(got[0], truth(torch.tensor([IDS[:5]]))[0, -1], atol=1e-4)
