"""GPUs as their makers describe them: dense bfloat16 peak, memory, links; and what has been reached on them.

A device is known by the exact name that PyTorch gives it. Whatever is not in the table has no peak here, so that
nobody is told an invented percentage: a laptop's RTX 4090 is another chip than the card of that name.
"""

import re
from dataclasses import dataclass

from gpt2.errors import BadOption


@dataclass(frozen=True, slots=True)
class Device:
    """A kind of GPU.

    peak: dense bfloat16 FLOP/s with float32 sums (data sheets print twice that, "with sparsity"). memory: bytes.
    bandwidth: bytes/s of that memory. link: bytes/s one way to the other GPUs of a machine. price: dollars an hour, an
    assumption to plan with. mfu: shares of the peak that published training runs reached, by millions of parameters.
    """

    kind: str
    title: str
    names: str
    peak: float
    memory: float
    bandwidth: float
    link: float
    source: str
    price: float
    mfu: tuple[tuple[int, float], ...] = ()


# What llm.c's runs of 124M and 1,558M reached on 8 GPUs, by our formula: 140 ms a step of 524,288 tokens (its record of
# October 2024), and 2.80 s a step of 1,048,576 tokens (scripts/run_gpt2_1558M.sh).
_H100_RUNS = ((124, 0.405), (1558, 0.487))
# Its first run of 124M on 8 A100: 10 billion tokens in 90 minutes.
_A100_RUNS = ((124, 0.63),)

# Its 124M on an RTX 4090 with cuDNN's attention: 144 thousand tokens/s (pull request 322).
_4090_RUNS = ((124, 0.745),)

