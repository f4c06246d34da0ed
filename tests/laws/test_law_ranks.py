"""Law `ranks`: one process and N train alike, by every recipe, under DDP and FSDP2: 1e-4 in loss over 50 steps.

Two processes on gloo are started once, take all cases, and leave their losses in a file.
"""

import dataclasses
import functools
import json
import os
import socket
from pathlib import Path

import pytest
import torch
import torch.multiprocessing

from gpt2.model import GPT2
from gpt2.training.options import TrainingOptions, read_recipe, recipe_names
from gpt2.training.ranks import Ranks, started
from gpt2.training.step import Step

STEPS, ROWS, CONTEXT, VOCABULARY = 50, 8, 16, 61
KINDS = ("ddp", "fsdp")
TINY = {
    "init": "",
    "n_layer": 1,
    "n_head": 2,
    "n_embd": 24,
    "context": CONTEXT,
    "vocab_size": VOCABULARY,
    "batch_tokens": 0,
    "batch_size": ROWS,
    "steps": STEPS,
    "warmup_steps": 5,
    "learning_rate": 3e-3,
    "device": "cpu",
    "dtype": "float32",
    "compile": False,
}
# What no recipe has and the law holds for all the same: both kinds of dropout, rows that do not divide, no clipping.
OWN = {
    "adamw with all dropout": {"n_layer": 2, "dropout": 0.1, "attention_dropout": 0.1, "micro_batch_size": 2},
    "muon without clipping": {"n_layer": 2, "optimizer": "muon", "grad_clip": 0.0, "n_embd": 21, "n_head": 1},
}


def options_of(case: str) -> TrainingOptions:
    """A recipe's options on a tiny shape, its batch cut down to `ROWS` rows in as many micro-batches."""
    if case in OWN:
        return TrainingOptions.from_mapping(TINY | OWN[case], case)
    recipe = TrainingOptions.from_mapping(read_recipe(case), case)
    rows = ROWS * recipe.micro_batch_size // recipe.batch_size
    tiny = {"micro_batch_size": rows and max(1, rows)}
    return TrainingOptions.from_mapping(read_recipe(case) | TINY | tiny, case)


def batch(step: int, rows: range) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of a step's batch: numbers that can be learnt, with targets spread unevenly."""
    random = torch.Generator().manual_seed(step)
    start = torch.randint(VOCABULARY, (ROWS, 1), generator=random)
    ids = (start + torch.arange(CONTEXT + 1) * (1 + start % 3)) % VOCABULARY
    targets = ids[:, 1:].clone()
    for row in range(ROWS):
        targets[row, : row * 2] = -100
    return ids[rows.start : rows.stop, :-1], targets[rows.start : rows.stop]


def network_of(options: TrainingOptions) -> GPT2:
    return GPT2(options.model_config(VOCABULARY)).initialise(options.seed)


def losses(step: Step, first: int, last: int) -> list[float]:
    return [step(number, *batch(number, step.rows)).loss for number in range(first, last)]


def save(step: Step, folder: Path) -> None:
    """As a checkpoint is saved: the first process writes the weights."""
    if step.ranks.is_first:
        folder.mkdir()
    step.ranks.barrier()
    step.optimizer.save(folder)
    with step.ranks.whole(step.network) as whole:
        if whole is not None:
            torch.save(whole.state_dict(), folder / "weights.pt")
    step.ranks.barrier()


def load(options: TrainingOptions, ranks: Ranks, folder: Path) -> Step:
    network = network_of(options)
    network.load_state_dict(torch.load(folder / "weights.pt", weights_only=True))
    step = Step(network, options, ranks)
    step.optimizer.load(folder)
    return step


def one_of_two(rank: int, port: int, folder: Path) -> None:
    """What each of the two processes does."""
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    found = {}
    with started("auto", torch.device("cpu")) as ranks:
        for kind in KINDS:
            both = dataclasses.replace(ranks, kind=kind)
            for case in cases():
                options = options_of(case)
                step = Step(network_of(options), options, both)
                found[f"{case}/{kind}"] = losses(step, 0, STEPS)
            for optimizer in ("adamw", "muon"):
                found[f"{optimizer}/{kind}/resumed"] = two_one_two(optimizer, both, folder)
    if rank == 0:
        (folder / "found.json").write_text(json.dumps(found))


def two_one_two(optimizer: str, both: Ranks, folder: Path) -> list[float]:
    """The losses of a run that goes on from two processes to one, and to two again."""
    options = resumed_options(optimizer)
    name = f"{optimizer}-{both.kind}"
    step = Step(network_of(options), options, both)
    found = losses(step, 0, 20)
    save(step, folder / f"{name}-20")
    if both.is_first:
        alone = load(options, Ranks(), folder / f"{name}-20")
        found += losses(alone, 20, 35)
        save(alone, folder / f"{name}-35")
    both.barrier()
    return found + losses(load(options, both, folder / f"{name}-35"), 35, STEPS)


def resumed_options(optimizer: str) -> TrainingOptions:
    return dataclasses.replace(options_of("adamw with all dropout"), optimizer=optimizer, micro_batch_size=4)


@functools.cache
def losses_of_one(options: TrainingOptions) -> list[float]:
    """Those of a run on one process that never stops."""
    return losses(Step(network_of(options), options, Ranks()), 0, STEPS)


def cases() -> list[str]:
    return [*recipe_names(), *OWN]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def of_two(folder) -> dict[str, list[float]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(one_of_two, (port, folder), nprocs=2)
    return json.loads((folder / "found.json").read_text())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", cases())
def test_two_processes_lose_what_one_does(of_two, case, kind):
    one = losses_of_one(options_of(case))

    assert one[-1] < one[0] - 0.1, "nothing was learnt, so nothing was compared"
    assert of_two[f"{case}/{kind}"] == pytest.approx(one, abs=1e-4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_two_then_one_then_two_processes_are_one_that_never_stopped(of_two, optimizer, kind):
    one = losses_of_one(resumed_options(optimizer))

    assert of_two[f"{optimizer}/{kind}/resumed"] == pytest.approx(one, abs=1e-4)


def test_no_process_writes_a_pickle(of_two, folder):
    written = sorted(file.name for file in (folder / "muon-fsdp-20").iterdir())

    shards = [f"shard-0000{number}-model-00001-of-00001.safetensors" for number in (1, 2)]
    assert written == [*shards, "weights.pt"]  # the weights are this test's own
    assert sorted(file.name for file in (folder / "muon-ddp-20").iterdir()) == ["optimizer.safetensors", "weights.pt"]
