"""The compiled runner's cache and its refusals; the graph runner's draws, and on CUDA its capture and its kernels."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from gpt2.errors import BadOption, BadPrompt, ContextOverflow, Unavailable
from gpt2.generation import SamplingOptions
from gpt2.generation.sampling import gumbel_noise, sample
from gpt2.model import GPT2
from gpt2.runners import Feed, noise
from gpt2.runners.compiled import CompiledRunner
from gpt2.runners.graph import GraphRunner
from gpt2.runners.plain import PlainRunner
from gpt2.runners.static import Operations
from tests.generation_models import network

# The compiled runner.

SECOND_START = """
import torch
torch._inductor.aoti_compile_and_package = None
from tests.generation_models import network
from gpt2.runners import Feed
from gpt2.runners.compiled import CompiledRunner
runner = CompiledRunner(network(n_layer=1), 3)
print(float(runner.read([Feed(1, [7])])[0, 3]))
"""


def test_a_second_process_does_not_compile_and_a_damaged_file_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GPT2_CACHE", str(tmp_path))
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    try:
        runner = CompiledRunner(network(n_layer=1), 2)
    except Unavailable as error:
        pytest.skip(f"left out: {error}")
    assert "TORCHINDUCTOR_CACHE_DIR" not in os.environ
    [program] = (tmp_path / "inductor").glob("block-*.pt2")
    here = float(runner.read([Feed(0, [7])])[0, 3])

    # Another process, more slots, another checkpoint's worth of layers: one program for all of a shape.
    done = subprocess.run([sys.executable, "-c", SECOND_START], check=True, capture_output=True, text=True)
    assert float(done.stdout) == pytest.approx(here, abs=1e-5)
    made = network(n_layer=3, vocab_size=300)
    other = CompiledRunner(made, 5)
    torch.testing.assert_close(
        other.read([Feed(4, [1, 2]), Feed(0, [3])]), PlainRunner(made, 5).read([Feed(4, [1, 2]), Feed(0, [3])])
    )
    assert list((tmp_path / "inductor").glob("block-*.pt2")) == [program]

    program.write_bytes(program.read_bytes()[:1000])
    rebuilt: list[object] = []
    monkeypatch.setattr("gpt2.runners.compiled._build", lambda *where: rebuilt.append(where[-1]) or 1 / 0)
    with pytest.raises(Unavailable, match="division"):
        CompiledRunner(network(n_layer=1), 2)
    assert rebuilt == [program]
    assert not program.exists()


@pytest.mark.parametrize("error", [RuntimeError("no zip"), OSError("no object"), KeyError("no entry"), SystemError()])
def test_a_program_that_does_not_load_is_built_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    from gpt2.runners import compiled

    monkeypatch.setenv("GPT2_CACHE", str(tmp_path))
    made = network(n_layer=1)
    file = tmp_path / "inductor" / f"block-{compiled._key(made.config, made.dtype)}.pt2"
    file.parent.mkdir()
    file.write_bytes(b"damaged")

    def load(path: Path) -> str:
        if path.read_bytes() == b"damaged":
            raise error
        return "a block"

    monkeypatch.setattr(compiled, "_load", load)
    monkeypatch.setattr(compiled, "_build", lambda config, dtype, path: path.write_bytes(b"whole"))
    assert compiled.compiled_block(made) == "a block"


def test_without_a_compiler_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPT2_CACHE", str(tmp_path))
    monkeypatch.setenv("CXX", str(tmp_path / "no-such-compiler"))
    script = """
import torch._inductor.config as config
config.cpp.cxx = ("/no/such/compiler",)
from gpt2.errors import Unavailable
from gpt2.runners.compiled import CompiledRunner
from tests.generation_models import network
try:
    CompiledRunner(network(n_layer=1), 2)
except Unavailable as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert done.stdout.startswith("The token step cannot be compiled on this machine: ")
    assert done.stdout.count("\n") == 1
    assert not list((tmp_path / "inductor").glob("*.pt2"))


