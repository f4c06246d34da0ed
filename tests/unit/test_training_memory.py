"""What a run needs: the estimate beside what PyTorch keeps, and the message where there is no room."""

import re
from dataclasses import replace

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from gpt2.errors import BadOption
from gpt2.model import GPT2
from gpt2.training import TrainingOptions, cross_entropy, memory, resume, train
from gpt2.training.loss import Loss
from gpt2.training.memory import check_memory, explained, largest_micro_batch, micro_batch, need
from gpt2.training.optimizer import Optimizer
from gpt2.training.ranks import Ranks
from tests.helpers import Recorder, random_ids
from tests.runs import SHORT, TEXT

CPU = torch.device("cpu")
SHAPE = TrainingOptions(n_layer=3, n_head=4, n_embd=128, context=128, vocab_size=1000, batch_size=2)


def kept_for_the_way_back(options, ids):
    """Bytes that autograd keeps, each storage once, and the network's own not."""
    network = GPT2(options.model_config(options.vocab_size)).initialise(1).train()
    own = {parameter.untyped_storage().data_ptr() for parameter in network.parameters()}
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        Loss(network, options.dtype)(ids, ids)
    return sum(tensor.untyped_storage().nbytes() for place, tensor in kept.items() if place not in own)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"dtype": "bfloat16"},
        {"dropout": 0.1},
        {"dropout": 0.1, "dtype": "bfloat16"},
        {"dropout": 0.1, "attention_dropout": 0.1},
    ],
)
def test_the_estimate_of_a_pass_is_near_what_autograd_keeps(changes):
    options = replace(SHAPE, batch_size=4, **changes)
    kept = kept_for_the_way_back(options, random_ids(4, 128, 1000))
    needed = need(options, 1000, 128)
    # What the head takes is there for a moment only, but for the embedding's gradient.
    estimate = needed.activations + needed.copy + 4 * 1000 * 128
    assert 0.88 * kept < estimate < 1.12 * kept


def most_held_in_a_pass(options, vocab_size):
    """The most bytes that PyTorch's allocator had given out during a pass, beside what was there before it."""
    network = GPT2(options.model_config(vocab_size)).initialise(1).train()
    loss = Loss(network, options.dtype)
    ids = random_ids(options.batch_size, options.context, vocab_size)
    loss(ids, ids).backward()  # gradients are there, as in every pass but a step's first
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        loss(ids, ids).backward()
    held = most = 0
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("rows", "vocab_size"), [(4, 1000), (16, 1000), (8, 8000)])
def test_the_estimate_of_a_pass_is_near_the_most_that_it_holds(dtype, rows, vocab_size):
    options = replace(SHAPE, batch_size=rows, dtype=dtype, vocab_size=vocab_size)
    needed = need(options, vocab_size, 128)
    most = most_held_in_a_pass(options, vocab_size)
    assert 0.75 * most < needed.copy + needed.batch < 1.3 * most


def test_the_constants_are_those_of_the_loss():
    assert (memory.MOST_LOGITS, memory.PADDING) == (cross_entropy._MOST_LOGITS, cross_entropy._PADDING)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_the_state_is_counted_exactly(optimizer):
    options = replace(SHAPE, optimizer=optimizer)
    network = GPT2(options.model_config(1000)).initialise(1)
    trained = Optimizer(network, options)
    ids = random_ids(1, 8, 1000)
    network.loss(ids, ids).backward()
    weights = sum(parameter.nbytes + parameter.grad.nbytes for parameter in network.parameters())
    for part in trained._parts:
        part.step()
    moments = sum(tensor.nbytes for tensor in trained.state_dict().values() if tensor.numel() > 1)
    needed = need(options, 1000, 128)
    assert needed.weights + needed.gradients == weights
    assert needed.optimizer == moments
    assert needed.state == weights + moments
    assert need(replace(options, dtype="bfloat16"), 1000, 128).copy == weights // 4


def test_shares_of_many_processes_add_up_to_the_whole():
    one, eight = need(SHAPE, 1000, 128), need(replace(SHAPE, batch_size=16), 1000, 128, ranks=8, parallel="fsdp")
    for part in ("weights", "gradients", "optimizer"):
        assert 8 * getattr(eight, part) == getattr(one, part)
    assert eight.activations == one.activations  # each has two sequences, as the one had
    everything = need(replace(SHAPE, batch_size=16), 1000, 128, ranks=8, parallel="ddp")
    assert (everything.state, everything.batch) == (one.state, one.batch)


