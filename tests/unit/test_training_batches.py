"""Which tokens a step reads: every window once an epoch, from arrays and from shards, by (seed, step) alone."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2.errors import BadData
from gpt2.shards import open_shards
from gpt2.training import accumulate_gradients, batches
from gpt2.training.batches import Batches, Windows, scattered
from gpt2.training.data import to_ids
from tests.helpers import byte_tokenizer, tiny_model
from tests.unit.test_training_data import LINES, corpus


@settings(max_examples=60, deadline=None)
@given(
    length=st.integers(2, 300),
    context=st.integers(1, 40),
    batch_size=st.integers(1, 7),
    seed=st.integers(0, 5),
)
def test_an_epoch_reads_every_window_once_and_targets_are_next_tokens(length, context, batch_size, seed):
    ids = np.arange(length, dtype=np.int32)
    windows = Windows(ids, context, batch_size, seed)
    starts = []
    for step in range(-(-windows.windows // batch_size)):
        inputs, targets = windows.at(step)
        assert inputs.shape == targets.shape == (batch_size, min(context, length - 1))
        assert torch.equal(targets, inputs + 1)
        starts += inputs[:, 0].tolist()
    epoch = sorted(starts[: windows.windows])
    assert len(set(epoch)) == windows.windows
    assert all(b - a == windows.window for a, b in itertools.pairwise(epoch))


def test_a_step_is_a_pure_function_of_seed_and_step():
    ids = np.arange(1000, dtype=np.int32)
    forwards = [Windows(ids, 10, 4, 7).at(step)[0] for step in range(60)]
    backwards = [Windows(ids, 10, 4, 7).at(step)[0] for step in reversed(range(60))]
    assert all(torch.equal(a, b) for a, b in zip(forwards, reversed(backwards), strict=True))
    assert not torch.equal(forwards[0], Windows(ids, 10, 4, 8).at(0)[0])
    first_epoch, second_epoch = torch.cat(forwards[:24]), torch.cat(forwards[25:49])
    assert not torch.equal(first_epoch, second_epoch)


def test_one_token_is_too_few():
    with pytest.raises(BadData, match="at least 2"):
        Windows(np.zeros(1, dtype=np.int32), 8, 1, 0)


class TestOfShards:
    def test_equal_to_those_of_the_array(self, tmp_path):
        tokenizer = byte_tokenizer()
        shards = open_shards(corpus(tmp_path, tokenizer, LINES))
        ids = to_ids(LINES, tokenizer)
        assert len(shards.paths) > 20
        for context in (1, 10, 64, 5000):
            ours, theirs = Windows(shards, context, 3, seed=2), Windows(ids, context, 3, seed=2)
            assert (ours.window, ours.windows) == (theirs.window, theirs.windows)
            for step in (0, 1, 7, 100):
                assert all(torch.equal(a, b) for a, b in zip(ours.at(step), theirs.at(step), strict=True))

    def test_the_order_of_an_array_is_what_it_was_in_the_first_release(self):
        # Figures from the first release: a run that was begun with it goes on with the same data.
        windows = Windows(np.arange(1000, dtype=np.int32), 10, 4, 7)
        assert windows.at(3)[0][:, 0].tolist() == [19, 29, 949, 919]
        assert windows.at(30)[0][:, 0].tolist() == [938, 618, 928, 38]

    def test_a_step_opens_only_what_it_reads(self, tmp_path):
        shards = open_shards(corpus(tmp_path, byte_tokenizer(), LINES))
        read = []

        class Watched:
            def __len__(self):
                return len(shards)

            def read(self, start, count):
                read.append((start, count))
                return shards.read(start, count)

        windows = Windows(Watched(), 8, 6, seed=0)
        inputs, targets = windows.rows(5, range(2, 4))
        assert len(read) == 2
        assert {count for _, count in read} == {9}
        whole = windows.at(5)
        assert torch.equal(inputs, whole[0][2:4])
        assert torch.equal(targets, whole[1][2:4])

    def test_the_rows_of_all_ranks_are_the_batch(self):
        windows = Windows(np.arange(500, dtype=np.int32), 8, 6, seed=3)
        parts = [windows.rows(4, range(start, start + 2))[0] for start in (0, 2, 4)]
        assert torch.equal(torch.cat(parts), windows.at(4)[0])
        assert windows.rows(4, range(0))[0].shape == (0, 8)
        with pytest.raises(IndexError):
            windows.rows(4, range(5, 7))

    def test_an_array_that_cannot_be_written_to_is_read_without_a_warning(self, recwarn):
        ids = np.arange(100, dtype=np.int32)
        ids.flags.writeable = False
        Windows(ids, 8, 2, 0).at(0)
        assert not recwarn.list


class TestManyWindows:
    @settings(max_examples=50, deadline=None)
    @given(size=st.integers(1, 3000), seed=st.integers(0, 9))
    def test_scattered_is_a_permutation(self, size, seed):
        keys = np.random.default_rng(seed).integers(2**64, size=6, dtype=np.uint64).tolist()
        assert sorted(scattered(place, size, keys) for place in range(size)) == list(range(size))

    def test_scattered_leaves_no_order_behind(self):
        size, keys = 10**9, np.random.default_rng(0).integers(2**64, size=6, dtype=np.uint64).tolist()
        places = np.array([scattered(place, size, keys) for place in range(4000)])
        assert abs(np.corrcoef(np.arange(4000), places)[0, 1]) < 0.08
        assert abs(np.corrcoef(places[:-1], places[1:])[0, 1]) < 0.08
        counts = np.histogram(places, bins=20, range=(0, size))[0]
        assert counts.min() > 120
        assert counts.max() < 280

    def test_an_epoch_of_many_windows_reads_each_once(self, monkeypatch):
        monkeypatch.setattr(batches, "_LISTED", 10)
        windows = Windows(np.arange(1000, dtype=np.int32), 10, 7, seed=11)
        batches._epoch.cache_clear()
        try:
            steps = range(-(-windows.windows // 7))
            starts = torch.cat([windows.at(step)[0][:, 0] for step in steps])[: windows.windows].tolist()
        finally:
            batches._epoch.cache_clear()
        assert len(set(starts)) == windows.windows
        assert starts != sorted(starts)

    def test_billions_of_tokens_cost_neither_time_nor_memory(self):
        class Endless:
            def __len__(self):
                return 10**12

            def read(self, start, count):
                return np.arange(start % 1000, start % 1000 + count, dtype=np.int32)

        windows = Windows(Endless(), 1024, 512, seed=1)
        import tracemalloc

        tracemalloc.start()
        inputs, _ = windows.at(10**6)
        assert tracemalloc.get_traced_memory()[1] < 50_000_000
        tracemalloc.stop()
        assert inputs.shape == (512, 1024)


def test_rows_from_elsewhere_with_masked_targets_are_batches_too():
    """What a run needs of them: rows of a step, the same whoever asks, and targets that are not learnt."""

    class Completions:
        window = 6

        def rows(self, step: int, rows: range) -> tuple[torch.Tensor, torch.Tensor]:
            ids = torch.stack([torch.arange(step + row, step + row + 7) for row in rows])
            targets = ids[:, 1:].clone()
            targets[:, :4] = -100
            return ids[:, :-1], targets

    read: Batches = Completions()
    network = tiny_model().network.requires_grad_(True)
    loss = accumulate_gradients(network.loss, *read.rows(3, range(4)), micro_batch_size=2)
    inputs, targets = read.rows(3, range(4))
    logits = network(inputs)[:, 4:]
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets[:, 4:].flatten())
    torch.testing.assert_close(loss, expected.detach())