@pytest.mark.parametrize("make", [CompiledRunner, GraphRunner])
def test_a_network_in_training_is_refused(make: type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPT2_CACHE", str(tmp_path))
    training = network(embd_pdrop=0.1).train()
    with pytest.raises(BadOption, match="training mode"):
        make(training, 1, **({"uncaptured": True} if make is GraphRunner else {}))


# The graph's step, uncaptured: draws.


def test_the_noise_is_the_samplers_bit_for_bit() -> None:
    seeds, numbers = [0, 1, -1, 2**63 - 1, -(2**63), 12345], [0, 1, 7, 1023, 2**40, 3]
    ids = torch.arange(1000)[None]
    found = noise.gumbel_noise(torch.tensor([noise.mixed_seed(seed) for seed in seeds]), torch.tensor(numbers), ids)
    # The whole numbers are equal; two libraries' logarithms may differ in the last place.
    torch.testing.assert_close(found, gumbel_noise(seeds, numbers, ids), atol=1e-13, rtol=1e-13)


Draws = list[tuple[int, int, float, int]]


def host_draw(plain: PlainRunner, slots: list[int], ids: list[int], rows: Draws) -> list[int]:
    """What the sampler on the host draws from the plain runner's logits; rows: seed, number, temperature, top_k."""
    logits = plain.read([Feed(slot, [id]) for slot, id in zip(slots, ids, strict=True)])
    return [
        sample(logits[row : row + 1], SamplingOptions(temperature, top_k), [[]], [[0] * number], [seed])[0]
        for row, (seed, number, temperature, top_k) in enumerate(rows)
    ]


def draw(runner: GraphRunner, slots: list[int], ids: list[int], rows: Draws) -> list[int]:
    seeds, numbers, temperatures, top_ks = (list(column) for column in zip(*rows, strict=True))
    return runner.draw(slots, ids, seeds, numbers, temperatures, top_ks)


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> str:
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("left out: no CUDA device is here")
    return request.param


def graph_runner(net: GPT2, slots: int, device: str) -> GraphRunner:
    return GraphRunner(net.to(device), slots, uncaptured=device == "cpu")


@pytest.mark.parametrize("top_ks", [(0, 0, 0), (5, 0, 40), (1, 70, 3), (2000, 1100, 0)], ids=str)
def test_draws_are_the_samplers(top_ks: tuple[int, int, int], device: str) -> None:
    net = network(vocab_size=1500)
    runner, plain = graph_runner(net, 4, device), PlainRunner(net, 4)
    slots, ids, drawn = [3, 0, 2], [1, 2, 3], []
    for each in (runner, plain):
        each.read([Feed(3, [5, 6, 7], 0), Feed(2, [9], 0)])
    for number in range(12):
        rows = [(seed, number, t, k) for seed, t, k in zip([5, -6, 2**62], [0.0, 0.7, 1.5], top_ks, strict=True)]
        found = draw(runner, slots, ids, rows)
        assert found == host_draw(plain, slots, ids, rows)
        assert [runner.length(slot) for slot in slots] == [plain.length(slot) for slot in slots]
        drawn += found
        ids = found
    assert len(set(drawn)) > 12, "draws that are all alike would prove nothing"


def test_running_ahead_is_never_seen(device: str) -> None:
    """Whatever is done between draws, they are what they would be without the step that ran ahead."""
    net = network(vocab_size=500)
    runner, plain = graph_runner(net, 3, device), PlainRunner(net, 3)

    def step(slots: list[int], ids: list[int], number: int, seed: int = 1) -> list[int]:
        rows = [(seed, number, 1.0, 20)] * len(slots)
        found = draw(runner, slots, ids, rows)
        assert found == host_draw(plain, slots, ids, rows)
        return found

    ids = [1, 2]
    for number in range(4):
        ids = step([0, 1], ids, number)
    assert runner._ahead is not None
    step([0, 1], [id + 1 for id in ids], 4)  # other ids
    step([0, 1], ids, 5, seed=9)  # another seed
    for number in range(3):
        ids = step([0, 1], ids, number)
    for each in (runner, plain):
        each.rewind(0, each.length(0) - 2)
    for number in range(3):
        ids = step([0, 1], ids, number)
    # The same length and the same next id, but other tokens before it.
    length = runner.length(0)
    for each in (runner, plain):
        each.rewind(0, length - 3)
        each.read([Feed(0, [7, 8, 9], 0)])
    ids = step([0, 1], ids, 3)
    for each in (runner, plain):
        each.copy(0, 2, 6)
        each.read([Feed(2, [3, 4])])
    ids = step([0, 1, 2], [*ids, 5], 4)
    ids = step([2, 0], ids[:2], 5)
    torch.testing.assert_close(runner.read([Feed(1, [3])]).cpu(), plain.read([Feed(1, [3])]), atol=1e-4, rtol=0)


def test_a_full_window_ends_it(device: str) -> None:
    net = network(n_positions=9)
    runner, plain = graph_runner(net, 2, device), PlainRunner(net, 2)
    ids = [1]
    for number in range(9):
        rows = [(3, number, 1.0, 0)]
        found = draw(runner, [0], ids, rows)
        assert found == host_draw(plain, [0], ids, rows)
        ids = found
    with pytest.raises(ContextOverflow):
        draw(runner, [0], ids, [(3, 9, 1.0, 0)])
    with pytest.raises(BadPrompt):
        draw(runner, [1], [257], [(3, 9, 1.0, 0)])
    assert [runner.length(0), runner.length(1)] == [9, 0]


def test_a_row_without_finite_scores_is_told_apart(device: str) -> None:
    net = network()
    runner = graph_runner(net, 3, device)
    fine = draw(runner, [0, 1], [1, 2], [(1, 0, 0.0, 0), (2, 0, 1.0, 5)])
    net.wte.weight.data[200] = torch.nan  # as an id that is fed; as one that is drawn it is out of reach
    runner.drawable = 200
    for slot in (0, 1):
        runner.rewind(slot, 0)
    found = draw(runner, [0, 2, 1], [1, 200, 2], [(1, 0, 0.0, 0), (1, 0, 1.0, 5), (2, 0, 1.0, 5)])
    assert found[1] == -1
    assert min(found[0], found[2]) >= 0
    assert [found[0], found[2]] == fine or max(fine) >= 200


def test_only_drawable_ids_are_drawn(device: str) -> None:
    runner = graph_runner(network(), 1, device)
    runner.drawable = 3
    assert {draw(runner, [0], [place], [(place, place, 5.0, 0)])[0] for place in range(30)} == {0, 1, 2}


def test_a_graph_needs_cuda() -> None:
    with pytest.raises(Unavailable, match="CUDA"):
        GraphRunner(network(), 1)


# The kernels. Without a GPU, Triton's interpreter runs them: TRITON_INTERPRET=1.


@pytest.fixture
def kernel_device() -> str:
    pytest.importorskip("triton", reason="left out: triton is not installed")
    if torch.cuda.is_available():
        return "cuda"
    if os.environ.get("TRITON_INTERPRET") == "1":
        return "cpu"
    pytest.skip("left out: no CUDA device is here")


@pytest.mark.gpu
@pytest.mark.parametrize("act", ["gelu_new", "gelu", "relu", "silu"])
@pytest.mark.parametrize("rows", [1, 3])
def test_the_projection_kernel(act: str, rows: int, kernel_device: str) -> None:
    from gpt2.runners.kernels import KernelOperations

    config = network(activation_function=act, layer_norm_epsilon=0.01).config
    random = torch.Generator().manual_seed(rows)
    x, weight, bias, scale, shift, added = (
        torch.randn(shape, generator=random).to(kernel_device)
        for shape in [(rows, 35), (90, 35), (90,), (35,), (35,), (rows, 90)]
    )
    plain, kernel = Operations(config), KernelOperations(config)
    for more in (
        {"norm": (scale, shift)},
        {"norm": (scale, shift), "act": True},
        {"residual_BO": added},
        {"act": True, "residual_BO": added},
    ):
        expected = plain.project(x, weight, bias, **more)
        torch.testing.assert_close(kernel.project(x, weight, bias, **more), expected, atol=1e-4, rtol=0)
    head = plain.project(x, weight, None, norm=(scale, shift))
    torch.testing.assert_close(kernel.project(x, weight, None, norm=(scale, shift)), head, atol=1e-4, rtol=0)


@pytest.mark.gpu
@pytest.mark.parametrize("upcast", [False, True])
def test_the_attention_kernel(upcast: bool, kernel_device: str) -> None:
    from gpt2.runners.kernels import KernelOperations

    config = network(n_embd=42, n_head=2, n_positions=300, reorder_and_upcast_attn=upcast).config
    random = torch.Generator().manual_seed(1)
    keys, values = torch.randn(2, 5, 2, 304, 21, generator=random).to(kernel_device)
    keys[4, :, 200:] = torch.nan  # nobody has read there
    slots, lengths = torch.tensor([4, 0, 2], device=kernel_device), torch.tensor([70, 0, 299], device=kernel_device)
    qkv = torch.randn(3, 126, generator=random).to(kernel_device)
    scale, places = torch.tensor(0.3, device=kernel_device), torch.arange(300, device=kernel_device)
    results = []
    for operations in (Operations(config), KernelOperations(config)):
        memory = keys.clone(), values.clone()
        results.append((operations.attend(qkv, *memory, slots, lengths, places, scale), *memory))
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0, equal_nan=True)
    assert not torch.equal(results[0][1], keys)


