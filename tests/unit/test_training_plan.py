"""Plans for GPUs elsewhere: published runs come out as published, and the parts add up; the probe on this machine."""

from dataclasses import replace

import pytest
import torch

from gpt2.config import SIZES
from gpt2.errors import BadOption
from gpt2.training import TrainingOptions, probe
from gpt2.training.devices import DEVICES, of_kind
from gpt2.training.memory import need
from gpt2.training.plan import Cluster, assumptions, plan

CPU = torch.device("cpu")


def shape(size):
    config = SIZES[size].config
    return {"n_layer": config.n_layer, "n_head": config.n_head, "n_embd": config.n_embd, "context": 1024}


XL = TrainingOptions(**shape("gpt2-xl"), batch_size=1024, steps=32_000, dtype="bfloat16")
SMALL = TrainingOptions(**shape("gpt2"), batch_size=512, steps=19_560, dtype="bfloat16")
TINY = TrainingOptions(n_layer=1, n_head=2, n_embd=32, context=16, vocab_size=300, batch_size=8)


@pytest.mark.parametrize(
    ("options", "kind", "seconds", "hours"),
    # llm.c's scripts and logs: 2.80 s and 24 hours; 140 ms and 45 minutes; 90 minutes of 8 A100.
    [(XL, "h100", 2.80, 24.9), (SMALL, "h100", 0.140, 0.76), (SMALL, "a100", 0.284, 1.54)],
)
def test_published_runs_come_out_as_published(options, kind, seconds, hours):
    planned = plan(options, 50257, Cluster(of_kind(kind)), "ddp")
    assert planned.fits
    assert planned.step_seconds == pytest.approx(seconds, rel=0.06)
    assert planned.hours == pytest.approx(hours, rel=0.06)
    assert planned.tokens_per_second == pytest.approx(planned.tokens_per_step / planned.step_seconds)
    assert planned.cost == pytest.approx(planned.hours * 8 * of_kind(kind).price)


def test_what_a_gpu_sends_is_what_ring_collectives_send():
    parameters = SIZES["gpt2-xl"].config.parameters
    ddp = plan(XL, 50257, Cluster(of_kind("h100")), "ddp")
    assert ddp.sent == pytest.approx(2 * 7 / 8 * 4 * parameters)
    fsdp = plan(XL, 50257, Cluster(of_kind("h100")), "fsdp")
    embeddings = (50257 + 1024) * 1600
    each = 7 / 8 * (2 * 2 * (parameters - embeddings) + 4 * embeddings + 4 * parameters)
    assert fsdp.sent == pytest.approx(fsdp.passes * each)
    assert plan(replace(XL, batch_size=8), 50257, Cluster(of_kind("h200"), gpus=1), "ddp").sent == 0
    # Muon's updates travel besides.
    muon = plan(replace(XL, optimizer="muon"), 50257, Cluster(of_kind("h100")), "ddp")
    assert muon.sent - ddp.sent == pytest.approx(7 / 8 * 2 * 12 * 48 * 1600**2)


def test_a_slow_network_is_waited_for_and_a_quick_one_is_not():
    cluster = Cluster(of_kind("h100"), gpus=64)
    quick = plan(XL, 50257, cluster, "ddp")
    assert quick.exposed_seconds == 0
    slow = plan(XL, 50257, replace(cluster, network=1e9), "ddp")
    # 8 GB/s of each machine, 70 % of it reached, for 12.3 GB; two thirds of a pass hide some.
    assert slow.exposed_seconds == pytest.approx(slow.sent / 5.6e9 - 2 / 3 * slow.compute_seconds / slow.passes)
    assert slow.tokens_per_second < 0.3 * quick.tokens_per_second
    # Inside one machine the network does not matter.
    assert plan(XL, 50257, replace(cluster, gpus=8, network=1), "ddp").exposed_seconds == 0


