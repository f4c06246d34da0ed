"""One optimiser step: what moves the weights, what leaves them as they are, and what it may not depend on."""

import math
from dataclasses import replace

import pytest
import torch

from gpt2.errors import BadOption
from gpt2.model import GPT2
from gpt2.training.guard import WINDOW
from gpt2.training.options import TrainingOptions
from gpt2.training.ranks import Ranks
from gpt2.training.step import Step
from tests.helpers import random_ids

OPTIONS = TrainingOptions(
    n_layer=1, n_head=2, n_embd=16, context=8, batch_size=4, warmup_steps=2, steps=10, learning_rate=0.01, threads=1
)


def made(options=OPTIONS, seed=0, **ranks):
    network = GPT2(options.model_config(50)).initialise(seed)
    return Step(network, options, Ranks(**ranks)), network


def batch(rows=4, seed=0):
    ids = random_ids(rows, 9, 50, seed)
    return ids[:, :-1].contiguous(), ids[:, 1:].clone()


def weights(network):
    return {name: parameter.detach().clone() for name, parameter in network.named_parameters()}


def moved(network, before):
    return {name for name, parameter in network.named_parameters() if not torch.equal(parameter, before[name])}


def test_a_step_says_the_mean_loss_and_moves_the_weights():
    step, network = made()
    before, (inputs, targets) = weights(network), batch()
    targets[1, 3:] = -100
    with torch.no_grad():
        mean = network.loss(inputs, targets).item() / int((targets != -100).sum())
    result = step(0, inputs, targets)
    assert result.loss == pytest.approx(mean, rel=1e-5)
    assert result.finite
    assert not result.skipped
    assert moved(network, before) >= {"wte.weight", "wpe.weight", "h.0.attn.c_attn.weight", "ln_f.bias"}


def test_steps_learn():
    step, _ = made()
    losses = [step(number, *batch()).loss for number in range(10)]
    assert losses[-1] < losses[0] - 0.1


@pytest.mark.parametrize("micro_batch_size", [1, 2])
def test_micro_batches_make_the_same_step(micro_batch_size):
    whole, expected = made()
    pieces, network = made(replace(OPTIONS, micro_batch_size=micro_batch_size))
    inputs, targets = batch()
    targets[0, 2:] = -100
    for number in range(3):
        one, other = whole(number, inputs, targets), pieces(number, inputs, targets)
        assert other.loss == pytest.approx(one.loss, rel=1e-5)
        assert other.norm == pytest.approx(one.norm, rel=1e-4)
    for name, parameter in network.named_parameters():
        torch.testing.assert_close(parameter, dict(expected.named_parameters())[name], rtol=0, atol=2e-3, msg=name)


def test_the_norm_is_told_before_clipping_and_clipped():
    free, _ = made(replace(OPTIONS, grad_clip=0.0))
    tight, network = made(replace(OPTIONS, grad_clip=1e-3))
    seen = []
    tight.optimizer.step = lambda rate: seen.append(
        math.sqrt(sum(float(parameter.grad.square().sum()) for parameter in network.parameters()))
    )
    assert tight(0, *batch()).norm == pytest.approx(free(0, *batch()).norm, rel=1e-6)
    assert seen == [pytest.approx(1e-3, rel=1e-3)]


def test_the_schedule_decides_how_far():
    step, _ = made()
    rates = []
    step.optimizer.step = rates.append
    for number in (0, 1, 9):
        step(number, *batch())
    assert rates == [OPTIONS.learning_rate_at(number) for number in (0, 1, 9)]


def test_what_is_not_finite_leaves_the_weights_and_no_gradient_behind():
    step, network = made()
    step(0, *batch())
    with torch.no_grad():
        network.ln_f.bias[0] = torch.nan
    before = weights(network)
    result = step(1, *batch())
    assert not result.finite
    assert moved(network, before) == {"ln_f.bias"}  # nan is not equal to itself
    assert all(parameter.grad is None for parameter in network.parameters())

    with torch.no_grad():
        network.ln_f.bias[0] = 0
    after, _ = made()
    after(0, *batch())
    assert math.isfinite(step(1, *batch()).loss)


def test_a_gradient_that_overflows_is_told_though_the_loss_is_finite():
    step, network = made()
    network.ln_f.weight.register_hook(lambda gradient: gradient * torch.inf)
    before = weights(network)
    result = step(0, *batch())
    assert math.isfinite(result.loss)
    assert not result.finite
    assert not moved(network, before)


def test_a_spike_is_skipped_and_told():
    step, network = made(replace(OPTIONS, skip_spikes=6.0))
    for _ in range(WINDOW):
        step.guard.is_spike(1.0, 1e6)
    before = weights(network)
    result = step(0, *batch())  # a loss near ln 50, where 1.0 was usual
    assert result.skipped
    assert result.finite
    assert not moved(network, before)
    assert all(parameter.grad is None for parameter in network.parameters())


def test_dropout_is_a_function_of_seed_step_and_micro_batch():
    options = replace(OPTIONS, dropout=0.2, attention_dropout=0.2, micro_batch_size=2)

    def loss(step, seed=1, noise=0):
        torch.manual_seed(noise)
        return made(replace(options, seed=seed))[0](step, *batch()).loss

    assert loss(3) == loss(3, noise=9)
    assert loss(3) != loss(4)
    assert loss(3) != loss(3, seed=2)
    # Two micro-batches of equal rows do not share their masks.
    inputs, targets = batch(2)
    double = made(options)[0](3, inputs.repeat(2, 1), targets.repeat(2, 1)).loss
    single = made(replace(options, batch_size=2))[0](3, inputs, targets).loss
    assert double != pytest.approx(single, rel=1e-6)


def test_ranks_share_a_batch_without_gaps(monkeypatch):
    # Alone in this process, each as if it were one of two.
    monkeypatch.setattr(Ranks, "wrap", lambda self, loss: loss)
    rows = [row for rank in range(2) for row in made(rank=rank, size=2)[0].rows]
    assert rows == [0, 1, 2, 3]
    with pytest.raises(BadOption, match="batch of 4 sequences cannot be shared evenly by 3"):
        made(rank=0, size=3)


@pytest.mark.parametrize(("first", "skipped", "finite"), [((50.0, 1.0), True, True), ((math.nan, 1.0), True, False)])
def test_what_the_first_process_measured_decides_about_a_step(monkeypatch, first, skipped, finite):
    """Figures may differ in a bit, and a step that one process takes and another skips parts them."""
    monkeypatch.setattr(Ranks, "agreed", lambda self, value: first)
    step, network = made(replace(OPTIONS, skip_spikes=6.0))
    for _ in range(WINDOW):
        step.guard.is_spike(4.0, 1.0)
    before = weights(network)
    result = step(0, *batch())
    assert (result.skipped, result.finite) == (skipped, finite)
    assert not moved(network, before)
