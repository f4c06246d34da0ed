"""The loss that training computes: `model.py`'s, explicit in its widths, compiled or not, without a batch's logits.

Nothing is cast behind anybody's back. In bfloat16 the parameters stay float32; products of matrices take bfloat16
copies of them, and everything else (the residual stream, norms, softmax, the loss) is in float32, as the gradients are.
The law `accumulate` holds all of it to `model.py`, and the law `ranks` what several processes compute to one.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpt2.errors import ContextOverflow
from gpt2.model import GPT2, Block, Projection, activation, attention_scale
from gpt2.training.attention import causal_attention
from gpt2.training.cross_entropy import one_piece, summed_cross_entropy


class Loss(nn.Module):
    """`network.loss` in a width, compiled or not. dtype: "float32" or "bfloat16" (a float64 network keeps its own).

    Compiled, the first call of a shape takes a while: on a CPU one block is compiled and all use it; on a GPU all.
    called: the network is called as the module it is, for the sake of hooks that gather its weights (FSDP2, see
    `ranks.py`, which has made `block_pass` the way through its blocks and compiles them).
    """

    def __init__(self, network: GPT2, dtype: str, compile: bool = False, called: bool = False) -> None:
        super().__init__()
        self.network = network
        self.narrow = torch.bfloat16 if dtype == "bfloat16" else None
        self.compiled, self._called = compile, called

    def forward(self, inputs_BT: Tensor, targets_BT: Tensor) -> Tensor:
        """Summed cross-entropy in nats, a float32 scalar, over the targets (B, T) that are not -100.

        inputs_BT: int64 (B, T). Raises ContextOverflow past the window.
        """
        window = self.network.config.n_positions
        if inputs_BT.shape[1] > window:
            raise ContextOverflow(f"{inputs_BT.shape[1]} tokens do not fit in this model's window of {window}.")
        return self._whole(inputs_BT, targets_BT)

    def _summed(self, inputs_BT: Tensor, targets_BT: Tensor) -> Tensor:
        network = self.network
        hidden_BTC = network.hidden(inputs_BT) if self._called else self._hidden(inputs_BT)
        hidden_NC, targets_N = hidden_BTC.flatten(0, 1), targets_BT.flatten()
        if not self.compiled:
            # What is not scored, such as a prompt, needs no logits. (What is compiled keeps to one shape.)
            hidden_NC, targets_N = _scored(hidden_NC, targets_N)
        width = self.narrow or hidden_NC.dtype
        return summed_cross_entropy(hidden_NC.to(width), network.wte.weight, targets_N, self._piece)

    def _hidden(self, inputs_BT: Tensor) -> Tensor:
        """`network.hidden` in this width."""
        network, config = self.network, self.network.config
        x_BTC = F.embedding(inputs_BT, network.wte.weight) + network.wpe.weight[: inputs_BT.shape[1]]
        x_BTC = F.dropout(x_BTC, config.embd_pdrop, network.training)
        for block, scale in zip(network.h, self._scales, strict=True):
            x_BTC = self._block(block, x_BTC, self.narrow or x_BTC.dtype, scale)
        return network.ln_f(x_BTC)  # type: ignore[no-any-return]

    # What is compiled is made when it is first called: it belongs to a device, and compilers are slow to import.

    @functools.cached_property
    def _whole(self) -> Callable[[Tensor, Tensor], Tensor]:
        return torch.compile(self._summed) if self.compiled and not self._on_cpu else self._summed

    @functools.cached_property
    def _scales(self) -> list[Tensor | None]:
        """For each layer attention's scale where it is not that of all: as a number it would be a program a layer."""
        scales = [attention_scale(self.network.config, layer) for layer in range(self.network.config.n_layer)]
        if len(set(scales)) == 1 or not (self.compiled and self._on_cpu):
            return [None] * len(scales)
        return [torch.tensor(scale, dtype=torch.float64) for scale in scales]

    @functools.cached_property
    def _block(self) -> Callable[[Any, Tensor, torch.dtype, Tensor | None], Tensor]:
        return torch.compile(block_pass, dynamic=False) if self.compiled and self._on_cpu else block_pass

    @functools.cached_property
    def _piece(self) -> Callable[..., Any]:
        return torch.compile(one_piece, dynamic=False) if self.compiled and self._on_cpu else one_piece

    @property
    def _on_cpu(self) -> bool:
        return self.network.device.type == "cpu"