def test_the_largest_micro_batch_divides_each_share_of_the_batch_and_just_fits():
    options = replace(SHAPE, batch_size=96)
    eight = need(replace(SHAPE, batch_size=8), 1000, 128).total
    assert largest_micro_batch(options, 1000, 128, eight) == 8
    assert largest_micro_batch(options, 1000, 128, eight - 1) == 6
    assert largest_micro_batch(options, 1000, 128, eight, ranks=32) == 3
    assert largest_micro_batch(options, 1000, 128, need(SHAPE, 1000, 128).state) == 0
    # However the batch was given.
    assert largest_micro_batch(replace(options, batch_tokens=96 * 128), 1000, 128, eight) == 8


@pytest.fixture
def machine(monkeypatch):
    """Sets how much memory the machine has, in bytes."""

    def has(size):
        for place in ("memory", "ranks"):
            monkeypatch.setattr(f"gpt2.training.{place}.total_memory", lambda _: size)

    return has


@pytest.mark.parametrize(
    ("changes", "flag"),
    [
        ({"batch_size": 4096}, "--micro-batch-size"),
        ({"n_layer": 5000}, "--n-layer"),
        ({"n_embd": 8192, "n_layer": 1}, "--n-embd"),
    ],
)
def test_what_is_said_to_fit_fits(machine, changes, flag):
    machine(500_000_000)
    options = replace(SHAPE, **changes)
    with pytest.raises(
        BadOption, match=rf"takes about [\d,.]+ GB .*this machine has 0.5 GB in all; .*{flag} \d+"
    ) as caught:
        check_memory(options, CPU, 1000, 128)
    fitting = {name.replace("-", "_"): int(n) for name, n in re.findall(r"--([a-z-]+) (\d+)", str(caught.value))}
    smaller = replace(options, **fitting)
    check_memory(smaller, CPU, 1000, 128)
    needed = need(smaller, 1000, 128)
    assert needed.state + needed.batch <= 500_000_000
    # And it is not needlessly small: twice as much would not fit.
    name = flag.removeprefix("--").replace("-", "_")
    doubled = need(replace(smaller, **{name: 2 * fitting[name]}), 1000, 128)
    assert doubled.state + doubled.batch > 400_000_000


XL = TrainingOptions(n_layer=48, n_head=25, n_embd=1600, context=1024, batch_size=512, dtype="bfloat16")
GPU = torch.device("cuda")


def eight(kind):
    return Ranks(size=8, local_size=8, kind=kind)


@pytest.mark.parametrize(
    ("gigabytes", "kind", "rows"), [(24, "fsdp", 4), (40, "fsdp", 8), (80, "fsdp", 16), (80, "ddp", 8)]
)
def test_the_micro_batch_is_what_fits_as_the_run_is_shared(machine, gigabytes, kind, rows):
    machine(gigabytes * 10**9)
    assert micro_batch(XL, 50257, 1024, GPU, eight(kind)) == rows
    assert need(XL.with_rows(rows, 8), 50257, 1024, 8, kind).total < 0.8 * gigabytes * 10**9
    assert need(XL.with_rows(2 * rows, 8), 50257, 1024, 8, kind).total > 0.8 * gigabytes * 10**9


def test_where_not_even_one_row_fits_it_is_one_and_not_the_whole_share(machine):
    machine(24 * 10**9)
    assert micro_batch(XL, 50257, 1024, GPU, eight("ddp")) == 1


def test_processes_on_one_cpu_share_its_memory(machine):
    options = replace(SHAPE, batch_size=64)
    machine(int(2 * need(options.with_rows(16, 2), 1000, 128, 2).total / 0.8) + 1000)
    assert micro_batch(options, 1000, 128, CPU, Ranks(size=2, local_size=2, kind="ddp")) == 16
    assert micro_batch(options, 1000, 128, CPU, Ranks(size=2, local_size=1, kind="ddp")) == 32


