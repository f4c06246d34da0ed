"""One process and many: who is who, what is refused, and that nobody waits for ever. The law `ranks` has the rest."""

import subprocess
import sys
import textwrap
import warnings
from datetime import timedelta

import pytest
import torch
from torch.nn.parallel import DistributedDataParallel

from gpt2.config import GPT2Config
from gpt2.errors import BadOption, Notice
from gpt2.model import GPT2
from gpt2.training.loss import Loss
from gpt2.training.processes import first_alone_notices, is_first, told_by_first
from gpt2.training.ranks import Ranks, is_of_others, kind_that_fits, started
from tests.runs import Rank, fork, meeting, wait_all

CPU = torch.device("cpu")
ENVIRONMENT = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@pytest.fixture(autouse=True)
def _outside_of_torchrun(monkeypatch):
    for name in ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("size", [None, "1"])
def test_alone_everything_is_as_it_is(monkeypatch, size):
    if size:
        monkeypatch.setenv("WORLD_SIZE", size)
    network = GPT2(GPT2Config(vocab_size=20, n_positions=4, n_embd=8, n_layer=1, n_head=1)).initialise(0)
    loss = Loss(network, "float32")
    with started("fsdp", CPU) as ranks:
        assert (ranks.rank, ranks.size, ranks.kind, ranks.is_first, ranks.gradient_scale) == (0, 1, "single", True, 1)
        assert ranks.wrap(loss) is loss
        assert ranks.total(torch.tensor(3.0)) == 3
        with ranks.whole(network) as whole:
            assert whole is network
        ranks.barrier()
        assert ranks.agreed((1.5, 2.0)) == (1.5, 2.0)
        assert ranks.heard(None) is None
        assert ranks.heard("a word") == "a word"


@pytest.mark.parametrize(("most", "left"), [(0.0, 5.0), (10.0, 5.0), (2.5, 2.5)])
def test_clip_tells_the_norm_that_was_and_leaves_the_one_that_may_be(most, left):
    parameter = torch.nn.Parameter(torch.zeros(2))
    parameter.grad = torch.tensor([3.0, 4.0])

    assert Ranks().clip([parameter], most) == pytest.approx(5.0)
    assert float(parameter.grad.norm()) == pytest.approx(left, rel=1e-5)


def test_auto_shards_what_would_fill_more_than_half_of_a_device():
    assert kind_that_fits(124_000_000, 80 * 10**9) == "ddp"
    assert kind_that_fits(1_558_000_000, 80 * 10**9) == "ddp"
    assert kind_that_fits(1_558_000_000, 40 * 10**9) == "fsdp"
    assert kind_that_fits(1_558_000_000, None) == "ddp"


def test_the_first_process_decides_what_auto_means(monkeypatch):
    """The memory of another machine may be larger."""
    monkeypatch.setattr(Ranks, "agreed", lambda self, value: "fsdp")
    ranks = Ranks(rank=1, size=2, kind="auto")
    ranks.decide(1000, CPU)
    assert ranks.kind == "fsdp"
    monkeypatch.setattr(Ranks, "agreed", lambda self, value: "ddp")
    ranks.decide(1000, CPU)
    assert ranks.kind == "fsdp"


@pytest.mark.parametrize(
    ("environment", "first"),
    [
        ({}, True),
        ({"RANK": "1"}, True),
        ({"WORLD_SIZE": "1", "RANK": "1"}, True),
        ({"WORLD_SIZE": "2", "RANK": "0"}, True),
        ({"WORLD_SIZE": "2", "RANK": "1"}, False),
    ],
)
def test_who_is_first_and_notices(monkeypatch, environment, first):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert is_first() == first
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        with first_alone_notices():
            warnings.warn("look", Notice, stacklevel=1)
    assert len(heard) == first


def test_whose_error_it_is():
    assert is_of_others(torch.distributed.DistBackendError("x"))
    assert is_of_others(RuntimeError("[third_party/gloo/pair.cc:534] Connection closed by peer"))
    assert is_of_others(RuntimeError("NCCL error in: unhandled system error"))
    assert not is_of_others(RuntimeError("ours"))
    assert not is_of_others(ValueError("gloo"))


def test_who_may_be_quiet_about_what_ends_it(monkeypatch):
    """Under torchrun every process meets the same bad input: the first says it, and the others have heard that."""
    assert not told_by_first("alone")
    server = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    torchrun = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(server.port)}
    for name, value in torchrun.items():
        monkeypatch.setenv(name, value)
    assert not told_by_first("processes that something else started")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    monkeypatch.setattr("gpt2.training.processes._A_MOMENT", timedelta(seconds=0.3))
    assert not told_by_first("this one's own trouble")
    monkeypatch.setenv("RANK", "0")
    assert not told_by_first("there is no such file")
    monkeypatch.setenv("RANK", "1")
    assert told_by_first("there is no such file")


