"""Law `accumulate`: k micro-batches give the gradients of one big batch, ragged targets too (1e-6 relative).

The loss that training computes (`training.loss`), which never makes a batch's logits, is held to `model.py`'s here.
"""

import pytest
import torch
import torch.nn.functional as F
from transformers import GPT2Config as PeerConfig
from transformers import GPT2LMHeadModel

from gpt2.config import GPT2Config
from gpt2.model import GPT2
from gpt2.training import accumulate_gradients, cross_entropy
from gpt2.training.loss import Loss
from tests.helpers import random_ids

CONFIG = GPT2Config(vocab_size=300, n_positions=16, n_embd=24, n_layer=2, n_head=3)


def ragged_targets(ids):
    """Next tokens, with a different number of targets in every row, one row having none."""
    targets = ids.roll(-1, 1)
    for row, keep in enumerate([16, 3, 0, 1, 9, 16, 7, 2]):
        targets[row, keep:] = -100
    return targets


def gradients(network):
    return {name: parameter.grad.clone() for name, parameter in network.named_parameters()}


@pytest.fixture
def network():
    return GPT2(CONFIG).double().initialise(0)


@pytest.mark.parametrize("micro_batch_size", [1, 2, 3, 4, 8])
def test_micro_batches_add_up_to_the_batch(network, micro_batch_size, monkeypatch):
    # Pieces of 64 tokens: the batch is two of them, and the smaller micro-batches are parts of one.
    monkeypatch.setattr(cross_entropy, "_MOST_LOGITS", 64 * 320)
    ids = random_ids(8, 16, 300)
    targets = ragged_targets(ids)

    whole = accumulate_gradients(network.loss, ids, targets, 8)
    expected = gradients(network)
    network.zero_grad()
    pieces = accumulate_gradients(Loss(network, "float32"), ids, targets, micro_batch_size)

    assert pieces.item() == pytest.approx(whole.item(), rel=1e-6)
    for name, gradient in gradients(network).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-6, atol=1e-12, msg=name)


def test_the_gradients_are_those_of_transformers_on_the_mean_over_all_targets(network):
    peer = GPT2LMHeadModel(PeerConfig(**network.config.to_dict())).double()
    state = {f"transformer.{name}": tensor for name, tensor in network.state_dict().items()}
    peer.load_state_dict(state | {"lm_head.weight": network.wte.weight})
    ids = random_ids(8, 16, 300)
    targets = ragged_targets(ids)

    accumulate_gradients(Loss(network, "float32"), ids, targets, 2)
    F.cross_entropy(peer(ids).logits.flatten(0, 1), targets.flatten(), ignore_index=-100).backward()

    expected = {name: parameter.grad for name, parameter in peer.transformer.named_parameters()}
    for name, gradient in gradients(network).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-6, atol=1e-12, msg=name)


def test_a_mean_per_micro_batch_would_break_the_law(network):
    """The mistake that the law guards against is visible on this data."""
    ids = random_ids(8, 16, 300)
    targets = ragged_targets(ids)
    whole = accumulate_gradients(network.loss, ids, targets, 8).item()
    means = [
        network.loss(ids[i : i + 1], targets[i : i + 1]) / (targets[i] != -100).sum().clamp(min=1) for i in range(8)
    ]
    assert abs(torch.stack(means).mean().item() - whole) > 1e-3