@pytest.mark.gpu
def test_the_choice_kernel(kernel_device: str) -> None:
    from gpt2.runners import graph, kernels

    random = torch.Generator().manual_seed(1)
    logits = (3 * torch.randn(6, 3000, generator=random)).to(kernel_device)
    logits[4, 17] = torch.nan
    logits[5, 2999] = torch.inf
    seeds = torch.tensor([noise.mixed_seed(seed) for seed in range(6)], device=kernel_device)
    temperatures = torch.tensor([0, 1, 0.5, 2, 1, 0], dtype=torch.float64, device=kernel_device)
    top_ks = torch.tensor([0, 40, 0, 5, 0, 3], device=kernel_device)
    floors = graph.lowest(logits, temperatures, top_ks, 64)
    for number in range(5):
        rest = (floors, seeds, torch.full((6,), number, device=kernel_device), temperatures)
        expected = graph.choose(logits, *rest)
        assert expected[4:].tolist() == [-1, -1]
        assert kernels.choose(logits, *rest).tolist() == expected.tolist()


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_captured_steps_are_the_plain_ones(dtype: torch.dtype) -> None:
    if not torch.cuda.is_available():
        pytest.skip("left out: no CUDA device is here")
    net = network(n_embd=128, n_head=2, n_positions=300, vocab_size=1000).to("cuda", dtype)
    runner, plain = GraphRunner(net, 20), PlainRunner(net, 20)
    near = {"atol": 1e-4, "rtol": 0} if dtype == torch.float32 else {"atol": 0.1, "rtol": 0.05}
    prompts = [Feed(slot, [(slot + place) % 1000 for place in range(3 + 14 * slot)]) for slot in range(20)]
    torch.testing.assert_close(runner.read(prompts), plain.read(prompts), **near)
    for rows in (1, 2, 3, 8, 9, 20, 1):
        feeds = [Feed(slot, [rows + slot]) for slot in range(rows)]
        torch.testing.assert_close(runner.read(feeds), plain.read(feeds), **near)
    feeds = [Feed(3, [1, 2, 3], 3), Feed(5, [4])]
    torch.testing.assert_close(runner.read(feeds), plain.read(feeds), **near)
