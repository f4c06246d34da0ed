"""The key-value cache as an object: lengths, copies and refusals. That it changes no logits is law `cache`."""

import math

import pytest
import torch

from gpt2.cache import KVCache
from gpt2.errors import BadOption, ContextOverflow
from gpt2.model import GPT2
from tests.generation_models import network


@pytest.fixture
def tiny() -> GPT2:
    return network(n_positions=12)


def read(tiny: GPT2, cache: KVCache, *ids: int) -> None:
    with torch.inference_mode():
        tiny(torch.tensor([ids]).expand(cache.rows, -1), cache)


def test_shapes_and_defaults(tiny: GPT2) -> None:
    cache = tiny.new_cache(3)
    assert cache.keys.shape == cache.values.shape == (2, 3, 2, 12, 8)
    assert (cache.rows, cache.capacity, len(cache)) == (3, 12, 0)
    assert cache.lengths.tolist() == [0, 0, 0]
    assert tiny.new_cache(1, 5).capacity == 5
    assert network().bfloat16().new_cache().keys.dtype == torch.bfloat16


@pytest.mark.parametrize("capacity", [0, -1, 13])
def test_a_capacity_without_positions_is_refused(tiny: GPT2, capacity: int) -> None:
    with pytest.raises(BadOption, match=f"capacity is {capacity}.*1 to 12"):
        tiny.new_cache(1, capacity)


def test_reading_counts(tiny: GPT2) -> None:
    cache = tiny.new_cache(2)
    read(tiny, cache, 1, 2, 3)
    read(tiny, cache, 4)
    assert cache.lengths.tolist() == [4, 4]
    assert len(cache) == 4


def test_a_full_cache_refuses_and_is_left_as_it_was(tiny: GPT2) -> None:
    cache = tiny.new_cache(1, 5)
    read(tiny, cache, 1, 2, 3, 4)
    before = cache.keys.clone()
    with pytest.raises(ContextOverflow, match="4 tokens read and 2 more do not fit in a cache of 5"):
        read(tiny, cache, 5, 6)
    assert len(cache) == 4
    assert torch.equal(cache.keys, before)
    read(tiny, cache, 5)
    assert len(cache) == 5


def test_the_longest_row_decides_whether_there_is_room(tiny: GPT2) -> None:
    cache = tiny.new_cache(2)
    read(tiny, cache.row(1), *range(12))
    with pytest.raises(ContextOverflow):
        read(tiny, cache, 1)


def test_an_id_outside_the_vocabulary_leaves_the_cache_as_it_was(tiny: GPT2) -> None:
    cache = tiny.new_cache()
    with pytest.raises(ValueError, match="257"):
        read(tiny, cache, 1, 257)
    assert len(cache) == 0
    assert not cache.keys.any()


def test_a_row_shares_its_memory(tiny: GPT2) -> None:
    cache = tiny.new_cache(3)
    read(tiny, cache.row(1), 1, 2)
    assert cache.lengths.tolist() == [0, 2, 0]
    assert cache.keys[:, 1, :, :2].any()
    assert not cache.keys[:, [0, 2]].any()
    cache.row(1).clear()
    assert cache.lengths.tolist() == [0, 0, 0]


def test_a_fork_goes_its_own_way(tiny: GPT2) -> None:
    cache = tiny.new_cache()
    read(tiny, cache, 1, 2)
    fork = cache.fork()
    read(tiny, fork, 3)
    read(tiny, cache, 4, 5)
    assert (len(fork), len(cache)) == (3, 4)
    assert torch.equal(fork.keys[..., :2, :], cache.keys[..., :2, :])
    assert not torch.equal(fork.keys[..., 2, :], cache.keys[..., 2, :])


def test_select_copies_rows_in_order(tiny: GPT2) -> None:
    cache = tiny.new_cache(3)
    for row in range(3):
        read(tiny, cache.row(row), *range(row + 1))
    chosen = cache.select([2, 0, 2])
    assert chosen.lengths.tolist() == [3, 1, 3]
    assert torch.equal(chosen.keys[:, 0], cache.keys[:, 2])
    assert torch.equal(chosen.values[:, 1], cache.values[:, 0])
    read(tiny, chosen, 9)
    assert cache.lengths.tolist() == [1, 2, 3]
    assert not cache.keys[:, 0, :, 1].any()
    assert len(cache.select([])) == 0


def test_rewinding(tiny: GPT2) -> None:
    cache = tiny.new_cache(2)
    read(tiny, cache, 1, 2, 3)
    read(tiny, cache.row(1), 4)
    cache.rewind(2)
    assert cache.lengths.tolist() == [1, 2]
    cache.rewind(0)
    for n in (2, -1):
        with pytest.raises(BadOption, match=rf"rewind\({n}\)"):
            cache.rewind(n)
    assert cache.lengths.tolist() == [1, 2]


def test_what_was_read_before_a_clear_does_not_matter(tiny: GPT2) -> None:
    cache, ids = tiny.new_cache(), torch.tensor([[5, 6, 7]])
    with torch.inference_mode():
        fresh = tiny(ids, tiny.new_cache())
        tiny(torch.arange(12)[None], cache)
        cache.clear()
        assert torch.equal(tiny(ids, cache), fresh)


def test_unread_places_hold_no_nan(tiny: GPT2) -> None:
    """Attention gives them a weight of 0, and 0 times NaN would be NaN."""
    cache = tiny.new_cache(2)
    read(tiny, cache.row(0), 1, 2, 3, 4)
    read(tiny, cache.row(1), 1)
    with torch.inference_mode():
        logits = tiny(torch.tensor([[1], [2]]), cache)
    assert logits.isfinite().all()
    assert not math.isnan(float(cache.keys.sum()))
