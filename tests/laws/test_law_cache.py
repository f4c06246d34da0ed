"""Law `cache`: with the key-value cache and without, from a shared prefix and from the start: logits equal to 1e-4,
and greedy ids equal (*)."""

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2.cache import KVCache
from gpt2.checkpoint import load, shipped
from gpt2.errors import Notice
from gpt2.generation import GenerationOptions, SamplingOptions, generate
from gpt2.model import GPT2
from gpt2.runners import Feed, Runner
from tests.generation_models import RUNNERS, SHAPE, assert_same_or_tied, model, network, peer, plain, runner
from tests.helpers import in_its_words

SHAPES = [
    {},
    {"n_layer": 1, "n_head": 1, "vocab_size": 300, "n_positions": 16},
    {"n_layer": 3, "n_head": 5, "n_embd": 35, "scale_attn_by_inverse_layer_idx": True, "reorder_and_upcast_attn": True},
]


def random_ids(made: GPT2, rows: int, tokens: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(made.config.vocab_size, (rows, tokens), generator=torch.Generator().manual_seed(seed))


def assert_close(ours: torch.Tensor, other: torch.Tensor) -> None:
    torch.testing.assert_close(ours, other, atol=1e-4, rtol=0)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@given(pieces=st.lists(st.integers(1, 7), min_size=1, max_size=8), rows=st.integers(1, 3))
@settings(max_examples=20, deadline=None)
@torch.inference_mode()
def test_read_in_any_pieces(shape: dict, pieces: list[int], rows: int) -> None:
    made = network(**shape)
    window = made.config.n_positions
    while sum(pieces) > window:
        pieces = pieces[:-1]
    ids = random_ids(made, rows, sum(pieces))
    cache = made.new_cache(rows)
    logits = torch.cat([made(part, cache) for part in ids.split(pieces, dim=1)], dim=1)
    assert_close(logits, made(ids))
    assert cache.lengths.tolist() == [sum(pieces)] * rows


@given(lengths=st.lists(st.integers(1, 20), min_size=1, max_size=5), steps=st.integers(1, 8), seed=st.integers(0, 99))
@settings(max_examples=25, deadline=None)
@torch.inference_mode()
def test_ragged_rows_in_step(lengths: list[int], steps: int, seed: int) -> None:
    """Rows of different lengths, read row by row and then fed together, a token or several at a time."""
    made = network()
    cache = made.new_cache(len(lengths), max(lengths) + steps)
    ids = random_ids(made, len(lengths), 28, seed)
    for row, length in enumerate(lengths):
        assert_close(made(ids[row : row + 1, :length], cache.row(row)), made(ids[row : row + 1, :length]))
    for size in (steps // 2, steps - steps // 2):
        if size == 0:
            continue
        starts = cache.lengths.tolist()
        fed = torch.stack([ids[row, start : start + size] for row, start in enumerate(starts)])
        logits = made(fed, cache)
        for row, start in enumerate(starts):
            assert_close(logits[row], made(ids[row : row + 1, : start + size])[0, start:])


@torch.inference_mode()
def test_after_rewinding() -> None:
    made = network()
    ids, other = random_ids(made, 2, 20, 1), random_ids(made, 2, 12, 2)
    cache = made.new_cache(2)
    made(ids, cache)
    cache.rewind(13)
    assert_close(made(other, cache), made(torch.cat([ids[:, :7], other], dim=1))[:, 7:])


@torch.inference_mode()
def test_a_shared_prefix_and_from_the_start() -> None:
    made = network()
    prefix = random_ids(made, 1, 9, 1)
    trunk = made.new_cache(1)
    made(prefix, trunk)
    branches = [trunk.fork(), trunk.fork(), trunk]
    for seed, branch in enumerate(branches):
        rest = random_ids(made, 1, 6, 10 + seed)
        assert_close(made(rest, branch), made(torch.cat([prefix, rest], dim=1))[:, 9:])
    # And as rows of one cache, which go on together.
    many, rest = trunk.select([0, 0]), random_ids(made, 2, 5, 20)
    many.rewind(6)
    assert_close(made(rest, many), made(torch.cat([prefix.expand(2, -1), rest], dim=1))[:, 9:])


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_greedy_ids_with_the_cache_and_without(shape: dict) -> None:
    made = model(
        n_positions=48, **{key: value for key, value in shape.items() if key not in ("n_positions", "vocab_size")}
    )
    options = GenerationOptions(max_tokens=40, sampling=SamplingOptions(0, logit_bias={256: -100}))
    for start in range(10):
        prompt = [start, 3 * start, 7]
        ids = generate(made, prompt, max_tokens=40, temperature=0, logit_bias={256: -100}).ids
        assert len(ids) == 40
        assert_same_or_tied(made, prompt, ids, plain(made, prompt, options, 0), options.sampling, 0)


@pytest.mark.parametrize(("name", "dtype"), RUNNERS)
@given(
    pieces=st.lists(st.integers(1, 9), min_size=1, max_size=6),
    rest=st.integers(1, 5),
    shared=st.integers(1, 20),
    mates=st.integers(0, 3),
)
@settings(max_examples=15, deadline=None)
def test_every_runner_in_pieces_rewound_and_copied(
    name: str, dtype: str, pieces: list[int], rest: int, shared: int, mates: int
) -> None:
    """Cold in one piece; in any pieces beside others; from a copied prefix; after rewinding."""
    made = model(n_positions=64, **SHAPE)
    whole = random_ids(made.network, 1, sum(pieces) + rest, 3)[0].tolist()
    shared = min(shared, sum(pieces))
    tested = runner(name, dtype, made)
    cold = tested.read([Feed(0, whole, rest)])
    for mate in range(mates):
        tested.read([Feed(3 + mate, random_ids(made.network, 1, 4 * mate + 1, mate)[0].tolist(), 0)])
    place = 0
    for size in pieces:
        tested.read([Feed(1, whole[place : place + size], 0), *beside(tested, mates)])
        place += size
    tested.copy(1, 2, shared)
    found = tested.read([Feed(2, whole[shared:], rest), Feed(1, whole[place:], rest), *beside(tested, mates)])
    tested.rewind(1, shared)
    again = tested.read([Feed(1, whole[shared:], rest)])
    for logits in (found[:rest], found[rest : 2 * rest], again):
        if tested.batch_invariant:
            assert torch.equal(logits, cold)
        else:
            assert_close(logits, cold)
    if dtype == "float32":
        with torch.inference_mode():
            assert_close(cold, made.network(torch.tensor([whole]))[0, -rest:])


def beside(tested: Runner, mates: int) -> list[Feed]:
    return [Feed(3 + mate, [mate] * (1 + mate % 2)) for mate in range(mates)]


def test_greedy_ids_past_the_window() -> None:
    made = model(n_positions=11)
    options = GenerationOptions(max_tokens=60, sampling=SamplingOptions(0))
    with pytest.warns(Notice):
        ids = generate(made, [1, 2, 3], max_tokens=60, temperature=0).ids
    assert_same_or_tied(made, [1, 2, 3], ids, plain(made, [1, 2, 3], options, 0), options.sampling, 0)


@pytest.mark.parametrize("penalty", [1.0, 1.4])
def test_greedy_ids_are_transformers(penalty: float) -> None:
    made = model(n_positions=64)
    theirs = peer(made.network)
    different = 0
    for start in range(6):
        prompt = [start, 100 + start, 7, start]
        ids = generate(made, prompt, max_tokens=50, temperature=0, repetition_penalty=penalty).ids
        config = transformers.GenerationConfig(
            max_new_tokens=50, do_sample=False, eos_token_id=256, pad_token_id=256, repetition_penalty=penalty
        )
        tensor = torch.tensor([prompt])
        other = theirs.generate(tensor, attention_mask=torch.ones_like(tensor), generation_config=config)[
            0, 4:
        ].tolist()
        other = other[: other.index(256)] if 256 in other else other
        assert_same_or_tied(made, prompt, ids, other, SamplingOptions(0, repetition_penalty=penalty), 0)
        different += len(set(ids))
    assert different > 30, "six rows of one token each would prove little"


@pytest.mark.parametrize("name", shipped() or ["none"])
@torch.inference_mode()
def test_the_shipped_models(name: str) -> None:
    if name == "none":
        pytest.skip("left out: no model is shipped yet")
    made = load(name)
    [text] = in_its_words(made, "The old man looked at the sea, and said nothing for a long time.")
    ids = torch.tensor([made.tokenizer.encode(text)])
    cache = made.network.new_cache(1, 64)
    logits = torch.cat([made.network(part, cache) for part in ids.split(5, dim=1)], dim=1)
    assert_close(logits, made.network(ids))
    prompt, options = ids[0].tolist(), GenerationOptions(max_tokens=30, sampling=SamplingOptions(0))
    found = generate(made, prompt, max_tokens=30, temperature=0).ids
    assert_same_or_tied(made, prompt, found, plain(made, prompt, options, 0), options.sampling, 0)


def test_the_capacity_may_be_smaller_than_the_window() -> None:
    made = network()
    cache = KVCache(made.config, 1, 5)
    ids = random_ids(made, 1, 5)
    with torch.inference_mode():
        assert_close(made(ids, cache), made(ids))
