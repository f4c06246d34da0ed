"""What a token costs, by the formula and by PyTorch's own count of our pass; peaks by exact names; the meter."""

import mmap

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from gpt2.config import SIZES, GPT2Config
from gpt2.errors import BadOption
from gpt2.model import GPT2
from gpt2.training import devices
from gpt2.training.flops import counted_parameters, explain, flops_per_token, products
from gpt2.training.loss import Loss
from gpt2.training.meter import Meter, used_memory
from tests.helpers import random_ids

CONFIG = GPT2Config(vocab_size=500, n_positions=64, n_embd=96, n_layer=3, n_head=4)
CPU = torch.device("cpu")

# PyTorch's counter knows the kernels of GPUs by itself, and the CPU's has the same products.
aten = torch.ops.aten
ATTENTION = {
    aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v),
    aten._scaled_dot_product_flash_attention_for_cpu_backward: (
        lambda grad, q, k, v, *_, **__: sdpa_backward_flop_count(grad, q, k, v)
    ),
}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("window", [64, 40])
def test_the_products_are_those_that_pytorch_counts_in_our_pass(dtype, window):
    loss = Loss(GPT2(CONFIG).initialise(1).train(), dtype)
    ids = random_ids(2, window, 500)
    with FlopCounterMode(display=False, custom_mapping=ATTENTION) as forward:
        value = loss(ids, ids)
    with FlopCounterMode(display=False, custom_mapping=ATTENTION) as backward:
        value.backward()
    counted = products(CONFIG, window)
    tokens = ids.numel()
    assert forward.get_total_flops() == counted.forward * tokens
    assert backward.get_total_flops() == counted.backward * tokens
    assert counted.total == counted.forward + counted.backward


@pytest.mark.parametrize(("size", "published"), [("gpt2", 0.855e9), ("gpt2-xl", 10.28e9)])
def test_the_formula_gives_what_others_state_for_the_papers_sizes(size, published):
    config = SIZES[size].config
    assert flops_per_token(config, 1024) == pytest.approx(published, rel=1e-3)
    # And it is near what is computed; the head's padding and attention's recomputation are the difference.
    assert products(config, 1024).total == pytest.approx(flops_per_token(config, 1024), rel=0.05)


def test_the_formula_counts_every_parameter_once_but_the_positions():
    network = GPT2(CONFIG)
    counted = sum(p.numel() for name, p in network.named_parameters() if name != "wpe.weight")
    assert counted_parameters(CONFIG) == counted
    assert f"N = {counted:,}" in explain(CONFIG, 64)
    assert "6 N + 12 L T C" in explain(CONFIG, 64)


@pytest.mark.parametrize(
    ("name", "kind", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", "h100", 989e12),
        ("NVIDIA H100 PCIe", "h100-pcie", 756e12),
        ("NVIDIA H200", "h200", 989e12),
        ("NVIDIA B200", "b200", 2250e12),
        ("NVIDIA A100-SXM4-80GB", "a100", 312e12),
        ("NVIDIA A100-PCIE-40GB", "a100-pcie-40", 312e12),
        ("NVIDIA L4", "l4", 121e12),
        ("NVIDIA L40S", "l40s", 362e12),
        ("NVIDIA GeForce RTX 4090", "rtx4090", 165.2e12),
        ("AMD Instinct MI300X", "mi300x", 1307.4e12),
    ],
)
def test_known_devices_are_found_by_the_name_that_pytorch_gives(name, kind, peak):
    device = devices.find(name)
    assert (device.kind, device.peak) == (kind, peak)
    assert device is devices.of_kind(kind.upper())


@pytest.mark.parametrize(
    "name",
    [
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "NVIDIA GeForce RTX 4090 D",
        "NVIDIA GeForce RTX 3090 Ti",
        "NVIDIA H100 80GB HBM3 MIG 3g.40gb",
        "NVIDIA A10G",
        "NVIDIA L40S-24Q",
        "Tesla T4",
        "",
    ],
)
def test_other_chips_of_similar_names_have_no_peak(name):
    assert devices.find(name) is None


