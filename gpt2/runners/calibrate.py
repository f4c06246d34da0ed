"""A model's tensors, one by one, as an int8 or int4 model has them. It needs no text.

int8 rounds each weight by itself. int4 is too coarse for that: each matrix is rounded so that its errors cancel over
the inputs that it sees (`quantise.int4_groups` with moments). These inputs are measured by sending random tokens
through the network, block by block, so that one block at a time is in memory.

Source of the numbers (shipped model, WikiText-2, cost in perplexity): each weight by itself 3.9 %; by its inputs on
random tokens 1.1 %, on as many tokens of text that the model wrote itself 0.9 %, on four times fewer 1.4 %.
"""

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

from gpt2.config import GPT2Config
from gpt2.model import GPT2, Block
from gpt2.runners.quantise import Matrix, dequantise, int4_groups, int8_columns, kind

_ROWS, _TOKENS = 8, 256


def quantised(
    tensors: Iterable[tuple[str, Tensor]], config: GPT2Config, dtype: str
) -> Iterator[tuple[str, Tensor | Matrix]]:
    """Tensors by our names in the network's order, with matrices where a model of this dtype has them.

    tensors: of a checkpoint, in the order of `GPT2.state_dict`; each is used up when the next is asked for. The
    embedding becomes a matrix (C, V); other tensors are float32.
    """
    inputs = _Inputs(config) if dtype == "int4" else None
    for name, tensor, moments_KK in inputs.beside(tensors) if inputs else ((*pair, None) for pair in tensors):
        match kind(name, dtype):
            case None:
                yield name, tensor.float()
            case "int8":
                yield name, Matrix(*int8_columns(tensor.t() if name == "wte.weight" else tensor))
            case _:
                yield name, Matrix(*int4_groups(tensor, moments_KK=moments_KK))


def rounded(network: GPT2, dtype: str) -> GPT2:
    """A float32 network with the weights that an int8 or int4 model of this network computes with."""
    state = {}
    for name, found in quantised(network.state_dict().items(), network.config, dtype):
        tensor = dequantise(*found) if isinstance(found, Matrix) else found
        state[name] = tensor.t().contiguous() if name == "wte.weight" and isinstance(found, Matrix) else tensor
    made = GPT2(network.config)
    made.load_state_dict(state)
    return made.eval().requires_grad_(False)


class _Inputs:
    """Random tokens on their way through the network, and what each projection is given of them."""

    def __init__(self, config: GPT2Config) -> None:
        self.config = config
        random = torch.Generator().manual_seed(0)
        shape = (_ROWS, min(_TOKENS, config.n_positions))
        self.ids_BT = torch.randint(config.vocab_size, shape, generator=random)
        self.x_BTC = torch.empty(0)

    def beside(self, tensors: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor, Tensor | None]]:
        """Each tensor, and for a projection's weight (K, N) the sums XᵀX (K, K), float32, over its inputs X."""
        prefix, held = "", dict[str, Tensor]()
        for name, tensor in tensors:
            start = name[: name.index(".", 2) + 1] if name.startswith("h.") else ""
            if start != prefix:
                yield from self._block(prefix, held)
                prefix, held = start, {}
            if name == "wte.weight":
                self.x_BTC = tensor[self.ids_BT].float()
            elif name == "wpe.weight":
                self.x_BTC = self.x_BTC + tensor[: self.ids_BT.shape[1]].float()
            if start:
                # A copy: a block is needed as a whole, and each tensor is used up when the next one comes.
                held[name] = tensor.to(torch.float32, copy=True)
            else:
                yield name, tensor, None
        yield from self._block(prefix, held)

    @torch.inference_mode()
    def _block(self, prefix: str, held: dict[str, Tensor]) -> list[tuple[str, Tensor, Tensor | None]]:
        """Sends the tokens through a block."""
        if not held:
            return []
        with torch.device("meta"):
            block = Block(self.config, int(prefix.split(".")[1]))
        block.load_state_dict({name.removeprefix(prefix): tensor for name, tensor in held.items()}, assign=True)
        block.eval()
        moments: dict[str, Tensor] = {}
        for name, module in block.named_modules():
            if f"{prefix}{name}.weight" in held and kind(f"{prefix}{name}.weight", "int4"):
                module.register_forward_pre_hook(_record(moments, f"{prefix}{name}.weight"))
        self.x_BTC = block(self.x_BTC, None, None)
        return [(name, tensor, moments.get(name)) for name, tensor in held.items()]


def _record(moments: dict[str, Tensor], name: str) -> Callable[[torch.nn.Module, tuple[Tensor]], None]:
    def hook(module: torch.nn.Module, inputs: tuple[Tensor]) -> None:
        x_NK = inputs[0].flatten(0, 1)
        moments[name] = x_NK.t() @ x_NK

    return hook
