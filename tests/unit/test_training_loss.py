"""The loss that training computes: `model.py`'s in every variant of the shape, its widths, and what it never makes."""

import functools

import pytest
import torch

from gpt2.config import GPT2Config
from gpt2.errors import ContextOverflow
from gpt2.model import GPT2
from gpt2.training import attention, cross_entropy
from gpt2.training import loss as loss_module
from gpt2.training.allocator import keep_freed_memory
from gpt2.training.loss import Loss
from tests.helpers import random_ids

SHAPE = {"vocab_size": 77, "n_positions": 24, "n_embd": 24, "n_layer": 2, "n_head": 3, "initializer_range": 0.2}

VARIANTS = [
    {},
    {"activation_function": "gelu"},
    {"activation_function": "gelu_pytorch_tanh"},
    {"activation_function": "relu"},
    {"activation_function": "silu"},
    {"scale_attn_weights": False},
    {"scale_attn_by_inverse_layer_idx": True},
    {"reorder_and_upcast_attn": True},
    {"n_inner": 40, "layer_norm_epsilon": 1e-3},
]


def exactness(variant):
    """`model.py` takes that attention in float32, whatever the width; here it is at least that."""
    return 1e-6 if "reorder_and_upcast_attn" in variant else 1e-10


def batch(rows=3, length=24, vocab_size=77):
    ids = random_ids(rows, length + 1, vocab_size)
    inputs, targets = ids[:, :-1].contiguous(), ids[:, 1:].clone()
    targets[0, 5:9] = -100
    targets[-1] = -100
    return inputs, targets


def with_gradients(loss, network, inputs, targets):
    network.zero_grad()
    value = loss(inputs, targets)
    value.backward()
    return value.detach(), {name: parameter.grad.clone() for name, parameter in network.named_parameters()}


def assert_equal(ours, theirs, rtol):
    torch.testing.assert_close(ours[0].double(), theirs[0].double(), rtol=rtol, atol=0)
    for name, expected in theirs[1].items():
        difference = (ours[1][name].double() - expected.double()).norm()
        assert difference <= rtol * expected.double().norm() + 1e-12, name


@pytest.fixture
def as_compiled(monkeypatch):
    """What is computed where a compiler is at work, without its waiting times; in many blocks and pieces."""
    monkeypatch.setattr(loss_module, "_compiled_for_cpu", lambda x: True)
    monkeypatch.setattr(attention, "_LEAST", 1)
    monkeypatch.setattr(cross_entropy, "_MOST_LOGITS", 1)


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_loss_and_gradients_are_the_models(variant):
    network = GPT2(GPT2Config(**SHAPE, **variant)).double().initialise(0)
    assert_equal(
        with_gradients(Loss(network, "float32"), network, *batch()),
        with_gradients(network.loss, network, *batch()),
        exactness(variant),
    )


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
@pytest.mark.parametrize("length", [1, 7, 24])
def test_loss_and_gradients_are_the_models_as_compiled(variant, length, as_compiled):
    network = GPT2(GPT2Config(**SHAPE, **variant)).double().initialise(0)
    assert_equal(
        with_gradients(Loss(network, "float32"), network, *batch(5, length)),
        with_gradients(network.loss, network, *batch(5, length)),
        exactness(variant),
    )