def test_every_device_is_told_once_and_with_its_source():
    assert len({device.kind for device in devices.DEVICES}) == len(devices.DEVICES)
    for device in devices.DEVICES:
        assert "data sheet" in device.source or "architecture paper" in device.source
    with pytest.raises(BadOption, match=r"'tpu'.*h100.*mi300x"):
        devices.of_kind("tpu")


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


def meter(clock, **changes):
    given = {"tokens_per_step": 128, "device": CPU, "dtype": "float32", "clock": clock} | changes
    return Meter(CONFIG, 64, **given)


def test_speed_counts_steps_and_the_time_left_counts_pauses_too():
    clock = Clock()
    run = meter(clock)
    run.start(10, 14)
    clock.now += 60  # compiling
    facts = run.step(11)
    assert facts["tokens_per_second"] == pytest.approx(128 / 60)
    assert "seconds_left" not in facts
    clock.now += 2
    facts = run.step(12)
    assert facts["tokens_per_second"] == pytest.approx(64)
    assert facts["flops_per_second"] == pytest.approx(64 * flops_per_token(CONFIG, 64))
    assert facts["seconds_left"] == pytest.approx(2 * 2)
    with run.paused():
        clock.now += 4
    clock.now += 2
    facts = run.step(13)
    assert facts["tokens_per_second"] == pytest.approx(64)
    assert facts["seconds_left"] == pytest.approx((2 + 4 + 2) / 2)


def test_a_system_clock_that_jumps_changes_nothing(monkeypatch):
    run = Meter(CONFIG, 64, 128, CPU, "float32")
    run.start(0, 100)
    for step, wall in enumerate([1e9, 2e9, 0.0, 1e9], 1):
        monkeypatch.setattr("time.time", lambda wall=wall: wall)
        facts = run.step(step)
        assert facts["tokens_per_second"] > 0
        assert 0 <= facts.get("seconds_left", 0) < 1000


def test_a_cpu_gets_a_rate_and_its_formula_and_no_percentage():
    run = meter(Clock())
    run.start(0, 1)
    facts = run.step(1)
    assert facts["flops_per_second"] > 0
    assert "mfu" not in facts
    assert run.describe() == f"{explain(CONFIG, 64)}; peak not known"
    assert "%" not in run.describe()
    assert run.step(1)["memory"] == pytest.approx(used_memory(CPU), rel=0.2)


@pytest.mark.parametrize(
    ("name", "dtype", "share"),
    [
        ("NVIDIA H100 80GB HBM3", "bfloat16", True),
        ("NVIDIA H100 80GB HBM3", "float32", False),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", "bfloat16", False),
    ],
)
def test_utilisation_is_told_of_known_peaks_alone(monkeypatch, name, dtype, share):
    monkeypatch.setattr("torch.cuda.get_device_name", lambda _: name)
    monkeypatch.setattr("torch.cuda.max_memory_allocated", lambda _: 7)
    clock = Clock()
    run = meter(clock, device=torch.device("cuda"), dtype=dtype, ranks=2)
    run.start(0, 9)
    clock.now += 1
    facts = run.step(1)
    assert facts["memory"] == 7
    assert ("mfu" in facts) == share
    if share:
        assert facts["mfu"] == pytest.approx(128 * flops_per_token(CONFIG, 64) / (2 * 989e12))
        assert "989 TFLOP/s x 2" in run.describe()
        assert "6 N + 12 L T C" in run.describe()
    else:
        assert run.describe().endswith("; peak not known")


def test_memory_in_use_grows_with_what_is_held():
    # Pages from the system: an array may lie in memory that was freed before and is counted already.
    size = 2**26
    with mmap.mmap(-1, size) as held:
        before = used_memory(CPU)
        held.write(b"1" * size)
        assert used_memory(CPU) - before > 0.8 * size
