"""The optimisers: what is decayed, Muon beside torch's own, and the state on disk."""

import dataclasses

import pytest
import torch
from safetensors.torch import load_file, save_file

from gpt2.config import GPT2Config
from gpt2.errors import BadCheckpoint
from gpt2.model import GPT2
from gpt2.training.muon import MOMENTUM, Muon, orthogonal
from gpt2.training.optimizer import Optimizer
from gpt2.training.options import TrainingOptions
from gpt2.training.ranks import Ranks

CONFIG = GPT2Config(vocab_size=50, n_positions=8, n_embd=16, n_layer=2, n_head=2)
OPTIONS = TrainingOptions(optimizer="muon", learning_rate=0.01, weight_decay=0.1)


def made(options: TrainingOptions, seed: int = 0) -> tuple[GPT2, Optimizer]:
    network = GPT2(CONFIG).initialise(seed)
    return network, Optimizer(network, options)


def give_gradients(network: GPT2, seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=random)


def weights(network: GPT2) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_decay_shrinks_matrices_and_embeddings_and_nothing_else(optimizer):
    network, moves = made(dataclasses.replace(OPTIONS, optimizer=optimizer))
    for parameter in network.parameters():
        parameter.data.fill_(1)
        parameter.grad = torch.zeros_like(parameter)

    moves.step(0.01)

    for name, tensor in network.state_dict().items():
        expected = 1 - 0.01 * 0.1 if tensor.ndim == 2 else 1.0
        torch.testing.assert_close(tensor, torch.full_like(tensor, expected), msg=name)


def test_the_share_scales_what_adamw_moves_beside_muon():
    network, moves = made(dataclasses.replace(OPTIONS, adamw_share=0.0))
    before = weights(network)
    give_gradients(network, 1)

    moves.step(0.01)

    for name, tensor in network.state_dict().items():
        is_block_matrix = name.startswith("h.") and tensor.ndim == 2
        assert torch.equal(tensor, before[name]) is not is_block_matrix, name


def test_adamw_alone_is_torch_s_on_every_parameter():
    network, moves = made(dataclasses.replace(OPTIONS, optimizer="adamw", weight_decay=0.0, adamw_share=0.5))
    peer = GPT2(CONFIG).initialise(0)
    theirs = torch.optim.AdamW(peer.parameters(), lr=0.02, betas=(0.9, 0.95), weight_decay=0.0, foreach=False)
    for step in range(3):
        give_gradients(network, step)
        give_gradients(peer, step)
        moves.step(0.02)
        theirs.step()

    for name, tensor in network.state_dict().items():
        torch.testing.assert_close(tensor, peer.state_dict()[name], rtol=1e-5, atol=1e-6, msg=name)


def by_torch(matrices: list[torch.Tensor], gradients: list[list[torch.Tensor]]) -> list[torch.Tensor]:
    moved = [torch.nn.Parameter(matrix.clone()) for matrix in matrices]
    peer = torch.optim.Muon(moved, lr=0.02, weight_decay=0.1, momentum=MOMENTUM, adjust_lr_fn="match_rms_adamw")
    for step in gradients:
        for parameter, gradient in zip(moved, step, strict=True):
            parameter.grad = gradient.clone()
        peer.step()
    return [parameter.detach() for parameter in moved]


@pytest.mark.parametrize("shape", [(24, 24), (16, 40), (40, 16)])
def test_muon_moves_matrices_as_torch_s_does(shape):
    torch.manual_seed(0)
    matrices = [torch.randn(shape) for _ in range(3)]
    gradients = [[torch.randn(shape) for _ in range(3)] for _ in range(4)]
    ours = [torch.nn.Parameter(matrix.clone()) for matrix in matrices]
    moves = Muon(ours, [1] * 3, lr=0.02, weight_decay=0.1, width=torch.bfloat16, ranks=Ranks())
    for step in gradients:
        for parameter, gradient in zip(ours, step, strict=True):
            parameter.grad = gradient.clone()
        moves.step()

    for matrix, mine, theirs in zip(matrices, ours, by_torch(matrices, gradients), strict=True):
        # bfloat16 has eight bits; the moves themselves are about 0.02.
        torch.testing.assert_close(mine.detach(), theirs, rtol=0, atol=1e-3)
        assert (theirs - matrix).abs().max() > 0.02