def _scored(hidden_NC: Tensor, targets_N: Tensor) -> tuple[Tensor, Tensor]:
    """The places whose targets are not -100."""
    (places_S,) = (targets_N != -100).nonzero(as_tuple=True)
    if len(places_S) == len(targets_N):
        return hidden_NC, targets_N
    return hidden_NC.index_select(0, places_S), targets_N.index_select(0, places_S)


def block_pass(block: Block, x_BTC: Tensor, width: torch.dtype, scale: Tensor | None = None) -> Tensor:
    """A block's forward pass; products of matrices in `width`, the rest in the dtype of `x_BTC`.

    scale: attention's, where this is compiled for a CPU and layers differ in it; None: the block's own.
    """
    attention, mlp, config = block.attn, block.mlp, block.attn.config
    B, T, C = x_BTC.shape
    compiled_for_cpu = _compiled_for_cpu(x_BTC)

    def project(layer: Projection, x: Tensor) -> Tensor:
        weight, bias = layer.weight.to(width), layer.bias.to(width)
        # A compiler adds the bias where it next reads the product, which is quicker than oneDNN on the way.
        return x @ weight + bias if compiled_for_cpu else F.linear(x, weight.t(), bias)

    def dropped(x: Tensor) -> Tensor:
        return F.dropout(x, config.resid_pdrop, block.training)

    q_BHTD, k_BHTD, v_BHTD = (
        part.view(B, T, config.n_head, config.head_dim).transpose(1, 2)
        for part in torch.split(project(attention.c_attn, block.ln_1(x_BTC).to(width)), C, dim=2)
    )
    if config.reorder_and_upcast_attn:
        q_BHTD, k_BHTD, v_BHTD = q_BHTD.to(x_BTC.dtype), k_BHTD.to(x_BTC.dtype), v_BHTD.to(x_BTC.dtype)
    dropout = config.attn_pdrop if block.training else 0.0
    if compiled_for_cpu:
        y_BHTD = causal_attention(q_BHTD, k_BHTD, v_BHTD, attention.scale if scale is None else scale, dropout)
    else:
        y_BHTD = F.scaled_dot_product_attention(
            q_BHTD, k_BHTD, v_BHTD, dropout_p=dropout, is_causal=True, scale=attention.scale
        )
    y_BTC = y_BHTD.to(width).transpose(1, 2).reshape(B, T, C)
    x_BTC = x_BTC + dropped(project(attention.c_proj, y_BTC))

    h_BTF = project(mlp.c_fc, block.ln_2(x_BTC).to(width))
    if compiled_for_cpu and config.activation_function in ("gelu_new", "gelu_pytorch_tanh"):
        # (1 + tanh(u)) / 2 = sigmoid(2u), and what the compiler makes of a sigmoid is three times as fast.
        w_BTF = h_BTF.to(x_BTC.dtype)
        h_BTF = (w_BTF * torch.sigmoid(_SLOPE * (w_BTF + 0.044715 * w_BTF**3))).to(width)
    else:
        h_BTF = activation(config.activation_function, h_BTF)
    return x_BTC + dropped(project(mlp.c_proj, h_BTF))


def _compiled_for_cpu(x_BTC: Tensor) -> bool:
    return x_BTC.device.type == "cpu" and torch.compiler.is_compiling()


# 2 √(2/π)
_SLOPE = 1.5957691216057308