def test_the_largest_micro_batch_fits_and_the_next_one_would_not():
    cluster = Cluster(of_kind("h100"))
    planned = plan(XL, 50257, cluster, "ddp")
    assert planned.rows * planned.passes * 8 == 1024
    assert planned.fits
    assert planned.need.total <= 0.9 * 80e9
    doubled = plan(replace(XL, micro_batch_size=2 * planned.rows), 50257, cluster, "ddp")
    assert doubled.rows == 2 * planned.rows
    assert not doubled.fits
    # Shards leave more room: what each GPU holds is counted by the same function.
    sharded = plan(XL, 50257, cluster, "fsdp")
    assert sharded.need.state < planned.need.state / 4
    rows = replace(XL, batch_size=8 * sharded.rows, micro_batch_size=sharded.rows)
    assert sharded.need == need(rows, 50257, 1024, 8, "fsdp")
    assert not plan(XL, 50257, Cluster(of_kind("rtx3090")), "ddp").fits


def test_what_is_assumed_is_told():
    told = "\n".join(assumptions(Cluster(of_kind("h100"), gpus=64), SIZES["gpt2-xl"].config.parameters))
    for part in ("data sheet", "989 TFLOP/s", "49%", "llm.c", "400 Gbit/s", "$3.50", "assumption"):
        assert part in told
    given = "\n".join(assumptions(Cluster(of_kind("b200"), mfu=0.5, price=2), 124_000_000))
    assert "50% of that peak while computing (given)" in given
    assert "$2.00 a GPU-hour (given)" in given
    for device in DEVICES:
        share, source = Cluster(device).reached(500_000_000)
        assert 0.2 < share < 0.8
        assert "llm.c" in source or "assumed" in source


def test_a_published_share_is_taken_between_two_sizes_by_their_ratio():
    cluster = Cluster(of_kind("h100"))
    small, middle, large = (cluster.reached(int(n * 1e6))[0] for n in (124, 440, 1558))
    assert small < middle < large
    assert middle == pytest.approx((small + large) / 2, abs=0.002)
    assert cluster.reached(10_000)[0] == small
    assert cluster.reached(10**11)[0] == large


def test_what_cannot_be_shared_out_is_refused():
    with pytest.raises(BadOption, match="1024 sequences cannot be shared evenly by 6 GPUs"):
        plan(XL, 50257, Cluster(of_kind("h100"), gpus=6), "ddp")
    with pytest.raises(BadOption, match="12 GPUs are no whole number of machines with 8"):
        Cluster(of_kind("h100"), gpus=12)


def test_the_probe_takes_steps_and_tells_medians():
    result = probe.probe(TINY, 300, CPU, rows=4, steps=3)
    assert (result.rows, result.steps) == (4, 3)
    assert result.pass_seconds > 0
    assert result.update_seconds > 0
    assert result.step_seconds(8) == pytest.approx(2 * result.pass_seconds + result.update_seconds)
    # Whatever the clock says, two steps are taken, or there would be nothing to tell.
    assert probe.probe(TINY, 300, CPU, rows=1, steps=20, seconds=0).steps == 2


@pytest.mark.parametrize(("estimate", "room"), [(4, 8), (8, 2), (1, 8), (24, 24), (5, 0)])
def test_trying_finds_what_runs_from_any_estimate(monkeypatch, estimate, room):
    tried = []

    class Trial:
        def __init__(self, options, vocab_size, device, rows):
            tried.append(rows)
            if rows > room:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")

        def step(self):
            pass

    monkeypatch.setattr(probe, "_Trial", Trial)
    assert probe.largest_that_runs(TINY, 300, CPU, 24, estimate) == room
    assert len(tried) == len(set(tried))


def test_trying_hides_no_other_error(monkeypatch):
    def broken(*_):
        raise RuntimeError("a bug of ours")

    monkeypatch.setattr(probe, "_Trial", broken)
    with pytest.raises(RuntimeError, match="a bug of ours"):
        probe.largest_that_runs(TINY, 300, CPU, 8, 4)