# `names` match the whole of torch.cuda.get_device_name(). Links: NVLink's published rate is of both ways together.
DEVICES: tuple[Device, ...] = (
    Device("h100", "H100 SXM", r"NVIDIA H100 80GB HBM3", 989e12, 80e9, 3.35e12, 450e9,
           "NVIDIA H100 data sheet: 1,979 TFLOPS with sparsity; NVLink 900 GB/s", 3.50, _H100_RUNS),
    Device("h100-pcie", "H100 PCIe", r"NVIDIA H100 PCIe", 756e12, 80e9, 2.0e12, 64e9,
           "NVIDIA H100 data sheet: 1,513 TFLOPS with sparsity; PCIe 5 128 GB/s", 2.50, _H100_RUNS),
    Device("h100-nvl", "H100 NVL", r"NVIDIA H100 NVL", 835e12, 94e9, 3.9e12, 64e9,
           "NVIDIA H100 data sheet: 1,671 TFLOPS with sparsity; PCIe 5 128 GB/s", 3.00, _H100_RUNS),
    Device("h200", "H200 SXM", r"NVIDIA H200", 989e12, 141e9, 4.8e12, 450e9,
           "NVIDIA H200 data sheet: 1,979 TFLOPS with sparsity; NVLink 900 GB/s", 4.00, _H100_RUNS),
    Device("h200-nvl", "H200 NVL", r"NVIDIA H200 NVL", 835e12, 141e9, 4.8e12, 64e9,
           "NVIDIA H200 data sheet: 1,671 TFLOPS with sparsity; PCIe 5 128 GB/s", 3.50, _H100_RUNS),
    Device("gh200", "GH200", r"NVIDIA GH200 (480GB|144G HBM3e)", 990e12, 96e9, 4.0e12, 64e9,
           "NVIDIA GH200 data sheet: 1,979 TFLOPS with sparsity", 3.50, _H100_RUNS),
    Device("b200", "B200", r"NVIDIA B200", 2250e12, 180e9, 7.7e12, 900e9,
           "NVIDIA HGX B200 data sheet: 4.5 PFLOPS a GPU with sparsity; NVLink 1.8 TB/s", 6.00),
    Device("gb200", "GB200", r"NVIDIA GB200", 2500e12, 186e9, 8.0e12, 900e9,
           "NVIDIA GB200 NVL72 data sheet: 5 PFLOPS a GPU with sparsity; NVLink 1.8 TB/s", 7.00),
    Device("a100", "A100 SXM 80 GB", r"NVIDIA A100-SXM4-80GB|NVIDIA A100-SXM-80GB", 312e12, 80e9, 2.039e12, 300e9,
           "NVIDIA A100 data sheet: 312 TFLOPS; NVLink 600 GB/s", 1.75, _A100_RUNS),
    Device("a100-40", "A100 SXM 40 GB", r"NVIDIA A100-SXM4-40GB|A100-SXM4-40GB", 312e12, 40e9, 1.555e12, 300e9,
           "NVIDIA A100 data sheet: 312 TFLOPS; NVLink 600 GB/s", 1.25, _A100_RUNS),
    Device("a100-pcie", "A100 PCIe 80 GB", r"NVIDIA A100 80GB PCIe", 312e12, 80e9, 1.935e12, 32e9,
           "NVIDIA A100 data sheet: 312 TFLOPS; PCIe 4 64 GB/s", 1.50, _A100_RUNS),
    Device("a100-pcie-40", "A100 PCIe 40 GB", r"(NVIDIA )?A100-PCIE-40GB", 312e12, 40e9, 1.555e12, 32e9,
           "NVIDIA A100 data sheet: 312 TFLOPS; PCIe 4 64 GB/s", 1.25, _A100_RUNS),
    Device("l4", "L4", r"NVIDIA L4", 121e12, 24e9, 0.3e12, 32e9,
           "NVIDIA L4 data sheet: 242 TFLOPS with sparsity; PCIe 4 64 GB/s", 0.80),
    Device("l40s", "L40S", r"NVIDIA L40S", 362e12, 48e9, 0.864e12, 32e9,
           "NVIDIA L40S data sheet: 362.05 TFLOPS; PCIe 4 64 GB/s", 1.50),
    Device("l40", "L40", r"NVIDIA L40", 181e12, 48e9, 0.864e12, 32e9,
           "NVIDIA L40 data sheet: 181.05 TFLOPS; PCIe 4 64 GB/s", 1.20),
    Device("a10", "A10", r"NVIDIA A10", 125e12, 24e9, 0.6e12, 32e9,
           "NVIDIA A10 data sheet: 125 TFLOPS; PCIe 4 64 GB/s", 0.80),
    Device("rtx5090", "GeForce RTX 5090", r"NVIDIA GeForce RTX 5090", 209.5e12, 32e9, 1.792e12, 64e9,
           "NVIDIA RTX Blackwell architecture paper: 209.5 TFLOPS with FP32 accumulate; PCIe 5 128 GB/s", 0.80),
    Device("rtx4090", "GeForce RTX 4090", r"NVIDIA GeForce RTX 4090", 165.2e12, 24e9, 1.008e12, 32e9,
           "NVIDIA Ada architecture paper: 165.2 TFLOPS with FP32 accumulate; PCIe 4 64 GB/s", 0.50, _4090_RUNS),
    Device("rtx3090", "GeForce RTX 3090", r"NVIDIA GeForce RTX 3090", 71e12, 24e9, 0.936e12, 32e9,
           "NVIDIA GA102 architecture paper: 71 TFLOPS with FP32 accumulate; PCIe 4 64 GB/s", 0.30),
    Device("mi300x", "Instinct MI300X", r"AMD Instinct MI300X( OAM)?", 1307.4e12, 192e9, 5.3e12, 448e9,
           "AMD Instinct MI300X data sheet: 1,307.4 TFLOPS; Infinity Fabric 896 GB/s", 3.00),
    Device("mi325x", "Instinct MI325X", r"AMD Instinct MI325X( OAM)?", 1307.4e12, 256e9, 6.0e12, 448e9,
           "AMD Instinct MI325X data sheet: 1,307.4 TFLOPS; Infinity Fabric 896 GB/s", 3.50),
)  # fmt: skip


def find(name: str) -> Device | None:
    """The device that PyTorch calls `name`; None for one that is not known here, a share of a card among them."""
    return next((device for device in DEVICES if re.fullmatch(device.names, name)), None)


def of_kind(kind: str) -> Device:
    """The device that `--kind` names. Raises BadOption, with the kinds there are, for another."""
    for device in DEVICES:
        if device.kind == kind.lower():
            return device
    known = ", ".join(device.kind for device in DEVICES)
    raise BadOption(f"No data sheet of {kind!r} is known here; choose one of {known}.")