def test_query_key_and_value_move_as_matrices_of_their_own():
    torch.manual_seed(0)
    network, moves = made(OPTIONS)
    before = network.h[0].attn.c_attn.weight.detach().clone()
    give_gradients(network, 1)
    gradient = network.h[0].attn.c_attn.weight.grad.clone()
    apart = by_torch(list(before.split(16, 1)), [list(gradient.split(16, 1))])
    joined = by_torch([before], [[gradient]])[0]

    moves.step(0.02)

    now = network.h[0].attn.c_attn.weight.detach()
    torch.testing.assert_close(now, torch.cat(apart, 1), rtol=0, atol=1e-3)
    assert (now - joined).abs().max() > 5e-3


@pytest.mark.parametrize("shape", [(3, 20, 20), (2, 12, 48), (2, 48, 12)])
def test_orthogonal_makes_singular_values_alike(shape):
    stack = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * torch.logspace(0, -1, shape[2])

    values = torch.linalg.svdvals(orthogonal(stack))

    before = torch.linalg.svdvals(stack)
    assert (before[:, 0] / before[:, -1]).min() > 2
    large = before / before.norm(dim=1, keepdim=True) > 0.02  # what five iterations lift all the way
    assert values[large].min() > 0.6
    assert values.max() < 1.3


def test_a_matrix_of_zeros_stays_one():
    assert not orthogonal(torch.zeros(2, 4, 6)).any()


def test_matrices_go_through_the_iteration_in_bounded_batches(monkeypatch):
    """However few at a time, the moves are the same."""
    moved = []
    for most in (1 << 25, 1):
        monkeypatch.setattr("gpt2.training.muon._AT_A_TIME", most)
        network, moves = made(OPTIONS)
        give_gradients(network, 1)
        moves.step(0.01)
        moved.append(weights(network))
    for name, tensor in moved[0].items():
        torch.testing.assert_close(tensor, moved[1][name], rtol=0, atol=1e-6, msg=name)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_state_that_was_saved_goes_on_bit_for_bit(optimizer, tmp_path):
    options = dataclasses.replace(OPTIONS, optimizer=optimizer)
    network, moves = made(options)
    for step in range(2):
        give_gradients(network, step)
        moves.step(0.01)
    moves.save(tmp_path)
    again, moves_again = made(options, seed=5)
    again.load_state_dict(weights(network))
    moves_again.load(tmp_path)

    for each, optimizer_of_it in ((network, moves), (again, moves_again)):
        give_gradients(each, 7)
        optimizer_of_it.step(0.01)

    assert [file.name for file in tmp_path.iterdir()] == ["optimizer.safetensors"]
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name


def test_the_state_is_named_after_parameters(tmp_path):
    network, moves = made(OPTIONS)
    give_gradients(network, 0)
    moves.step(0.01)
    moves.save(tmp_path)

    state = load_file(tmp_path / "optimizer.safetensors")
    assert state["h.0.attn.c_attn.weight/momentum_buffer"].shape == (16, 48)
    assert {key for key in state if key.startswith("wte.weight")} == {
        "wte.weight/step",
        "wte.weight/exp_avg",
        "wte.weight/exp_avg_sq",
    }
    assert len(state) == 8 + 3 * (len(network.state_dict()) - 8)


def test_a_state_that_is_damaged_short_or_of_another_shape_is_named(tmp_path):
    network, moves = made(OPTIONS)
    file = tmp_path / "optimizer.safetensors"
    with pytest.raises(BadCheckpoint, match="no safetensors"):
        moves.load(tmp_path)
    give_gradients(network, 0)
    moves.step(0.01)
    moves.save(tmp_path)
    whole = {key: value.clone() for key, value in load_file(file).items()}  # not mapped: the file is written over

    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(BadCheckpoint, match="damaged"):
        moves.load(tmp_path)
    save_file({key: value for key, value in whole.items() if key != "ln_f.bias/exp_avg"}, file)
    with pytest.raises(BadCheckpoint, match=r"lacks ln_f\.bias/exp_avg"):
        moves.load(tmp_path)
    save_file(whole | {"wpe.weight/exp_avg": torch.zeros(3, 3)}, file)
    with pytest.raises(BadCheckpoint, match=r"another shape, \(3, 3\), for wpe\.weight/exp_avg"):
        moves.load(tmp_path)