@pytest.mark.parametrize("variant", [{}, {"scale_attn_by_inverse_layer_idx": True, "n_layer": 3}], ids=str)
def test_the_compiler_reads_it_whole_and_a_block_once(variant, monkeypatch):
    """Everything of `torch.compile` but the C++ that it writes, which takes a minute: that is the slow test below."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager", fullgraph=True))
    monkeypatch.setattr(attention, "_LEAST", 8)
    torch._dynamo.reset()
    compiled = torch._dynamo.utils.counters["stats"]
    before = compiled["unique_graphs"]
    network = GPT2(GPT2Config(**SHAPE | variant)).initialise(0)
    expected = with_gradients(network.loss, network, *batch())
    assert_equal(with_gradients(Loss(network, "float32", compile=True), network, *batch()), expected, 1e-5)
    if not variant:
        assert compiled["unique_graphs"] - before == 2  # a block, a piece of the loss
    assert_equal(with_gradients(Loss(network, "bfloat16", compile=True), network, *batch()), expected, 0.04)


@pytest.mark.slow
def test_compiled_for_real_it_is_the_models_still():
    network = GPT2(GPT2Config(**SHAPE)).initialise(0)
    expected = with_gradients(network.loss, network, *batch())
    assert_equal(with_gradients(Loss(network, "float32", compile=True), network, *batch()), expected, 1e-5)
    assert_equal(with_gradients(Loss(network, "bfloat16", compile=True), network, *batch()), expected, 0.04)


@pytest.mark.parametrize("called", [False, True])
def test_blocks_as_modules_give_the_same(called):
    """Hooks of a wrapping (FSDP2) fire where the network is called, and only there."""
    network = GPT2(GPT2Config(**SHAPE)).double().initialise(0)
    fired = []
    for block in network.h:
        block.register_forward_hook(lambda *_: fired.append(1))
    ours = with_gradients(Loss(network, "float32", called=called), network, *batch())
    assert len(fired) == (2 if called else 0)
    assert_equal(ours, with_gradients(network.loss, network, *batch()), 1e-10)


@pytest.mark.parametrize("compiled", [False, True])
def test_bfloat16_keeps_float32_parameters_and_gradients(compiled, request):
    if compiled:
        request.getfixturevalue("as_compiled")
    network = GPT2(GPT2Config(**SHAPE)).initialise(0)
    ours = with_gradients(Loss(network, "bfloat16"), network, *batch())
    assert ours[0].dtype == torch.float32
    assert {p.dtype for p in network.parameters()} == {g.dtype for g in ours[1].values()} == {torch.float32}
    expected = with_gradients(network.loss, network, *batch())
    assert_equal(ours, expected, 0.04)
    # It did compute in bfloat16.
    assert not torch.allclose(ours[1]["h.0.mlp.c_fc.weight"], expected[1]["h.0.mlp.c_fc.weight"], rtol=1e-4)


def test_bfloat16_is_no_worse_than_autocast():
    network = GPT2(GPT2Config(**SHAPE)).initialise(0)
    truth = with_gradients(network.loss, network, *batch())[1]
    ours = with_gradients(Loss(network, "bfloat16"), network, *batch())[1]

    def autocast(inputs, targets):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return network.loss(inputs, targets)

    theirs = with_gradients(autocast, network, *batch())[1]

    def error(gradients):
        return sum(float((gradients[name] - truth[name]).norm() / truth[name].norm()) for name in truth)

    assert error(ours) < 1.1 * error(theirs)


def test_a_loss_without_gradients_is_the_same_loss():
    network = GPT2(GPT2Config(**SHAPE)).initialise(0)
    loss = Loss(network, "float32")
    with torch.inference_mode():
        value = loss(*batch())
    assert not value.requires_grad
    assert value.item() == loss(*batch()).item()


def test_no_more_logits_than_a_piece_exist_at_once(monkeypatch):
    monkeypatch.setattr(cross_entropy, "_MOST_LOGITS", 64 * 128)
    seen = []

    def piece(hidden_NC, embedding_PC, targets_N, vocab_size, gradients):
        seen.append((len(hidden_NC), len(embedding_PC)))
        assert vocab_size == 77
        return cross_entropy.one_piece(hidden_NC, embedding_PC, targets_N, vocab_size, gradients)

    hidden = torch.randn(150, 24, requires_grad=True)
    embedding = torch.randn(77, 24, requires_grad=True)
    targets = torch.randint(77, (150,))
    value = cross_entropy.summed_cross_entropy(hidden, embedding, targets, piece)
    assert seen == [(64, 128), (64, 128), (22, 128)]
    expected = torch.nn.functional.cross_entropy(hidden @ embedding.t(), targets, reduction="sum")
    torch.testing.assert_close(value, expected)


@pytest.mark.parametrize("compiled", [False, True])
def test_what_is_not_scored_has_no_logits(compiled, monkeypatch):
    """A prompt's places in fine-tuning; a compiled pass keeps to one shape."""
    network = GPT2(GPT2Config(**SHAPE)).initialise(0)
    loss, seen = Loss(network, "float32"), []
    loss.compiled = compiled

    def piece(hidden_NC, *rest):
        seen.append(len(hidden_NC))
        return cross_entropy.one_piece(hidden_NC, *rest)

    monkeypatch.setattr(Loss, "_piece", staticmethod(piece))
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    inputs, targets = batch()
    loss(inputs, targets)
    assert seen == [targets.numel() if compiled else int((targets != -100).sum())]


