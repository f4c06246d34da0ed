"""The native step against model.py, and against itself: batch mates, pieces, threads and forks change no bit."""

import ctypes
import multiprocessing
import os
from dataclasses import replace

import pytest
import torch

from gpt2.checkpoint import LanguageModel
from gpt2.config import GPT2Config
from gpt2.errors import BadPrompt, ContextOverflow, Unavailable
from gpt2.model import GPT2
from gpt2.runners import Feed, build, native
from gpt2.runners.calibrate import rounded
from gpt2.runners.native import NativeRunner
from gpt2.tokenizer import Tokenizer

WIDTHS = ("float32", "bfloat16", "int8", "int4")
CONFIG = GPT2Config(vocab_size=515, n_positions=100, n_embd=128, n_layer=2, n_head=2)

pytestmark = pytest.mark.skipif(
    native.reason(CONFIG, "float32") is not None, reason=f"left out: {native.reason(CONFIG, 'float32')}"
)


def network(config: GPT2Config = CONFIG, seed: int = 1) -> GPT2:
    made = GPT2(config).initialise(seed)
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        # Biases and norms that differ from place to place, so that none can be forgotten.
        for parameter in made.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=random))
    return made.eval().requires_grad_(False)


def language_model(made: GPT2, dtype: str = "float32") -> LanguageModel:
    return LanguageModel(made, Tokenizer.gpt2(), dtype=dtype)


def runner(dtype: str = "float32", slots: int = 4, threads: int | None = 2, made: GPT2 | None = None) -> NativeRunner:
    return NativeRunner(language_model(made or network(), dtype), slots, threads)


def some_ids(count: int, seed: int = 0, vocabulary: int = CONFIG.vocab_size) -> list[int]:
    return torch.randint(vocabulary, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def oracle(made: GPT2, dtype: str) -> GPT2:
    """A float32 network whose weights are what the width keeps of them."""
    if dtype == "float32":
        return made
    if dtype != "bfloat16":
        return rounded(made, dtype)
    narrow = {name for name, weight in made.state_dict().items() if weight.dim() == 2 and name != "wpe.weight"}
    copy = GPT2(made.config)
    copy.load_state_dict(
        {name: weight.bfloat16().float() if name in narrow else weight for name, weight in made.state_dict().items()}
    )
    return copy.eval()


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 0.05), ("int8", 0.1), ("int4", 0.1)])
def test_logits_are_the_models(dtype, tolerance):
    made, ids = network(), some_ids(100)
    with torch.inference_mode():
        expected = oracle(made, dtype)(torch.tensor([ids]))[0]
    # Beside the weights, the narrow widths keep keys and values in bfloat16, and bfloat16 its activations too.
    assert (runner(dtype, made=made).read([Feed(0, ids, 100)]) - expected).abs().max() < tolerance


@pytest.mark.parametrize("dtype", WIDTHS)
def test_processors_without_bfloat16_instructions_compute_the_same(dtype):
    library = native.library()
    assert library is not None
    made, ids = network(), some_ids(100)
    expected = runner(dtype, made=made).read([Feed(0, ids, 100)])
    switch = ctypes.c_int.in_dll(library, "gpt2_without_bf16")
    switch.value = 1
    try:
        tested = runner(dtype, made=made)
        one = tested.read([Feed(0, ids, 100)])
        pieces = [tested.read([Feed(1, [id]), Feed(2, [id])])[:1] for id in ids]
    finally:
        switch.value = 0
    assert torch.equal(torch.cat(pieces), one)
    assert (one - expected).abs().max() < (1e-6 if dtype == "float32" else 0.03)


@pytest.mark.parametrize("name", ["gelu_new", "gelu", "relu", "silu"])
def test_every_activation(name):
    made = network(GPT2Config(vocab_size=515, n_positions=64, n_embd=64, n_layer=1, n_head=1, activation_function=name))
    with torch.no_grad():
        made.h[0].mlp.c_fc.bias.copy_(torch.linspace(-12, 12, 256))  # far into both tails
    ids = some_ids(30)
    with torch.inference_mode():
        expected = made(torch.tensor([ids]))[0]
    assert (runner(made=made).read([Feed(0, ids, 30)]) - expected).abs().max() < 1e-5


@pytest.mark.parametrize(
    "shape",
    [
        {"n_embd": 64, "n_head": 4, "n_inner": 192},
        {"n_embd": 192, "n_head": 2, "n_layer": 1},
        {"n_embd": 320, "n_head": 5, "n_inner": 64, "n_positions": 33},
        {"n_embd": 512, "n_head": 2, "n_layer": 1, "vocab_size": 64},
        {"scale_attn_by_inverse_layer_idx": True, "n_layer": 3},
        {"scale_attn_weights": False, "layer_norm_epsilon": 1e-2},
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "int4"])
def test_odd_shapes(shape, dtype):
    config = replace(CONFIG, **shape)
    made, ids = network(config), some_ids(33, vocabulary=config.vocab_size)
    with torch.inference_mode():
        expected = oracle(made, dtype)(torch.tensor([ids]))[0]
    assert (runner(dtype, made=made).read([Feed(0, ids, 33)]) - expected).abs().max() < (
        1e-5 if dtype == "float32" else 0.15
    )


