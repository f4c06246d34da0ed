"""Held-out loss: every token is scored exactly once, by the protocol that is written down."""

import math

import numpy as np
import pytest
import torch

from gpt2.training.data import to_ids
from gpt2.training.evaluate import _windows, evaluate
from tests.helpers import tiny_model

DOCUMENTS = ["To be, or not to be.", "that is the question" * 5, "x"]


@pytest.mark.parametrize("stride", [1, 5, 16, 32])
@pytest.mark.parametrize("length", [2, 3, 17, 32, 33, 34, 65, 200])
def test_every_target_is_scored_once(stride, length):
    ids = np.arange(length, dtype=np.int32)
    scored = []
    for inputs, targets in _windows(ids, 32, stride, batch_size=3):
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


def test_the_mode_of_the_network_is_left_as_it_was():
    model = tiny_model()
    model.network.train()
    evaluate(model.network, to_ids(DOCUMENTS, model.tokenizer), 256, 100)
    assert model.network.training
