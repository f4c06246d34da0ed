"""`CompiledRunner`: the token step compiled by PyTorch's inductor, with prompts read in plain PyTorch.

One block is compiled, with its weights as arguments and any number of rows and places, so one program serves every
layer, every batch and every checkpoint of a shape. On the CPU it is compiled ahead of time and kept in the disposable
cache: whoever starts next loads it. On a GPU torch.compile makes it, and inductor keeps what it made in the same place.
"""

import hashlib
import os
import platform
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gpt2.config import GPT2Config
from gpt2.errors import Unavailable
from gpt2.files import cache_directory
from gpt2.model import GPT2
from gpt2.runners import machine, static
from gpt2.runners.static import Layer, Operations, StaticSlots, block_step

Block = Callable[..., Tensor]


class CompiledRunner(StaticSlots):
    """Runs a network with a compiled token step; on the CPU or on CUDA, float32 or bfloat16.

    Raises Unavailable, with the reason in one line, where nothing can be compiled.
    """

    name = "compiled"

    def __init__(self, network: GPT2, slots: int) -> None:
        super().__init__(network, slots)
        self._block = compiled_block(network)
        self._places = torch.arange(self.room, device=self.device)
        if self.device.type != "cpu":
            # Compiles at once, for one row and for many, so that what cannot be compiled is known here.
            with _or_unavailable(), _inductor_cache(), torch.no_grad():
                for rows in (1, 2):
                    nothing_B = torch.zeros(rows, dtype=torch.int64)
                    self._stepped(nothing_B, nothing_B + slots, nothing_B)  # in the slot that is nobody's

    def _step(self, slots: list[int], ids: list[int]) -> Tensor:
        lengths = [self._lengths[slot] for slot in slots]
        return self._head(self._stepped(torch.tensor(ids), torch.tensor(slots), torch.tensor(lengths)))

    def _stepped(self, ids_B: Tensor, slots_B: Tensor, lengths_B: Tensor) -> Tensor:
        # Attention over a length that grows in steps: how much there is to read, and whole vectors.
        places_S = self._places[: min(self.room - 1, (int(lengths_B.max()) // 64 + 1) * 64)]
        ids_B, slots_B, lengths_B = (each.to(self.device) for each in (ids_B, slots_B, lengths_B))
        x_BC = self._embed(ids_B, lengths_B)
        for layer, keys, values in zip(self.layers, self.keys, self.values, strict=True):
            x_BC = self._block(x_BC, keys, values, slots_B, lengths_B, places_S, *layer)
        return x_BC


def compiled_block(network: GPT2) -> Block:
    """`block_step` as a program, with the layer's tensors one by one; from the cache if it is there and whole."""
    if network.device.type != "cpu":
        return torch.compile(_Block(network.config), dynamic=True, fullgraph=True)
    path = cache_directory() / "inductor" / f"block-{_key(network.config, network.dtype)}.pt2"
    with _or_unavailable(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if path.is_file():
            try:
                return _load(path)
            except Exception:  # damaged: what that raises is of many kinds
                path.unlink(missing_ok=True)
        _build(network.config, network.dtype, path)
        return _load(path)


class _Block(nn.Module):
    """`block_step` with tensors as its only arguments, as the compiler wants it."""

    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        self.operations = Operations(config)

    def forward(self, *tensors: Tensor) -> Tensor:
        x_BC, keys, values, slots_B, lengths_B, places_S, *layer = tensors
        return block_step(self.operations, x_BC, keys, values, slots_B, lengths_B, places_S, Layer(*layer))


def _build(config: GPT2Config, dtype: torch.dtype, path: Path) -> None:
    """Compiles the block for this processor and puts it at `path`, whole or not at all."""
    # A block on examples of its own: no checkpoint is touched. Three rows, as 1 would be taken for a fixed size.
    block_config = GPT2Config(**{name: getattr(config, name) for name in _SHAPE}, vocab_size=2, n_layer=1)
    network = GPT2(block_config).initialise(0).to(dtype).requires_grad_(False)
    example = StaticSlots(network.eval(), 4)
    B, slots = torch.export.Dim("B", min=1), torch.export.Dim("slots", min=2)
    S = torch.export.Dim("S", min=2, max=example.room - 1)
    index_B, places_S = torch.arange(3), torch.arange(example.room - 1)
    x_BC = torch.zeros(3, config.n_embd, dtype=dtype)
    tensors = (x_BC, example.keys[0], example.values[0], index_B, index_B * 0, places_S, *example.layers[0])
    shapes = ({0: B}, {0: slots}, {0: slots}, {0: B}, {0: B}, {0: S}, *[None] * len(Layer._fields))
    path.parent.mkdir(parents=True, exist_ok=True)
    with torch.no_grad(), _inductor_cache(), tempfile.TemporaryDirectory(dir=path.parent) as folder:
        program = torch.export.export(_Block(config), tensors, dynamic_shapes=(shapes,))
        made = torch._inductor.aoti_compile_and_package(
            program,
            package_path=str(Path(folder) / path.name),
            inductor_configs={
                # As many threads as PyTorch has when it runs, not as it had when this was compiled.
                "cpp.dynamic_threads": True,
                # The wrapper only calls kernels; optimising it takes longer than all the rest.
                "aot_inductor.compile_wrapper_opt_level": "O0",
            },
        )
        Path(made).replace(path)


# What of a config the program depends on. Weights, layers and vocabulary come in as tensors, or not at all.
_SHAPE = (
    "n_positions",
    "n_embd",
    "n_head",
    "n_inner",
    "activation_function",
    "layer_norm_epsilon",
    "reorder_and_upcast_attn",
)


def _load(path: Path) -> Block:
    loaded: Any = torch._inductor.aoti_load_package(str(path))

    def block(*tensors: Tensor) -> Tensor:
        result: Tensor = loaded(*tensors)
        return result

    return block


def _key(config: GPT2Config, dtype: torch.dtype) -> str:
    """Names the program: shape, dtype, PyTorch, processor, and the code that is compiled."""
    described = machine.describe()
    parts = [repr([getattr(config, name) for name in _SHAPE]), str(dtype), torch.__version__, platform.python_version()]
    parts += [repr([described[name] for name in ("processor", "features", "system")])]
    parts += [Path(source).read_text(encoding="utf-8") for source in (__file__, static.__file__)]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:24]


@contextmanager
def _inductor_cache() -> Iterator[None]:
    """Lets inductor keep its files in our cache, unless the user has named a folder for them."""
    name = "TORCHINDUCTOR_CACHE_DIR"
    if name in os.environ:
        yield
        return
    os.environ[name] = str(cache_directory() / "inductor")
    try:
        yield
    finally:
        del os.environ[name]


@contextmanager
def _or_unavailable() -> Iterator[None]:
    """What a compiler throws is of many kinds; all of it means that this runner is not to be had here."""
    try:
        yield
    except Exception as error:
        said = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise Unavailable(f"The token step cannot be compiled on this machine: {said[:200]}") from error
