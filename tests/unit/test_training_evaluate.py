"""Held-out loss: every token is scored exactly once, by the protocol that is written down."""

import math

import numpy as np
import pytest
import torch

from gpt2.errors import BadData, BadOption
from gpt2.shards import ShardWriter, open_shards
from gpt2.training.data import Part, to_ids
from gpt2.training.evaluate import _windows, count_bytes, evaluate
from gpt2.training.ranks import Ranks
from tests.helpers import tiny_model

DOCUMENTS = ["To be, or not to be.", "that is the question" * 5, "x"]


@pytest.mark.parametrize("stride", [1, 5, 16, 32])
@pytest.mark.parametrize("length", [2, 3, 17, 32, 33, 34, 65, 200])
def test_every_target_is_scored_once(stride, length):
    ids = np.arange(length, dtype=np.int32)
    scored = []
    for inputs, targets in _windows(ids, 32, stride, 3, Ranks()):
        assert inputs.shape[1] <= 32
        real = targets != -100
        assert torch.equal(targets[real], inputs[real] + 1)
        scored += targets[real].tolist()
    assert sorted(scored) == list(range(1, length))


@pytest.mark.parametrize("stride", [None, 8])
def test_the_loss_is_what_a_plain_loop_gives(stride):
    model = tiny_model(window=16)
    ids = to_ids(DOCUMENTS, model.tokenizer)
    end = model.tokenizer.end_of_text
    nats, scored = 0.0, 1
    for start in range(0, len(ids), stride or 16):
        row = torch.tensor(ids[start : start + 17], dtype=torch.int64)
        logprobs = model.network(row[None, :-1])[0].log_softmax(-1)
        for place in range(scored - start - 1, len(row) - 1):
            if row[place + 1] != end:
                nats -= float(logprobs[place, row[place + 1]])
        scored = start + len(row)
        if scored >= len(ids):
            break
    text_bytes = sum(len(text.encode()) for text in DOCUMENTS)

    result = evaluate(model.network, ids, end, text_bytes, stride=stride, batch_size=4)

    assert result.tokens == text_bytes  # a byte is a token here, and the separators are not scored
    assert result.nats == pytest.approx(nats, rel=1e-5)
    assert result.bits_per_byte == pytest.approx(nats / math.log(2) / text_bytes, rel=1e-5)


@pytest.mark.parametrize("stride", [-1, 0, 17])
def test_a_stride_that_leaves_tokens_out_is_refused(stride):
    model = tiny_model(window=16)
    with pytest.raises(BadOption, match=rf"stride is {stride}; it must be between 1 and the model's window, 16"):
        evaluate(model.network, to_ids(DOCUMENTS, model.tokenizer), 256, 100, stride=stride)


def test_the_mode_of_the_network_is_left_as_it_was():
    model = tiny_model()
    model.network.train()
    evaluate(model.network, to_ids(DOCUMENTS, model.tokenizer), 256, 100)
    assert model.network.training


def test_shards_score_as_the_array_does(tmp_path):
    model = tiny_model(window=16)
    tokenizer = model.tokenizer
    ids = to_ids(DOCUMENTS, tokenizer)
    with ShardWriter(tmp_path, "validation", tokenizer, 20, block_tokens=8) as writer:
        for text in DOCUMENTS:
            writer.add(tokenizer.encode(text))
    shards = open_shards(tmp_path, "validation")
    assert len(shards.paths) > 3
    assert shards.text_bytes is not None
    ours = evaluate(model.network, shards, tokenizer.end_of_text, shards.text_bytes, batch_size=2)
    assert ours == evaluate(model.network, ids, tokenizer.end_of_text, shards.text_bytes, batch_size=2)


def test_windows_are_read_as_they_are_scored():
    read = []

    class Watched:
        def __len__(self):
            return 100

        def read(self, start, count):
            read.append((start, count))
            return np.arange(start, start + count, dtype=np.int32)

    batches = _windows(Watched(), 8, 8, 2, Ranks())
    next(batches)
    assert read == [(0, 9), (8, 9)]
    list(batches)
    assert max(count for _, count in read) == 9


def test_bytes_of_a_part():
    tokenizer = tiny_model().tokenizer
    ids = to_ids(["né", "x" * 50], tokenizer)
    assert count_bytes(ids, tokenizer) == 53
    # The first token of a part is read and not scored, so its bytes do not count.
    assert count_bytes(Part(ids, 1, 4), tokenizer) == 2
    assert count_bytes(Part(ids, 0, 4), tokenizer) == 3


def test_a_text_shorter_than_one_window_is_one_window():
    model = tiny_model(window=32)
    ids = to_ids(["short"], model.tokenizer)
    result = evaluate(model.network, ids, model.tokenizer.end_of_text, 5)
    logprobs = model.network(torch.tensor(ids[None, :-1], dtype=torch.int64))[0].log_softmax(-1)
    expected = -float(logprobs.gather(1, torch.tensor(ids[1:, None], dtype=torch.int64)).sum())
    assert result.tokens == 5
    assert result.nats == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("ids", [[], [256], [256, 256, 256]])
def test_nothing_to_score(ids):
    model = tiny_model()
    with pytest.raises(BadData, match="nothing to score"):
        evaluate(model.network, np.array(ids, dtype=np.int32), model.tokenizer.end_of_text, 1)