def test_half_an_environment_is_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(BadOption, match="LOCAL_RANK, MASTER_ADDR, MASTER_PORT is not set"), started("auto", CPU):
        pass


@pytest.mark.parametrize(("device", "told"), [("mps", "cannot train on mps"), ("cuda:1", "say cuda")])
def test_a_device_that_processes_cannot_share_is_refused(monkeypatch, device, told):
    for name, value in {
        "WORLD_SIZE": "2",
        "RANK": "0",
        "LOCAL_RANK": "0",
        "MASTER_ADDR": "x",
        "MASTER_PORT": "1",
    }.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(BadOption, match=told), started("auto", torch.device(device)):
        pass


def test_matrices_are_shared_out_and_put_together_again(tmp_path):
    """Three processes, and numbers of rows and matrices that three does not divide. Then the last one fails alone, and
    the others, who wait for it, end as well."""
    script = tmp_path / "three.py"
    script.write_text(
        textwrap.dedent(
            """
            import sys, torch
            from gpt2.errors import BadData, Error
            from gpt2.training.ranks import started

            torch.set_num_threads(1)
            whole = torch.arange(4 * 7 * 2).float().view(4, 7, 2)
            try:
                with started("auto", torch.device("cpu")) as ranks:
                    assert ranks.total(torch.tensor(ranks.rank)) == 3
                    for value in (0.1 + ranks.rank, (1.0, float(ranks.rank)), str(ranks.rank), ranks.rank == 0):
                        assert ranks.agreed(value) in (0.1, (1.0, 0.0), "0", True)
                    assert ranks.heard(None if ranks.rank < 2 else "the last one's word") == "the last one's word"
                    for kind in ("ddp", "fsdp"):
                        ranks.kind = kind
                        for dtype in (torch.float32, torch.bfloat16):
                            stack = whole.to(dtype)
                            # Rows as FSDP has them: 3, 3 and 1.
                            mine = stack if kind == "ddp" else stack[:, ranks.rank * 3 : ranks.rank * 3 + 3]
                            share = ranks.shared_out(mine, 7)
                            given = torch.cat([stack, torch.zeros(2, 7, 2, dtype=dtype)])[ranks.rank * 2 :][:2]
                            assert torch.equal(share, given), (kind, share)
                            assert torch.equal(ranks.together(share + 1, mine), mine + 1), kind
                    print("shared", flush=True)
                    ranks.barrier()
                    if ranks.rank == 2:
                        raise BadData("the data is not there")
                    ranks.barrier()
            except Error as error:
                print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
                sys.exit(1)
            """
        )
    )
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "3"]

    ended = subprocess.run([*torchrun, str(script)], capture_output=True, text=True, timeout=150)

    assert ended.stdout.count("shared") == 3, ended.stderr
    assert ended.returncode != 0
    assert "BadData: the data is not there" in ended.stderr


def test_waiting_in_vain_is_told_as_such(tmp_path):
    script = tmp_path / "slow.py"
    script.write_text(
        textwrap.dedent(
            """
            import sys, time, torch
            from datetime import timedelta
            from gpt2.errors import Error
            from gpt2.training import ranks as room

            room._PATIENCE = timedelta(seconds=12)
            try:
                with room.started("auto", torch.device("cpu")) as ranks:
                    ranks.barrier()
                    if ranks.rank == 1:
                        time.sleep(40)
                    ranks.barrier()
            except Error as error:
                print(error, file=sys.stderr, flush=True)
                sys.exit(1)
            """
        )
    )
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    ended = subprocess.run([*torchrun, str(script)], capture_output=True, text=True, timeout=150)
    assert "Process 0 lost the others: they had not come after 12 seconds, and may hang" in ended.stderr


def opened_and_closed(rank: int, ports: list[int]) -> None:
    torch.set_num_threads(1)
    for port in ports:
        Rank(rank, 2, port)()
        with started("ddp", CPU) as ranks:
            module = DistributedDataParallel(torch.nn.Linear(4, 4), gradient_as_bucket_view=True)
            module(torch.ones(1, 4)).sum().backward()
            ranks.agreed(1)
            ranks.barrier()
        del module  # the last that holds the group


def test_closing_does_not_wait_for_a_thread_that_waits_for_us(tmp_path):
    """What gloo's threads still hold when a group is closed."""
    stores = [meeting() for _ in range(25)]
    ports = [store.port for store in stores]
    wait_all([fork(tmp_path / f"said-{rank}", opened_and_closed, rank, ports) for rank in range(2)], 60)