def test_the_gradient_scales_with_what_comes_after_the_loss():
    hidden = torch.randn(9, 4, dtype=torch.float64, requires_grad=True)
    embedding = torch.randn(11, 4, dtype=torch.float64, requires_grad=True)
    targets = torch.tensor([3, -100, 10, 0, 0, 5, -100, 2, 9])

    def mean(hidden, embedding):
        return cross_entropy.summed_cross_entropy(hidden, embedding, targets) / 7

    assert torch.autograd.gradcheck(mean, (hidden, embedding))


def test_logits_far_beyond_what_exp_can_hold_are_no_trouble():
    hidden = torch.full((2, 4), 100.0, requires_grad=True)
    embedding = torch.tensor([[100.0] * 4, [-100.0] * 4, [99.0] * 4], requires_grad=True)
    value = cross_entropy.summed_cross_entropy(hidden, embedding, torch.tensor([0, 1]))
    value.backward()
    assert value.item() == 80000
    assert torch.isfinite(hidden.grad).all()
    assert torch.isfinite(embedding.grad).all()


def test_a_batch_without_a_single_target_moves_nothing():
    network = GPT2(GPT2Config(**SHAPE)).initialise(0)
    inputs, targets = batch()
    value, gradients = with_gradients(Loss(network, "float32"), network, inputs, torch.full_like(targets, -100))
    assert value.item() == 0
    assert all(not gradient.any() for gradient in gradients.values())


@pytest.mark.parametrize("compiled", [False, True])
def test_dropout_is_a_function_of_the_seed_and_acts_in_training_only(compiled, request):
    if compiled:
        request.getfixturevalue("as_compiled")
    network = GPT2(GPT2Config(**SHAPE, embd_pdrop=0.1, resid_pdrop=0.1, attn_pdrop=0.1)).initialise(0).train()
    loss = Loss(network, "float32")

    def drawn(seed):
        torch.manual_seed(seed)
        return with_gradients(loss, network, *batch())

    assert_equal(drawn(1), drawn(1), 0)
    assert drawn(1)[0] != drawn(2)[0]
    plain = GPT2(GPT2Config(**SHAPE)).initialise(0)
    # The mean over masks lies near the loss without any, and masks of ours are as strong as the model's.
    values = {"ours": [], "model": []}
    for seed in range(60):
        torch.manual_seed(seed)
        values["ours"].append(loss(*batch()).item())
        values["model"].append(network.loss(*batch()).item())
    ours, theirs = torch.tensor(values["ours"]), torch.tensor(values["model"])
    error = (ours.var() / 60 + theirs.var() / 60).sqrt()
    assert abs(ours.mean() - theirs.mean()) < 4 * error
    assert 0.5 < ours.std() / theirs.std() < 2
    network.eval()
    torch.testing.assert_close(loss(*batch()), plain.loss(*batch()))


def test_a_row_past_the_window_is_refused():
    network = GPT2(GPT2Config(**SHAPE)).initialise(0)
    ids = random_ids(1, 25, 77)
    with pytest.raises(ContextOverflow, match="25 tokens do not fit in this model's window of 24"):
        Loss(network, "float32")(ids, ids)


def test_keeping_freed_memory_can_be_asked_for_anywhere():
    assert keep_freed_memory() in (True, False)
