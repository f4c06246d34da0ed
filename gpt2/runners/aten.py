"""`AtenRunner`: int8 and int4 models on every machine, by PyTorch's own kernels for packed weights. No C of ours.

The projections multiply rows in bfloat16 with packed weights (`_weight_int8pack_mm`, `_weight_int4pack_mm_for_cpu`);
everything between them, and the head, is float32. Where a kernel is missing, or does not give what a test matrix must
give, weights are widened to float32 piece by piece instead: exact, and slower. Sums of the kernels are float32, so
bfloat16's rounding of rows and results is all that they lose: about 0.4 % of a projection's largest output.
"""

from collections.abc import Iterator
from functools import cache
from typing import TYPE_CHECKING, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpt2.errors import BadOption
from gpt2.model import GPT2, Projection
from gpt2.runners.packed import Layout, packed
from gpt2.runners.plain import PlainRunner
from gpt2.runners.quantise import GROUP, Matrix, dequantise, int4_groups, int8_columns

if TYPE_CHECKING:
    from gpt2.checkpoint import LanguageModel

# Weights that are widened at once: float32 of this many stay in the processor's cache.
_CHUNK = 1 << 19


class AtenRunner(PlainRunner):
    """Runs a quantised model (`dtype` "int8" or "int4") on the CPU, its keys and values float32; see `PlainRunner`.

    exact: True widens weights to float32 and uses no kernel (None: only where a kernel is no use).
    Raises BadOption for a model of another dtype, BadCheckpoint for weights that are not finite.
    """

    name = "aten"

    def __init__(self, model: "LanguageModel", slots: int, *, exact: bool | None = None) -> None:
        if model.dtype not in ("int8", "int4"):
            raise BadOption(f"The aten runner runs int8 and int4 models, and this one is {model.dtype}.")
        kernel = not exact and _kernel_works("int8") and _kernel_works(model.dtype)
        tensors = packed(model, _layout(model.dtype, kernel))
        with torch.device("meta"):
            network = GPT2(model.config)
        for name, module in list(network.named_modules()):
            if isinstance(module, Projection):
                parent, _, leaf = name.rpartition(".")
                setattr(
                    network.get_submodule(parent),
                    leaf,
                    _Projection(name, tensors, model.dtype),
                )
        self._embedding = _Embedding(tensors)
        network.wte = cast("nn.Embedding", self._embedding)
        network.load_state_dict({name: tensors[name] for name in network.state_dict()}, assign=True)
        super().__init__(network.requires_grad_(False).eval(), slots)
        self.dtype = model.dtype

    def _logits(self, hidden_NC: Tensor) -> Tensor:
        return _by_widening(hidden_NC, self._embedding.q_VC, self._embedding.scale_V)


class _Projection(nn.Module):
    """A `Projection` with packed weights."""

    def __init__(self, name: str, tensors: dict[str, Tensor], width: str) -> None:
        super().__init__()
        self.width = width
        self.kernel = tensors.get(f"{name}.kernel")
        self.q_NK = tensors.get(f"{name}.q")
        self.scale, self.bias = tensors[f"{name}.scale"], nn.Parameter(tensors[f"{name}.bias"], requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        if self.kernel is not None:
            y = _by_kernel(self.width, rows, self.kernel, self.scale) + self.bias
        else:
            assert self.q_NK is not None
            y = _by_widening(rows, self.q_NK, self.scale) + self.bias
        return y.view(*x.shape[:-1], -1)


class _Embedding(nn.Module):
    """The embedding as rows of int8, which are looked up, and multiplied with as the head."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        super().__init__()
        self.q_VC, self.scale_V = tensors["wte.q"], tensors["wte.scale"]
        # Where a network looks for its dtype and its device: float32, on the CPU.
        self.weight = torch.empty(0)

    def forward(self, ids: Tensor) -> Tensor:
        return self.q_VC[ids].float() * self.scale_V[ids].unsqueeze(-1)


def _layout(dtype: str, kernel: bool) -> Layout:
    # PyTorch packs int4 as the processor likes it.
    how = f"kernel-{torch.backends.cpu.get_cpu_capability().lower()}" if kernel else "exact"

    def pack(name: str, found: Tensor | Matrix) -> Iterator[tuple[str, Tensor]]:
        if not isinstance(found, Matrix):
            yield name, found
            return
        stem = name.removesuffix(".weight")
        q_KN, scale = found
        # Of other shapes the kernels read past the end of the matrix (seen in PyTorch 2.13).
        if kernel and name != "wte.weight" and q_KN.shape[0] % 64 == 0 and q_KN.shape[1] % 64 == 0:
            made, scale = _for_kernel(dtype, q_KN, scale)
            yield f"{stem}.kernel", made
        else:
            yield f"{stem}.q", q_KN.t()
        yield f"{stem}.scale", scale

    return Layout(f"aten-{dtype}-{how}", pack)


def _for_kernel(width: str, q_KN: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    q_NK = q_KN.t().contiguous()
    if width == "int8":
        return q_NK, scale.bfloat16()
    made = torch.ops.aten._convert_weight_to_int4pack_for_cpu(q_NK.int() + 8, 1)
    return made, torch.stack([scale, torch.zeros_like(scale)], dim=-1).bfloat16()


def _by_kernel(width: str, x_MK: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    x_MK = x_MK.bfloat16()
    if width == "int8":
        y_MN: Tensor = torch.ops.aten._weight_int8pack_mm(x_MK, weight, scale)
    else:
        y_MN = torch.ops.aten._weight_int4pack_mm_for_cpu(x_MK, weight, GROUP, scale)
    return y_MN.float()


def _by_widening(x_MK: Tensor, q_NK: Tensor, scale: Tensor) -> Tensor:
    """x W in float32, a piece of the outputs at a time."""
    N, K = q_NK.shape
    y_MN = torch.empty(x_MK.shape[0], N)
    step = max(1, _CHUNK // K)
    for start in range(0, N, step):
        part = slice(start, start + step)
        if scale.ndim == 1:
            y_MN[:, part] = F.linear(x_MK, q_NK[part].float()) * scale[part]
        else:
            y_MN[:, part] = x_MK @ dequantise(q_NK[part].t(), scale[:, part])
    return y_MN


@cache
def _kernel_works(width: str) -> bool:
    """Whether the kernel is here and gives what it must, for one row and for many."""
    K, N = 128, 64
    weight_KN = torch.sin(torch.arange(K * N, dtype=torch.float32)).view(K, N)
    q_KN, scale = int8_columns(weight_KN) if width == "int8" else int4_groups(weight_KN)
    try:
        made = _for_kernel(width, q_KN, scale)
        for M in (1, 5):
            x_MK = torch.cos(torch.arange(M * K, dtype=torch.float32)).view(M, K)
            true_MN = x_MK @ dequantise(q_KN, scale)
            if not bool((_by_kernel(width, x_MK, *made) - true_MN).abs().max() <= 0.02 * true_MN.abs().max()):
                return False
    except (RuntimeError, NotImplementedError, AttributeError):
        return False
    return True