@pytest.mark.parametrize("dtype", WIDTHS)
def test_pieces_and_batch_mates_change_no_bit(dtype):
    made, ids = network(), some_ids(90)
    one = runner(dtype, made=made).read([Feed(0, ids, 90)])
    many, rows = runner(dtype, slots=9, made=made, threads=1), []
    for size, begin in ((1, 0), (2, 1), (6, 3), (11, 9), (40, 20)):
        rows.append(many.read([Feed(3, ids[begin : begin + size], size)]))
    for place in range(60, 90):
        mates = [Feed(slot, some_ids(1, seed=place + slot), 1) for slot in (0, 1, 2, 4, 5, 6, 7)]
        rows.append(many.read([*mates[: place % 7], Feed(3, [ids[place]], 1)])[-1:])
    assert torch.equal(torch.cat(rows), one)


@pytest.mark.parametrize("dtype", WIDTHS)
def test_rewound_and_copied_slots_change_no_bit(dtype):
    made, ids, other = network(), some_ids(60), some_ids(40, seed=5)
    expected = runner(dtype, made=made).read([Feed(0, ids, 60)])
    tested = runner(dtype, made=made)
    tested.read([Feed(0, [*ids[:37], *other])])
    tested.rewind(0, 37)
    tested.read([Feed(2, some_ids(100, seed=6))])
    tested.copy(0, 2, 21)
    assert torch.equal(tested.read([Feed(0, ids[37:], 23)]), expected[37:])
    assert torch.equal(tested.read([Feed(2, ids[21:], 39)]), expected[21:])


def test_more_threads_than_processors_and_more_tokens_than_a_call_takes():
    config = GPT2Config(vocab_size=515, n_positions=700, n_embd=64, n_layer=1, n_head=1)
    made, ids = network(config), some_ids(700)
    expected = runner(made=made, threads=1).read([Feed(0, ids, 700)])
    assert torch.equal(runner(made=made, threads=7).read([Feed(0, ids, 700)]), expected)
    mixed = runner(made=made, threads=3).read([Feed(1, ids[:600], 0), Feed(0, ids[:650], 2), Feed(3, ids[:1], 1)])
    assert torch.equal(mixed, torch.stack([expected[648], expected[649], expected[0]]))


def test_what_does_not_fit_is_refused_before_anything_is_read():
    tested = runner()
    tested.read([Feed(0, some_ids(99))])
    with pytest.raises(ContextOverflow, match="Slot 0 holds 99 tokens, and 2 more"):
        tested.read([Feed(1, [1]), Feed(0, [1, 2])])
    for bad in (-1, 515, 2**40):
        with pytest.raises(BadPrompt, match=f"Token id {bad}"):
            tested.read([Feed(1, [1]), Feed(2, [bad])])
    assert [tested.length(slot) for slot in range(4)] == [99, 0, 0, 0]


@pytest.mark.parametrize("dtype", WIDTHS)
def test_damaged_numbers_stay_in_their_row(dtype):
    made = network()
    with torch.no_grad():
        made.wpe.weight[50] = torch.inf  # whoever gets as far as place 50 is lost
    tested, clean = runner(dtype, made=made), runner(dtype, made=made)
    ids = some_ids(60)
    expected = clean.read([Feed(1, ids[:50], 1)])
    tested.read([Feed(0, ids[:50]), Feed(1, ids[:49], 0)])
    logits = tested.read([Feed(0, ids[50:52], 2), Feed(1, ids[49:50], 1)])
    assert not logits[:2].isfinite().any()
    assert torch.equal(logits[2:], expected)
    # The slot is as good as new for the next text.
    tested.rewind(0, 0)
    assert torch.equal(tested.read([Feed(0, ids[:50], 1)]), expected)


def _in_child(queue, made, ids) -> None:
    queue.put(runner(made=made).read([Feed(0, ids, 1)]).sum().item())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="left out: this system has no fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_child_has_threads_of_its_own():
    made, ids = network(), some_ids(20)
    expected = runner(made=made).read([Feed(0, ids, 1)]).sum().item()
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_in_child, args=(queue, made, ids))
    child.start()
    assert queue.get(timeout=60) == expected
    child.join()


def test_what_it_cannot_run_it_says(monkeypatch):
    assert "multiples of 64" in str(native.reason(GPT2Config(n_embd=96, n_head=2), "float32"))
    assert "float16" in str(native.reason(CONFIG, "float16"))
    monkeypatch.setattr(native, "library", lambda: None)
    monkeypatch.setattr(build, "obstacle", lambda: "there is no C compiler")
    with pytest.raises(Unavailable, match="there is no C compiler"):
        runner()


def test_a_compiler_that_fails_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("CC", "false")
    with pytest.raises(OSError, match="false failed"):
        build.build(tmp_path)
    assert not list(tmp_path.iterdir())


def test_it_builds_where_it_is_asked_to(tmp_path):
    made = build.build(tmp_path / "native")
    assert made == tmp_path / "native" / build.library_name()
    assert made.stat().st_size > 10_000