def test_a_cpu_takes_no_more_tokens_at_a_time_than_make_it_quicker(machine):
    machine(None)
    assert micro_batch(replace(SHAPE, batch_size=96), 1000, 128, CPU) == 32
    assert micro_batch(replace(SHAPE, batch_size=96), 1000, 128, GPU) == 96
    assert micro_batch(replace(SHAPE, batch_size=96, context=8192), 1000, 8192, CPU) == 1
    assert micro_batch(replace(SHAPE, batch_size=96, micro_batch_size=48), 1000, 128, CPU) == 48


def test_the_advice_is_for_the_processes_that_there_are(machine):
    machine(24 * 10**9)
    for ranks in (eight("fsdp"), eight("auto")):
        with pytest.raises(
            BadOption, match=r"64 x 1,024 tokens at a time.*cuda has 24.0 GB in all; --micro-batch-size 4 "
        ):
            check_memory(XL, GPU, 50257, 1024, ranks)
    # Shared out, the weights alone are no reason; whole, they are.
    check_memory(XL, GPU, 50257, ranks=eight("auto"))
    with pytest.raises(BadOption, match="would fit"):
        check_memory(XL, GPU, 50257, ranks=eight("ddp"))
    machine(40 * 10**9)
    with pytest.raises(BadOption, match=r"each of the 8 processes on this machine has 5.0 GB in all"):
        check_memory(XL, CPU, 50257, ranks=eight("ddp"))
    with (
        pytest.raises(BadOption, match="--micro-batch-size 8 would fit"),
        explained(XL, GPU, 50257, 1024, "", eight("fsdp")),
    ):
        raise MemoryError


def test_nothing_is_refused_that_has_room_or_whose_room_is_unknown(machine):
    needed = need(SHAPE, 1000, 128)
    machine(needed.state + needed.batch)
    check_memory(SHAPE, CPU, 1000, 128)
    machine(None)
    check_memory(replace(SHAPE, n_layer=5000), CPU, 1000, 128)
    # A long window says nothing before the text is known: rows are as short as the text.
    machine(2_000_000_000)
    check_memory(replace(SHAPE, context=1024, batch_size=2**20), CPU, 1000)


def test_a_model_too_large_is_refused_before_the_data_is_read(tmp_path):
    with pytest.raises(BadOption, match="--n-embd"):
        train(replace(SHORT, n_embd=2**24), [tmp_path / "nowhere.txt"], tmp_path / "run", Recorder())
    assert not (tmp_path / "run").exists()


def test_a_batch_too_large_is_refused_before_there_is_a_folder(tmp_path):
    (tmp_path / "text.txt").write_text(TEXT)
    options = replace(SHORT, batch_size=2**40, micro_batch_size=0)
    with pytest.raises(BadOption, match=r"1,099,511,627,776 sequences a step take .*--batch-size \d+"):
        train(options, [tmp_path / "text.txt"], tmp_path / "run", Recorder())
    assert not (tmp_path / "run").exists()


def test_an_allocator_that_gives_up_is_explained_and_the_advice_holds(tmp_path, monkeypatch):
    (tmp_path / "text.txt").write_text(TEXT)
    real = Loss.forward

    def greedy(self, ids, targets):
        # More rows than one: PyTorch's own error for more than any machine has.
        return torch.empty(2**50) if len(ids) > 1 else real(self, ids, targets)

    monkeypatch.setattr(Loss, "forward", greedy)
    with pytest.raises(BadOption, match="--micro-batch-size 1 would fit") as caught:
        train(SHORT, [tmp_path / "text.txt"], tmp_path / "run", Recorder())
    recipe = tmp_path / "run" / "recipe.toml"
    assert f"Change it in {recipe}, and begin again with `gpt2 train --resume" in str(caught.value)
    recipe.write_text(recipe.read_text().replace("micro_batch_size = 2\n", "micro_batch_size = 1\n"))
    assert resume(tmp_path / "run", Recorder()).step == SHORT.steps


def test_other_errors_pass_as_they_are():
    with pytest.raises(RuntimeError, match="a bug of ours") as caught, explained(SHAPE, CPU, 1000, 128):
        raise RuntimeError("a bug of ours")
    assert not isinstance(caught.value, BadOption)
