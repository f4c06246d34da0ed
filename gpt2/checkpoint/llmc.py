"""Reads the model files of llm.c (`*.bin`): a header of 256 integers, then every parameter in a fixed order.

After llm.c's `write_model` in train_gpt2.py: each kind of tensor for all layers together, projections (out, in), the
embedding padded to a multiple of 128 rows. Its GELU is OpenAI's. The other `.bin` files of llm.c (optimiser state,
debugging state, tokenizer) are not read, and none is written.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import TYPE_CHECKING

from gpt2.checkpoint.huggingface import tokenizer_beside
from gpt2.config import GPT2Config
from gpt2.errors import BadCheckpoint, BadOption

if TYPE_CHECKING:
    import torch

    from gpt2.checkpoint.weights import Weights
    from gpt2.tokenizer import Tokenizer

MAGIC = 20240326
_HEADER = 256  # int32 each


def read_llmc(path: Path) -> tuple[Weights, Tokenizer]:
    """The weights and the tokenizer of a model file; the padding rows of the embedding are dropped.

    The tokenizer is the one whose files lie beside it, else GPT-2's if the vocabulary has its size.

    Raises BadCheckpoint for another magic number or version, a header that makes no GPT-2, and a file that is longer
    or shorter than its header says (naming the tensor in which it ends).
    """
    import torch

    from gpt2.checkpoint.weights import Stored, Weights, is_projection

    with path.open("rb") as file:
        header = file.read(4 * _HEADER)
    if len(header) < 4 * _HEADER:
        raise BadCheckpoint(f"{path} is cut short: it has {len(header)} bytes, fewer than its header.")
    magic, version, n_positions, vocab_size, n_layer, n_head, n_embd, padded = struct.unpack("<8i", header[:32])
    if magic != MAGIC:
        raise BadCheckpoint(f"{path} begins with {magic}, but a model file of llm.c's begins with {MAGIC}.")
    widths = {3: torch.float32, 5: torch.bfloat16}
    if version not in widths:
        raise BadCheckpoint(
            f"{path} is an llm.c model file of version {version}; versions 3 (float32) and 5 (bfloat16) are read."
        )
    try:
        config = GPT2Config(
            vocab_size=vocab_size, n_positions=n_positions, n_embd=n_embd, n_layer=n_layer, n_head=n_head
        )
    except BadOption as error:
        raise BadCheckpoint(f"{path}: its header makes no GPT-2: {error}") from None
    if padded < vocab_size:
        raise BadCheckpoint(f"{path}: its header says {padded} rows with padding, but {vocab_size} without.")
    width = widths[version].itemsize
    shapes = _shapes(config, padded)
    offset, size = 4 * _HEADER // width, path.stat().st_size
    end = offset
    for name, shape in shapes:
        end += shape.numel()
        if end * width > size:
            whole = offset + sum(shape.numel() for _, shape in shapes)
            raise BadCheckpoint(
                f"{path} is cut short: it has {size} of {whole * width} bytes, and the tensor {name} is the first that "
                "is not whole."
            )
    if end * width != size:
        raise BadCheckpoint(f"{path} has {size} bytes, but by its header it must have {end * width}.")
    # One private mapping of the whole file; every tensor is a window on it.
    values = torch.from_file(str(path), shared=False, size=size // width, dtype=widths[version])
    found = {}
    for name, shape in shapes:
        tensor = values[offset : offset + shape.numel()].view(shape)
        offset += shape.numel()
        if name == "wte.weight":
            tensor = tensor[:vocab_size]
        found[name] = Stored(path, name, tensor.t() if is_projection(name) else tensor)
    weights = Weights(found, config, config_source=f"{path}'s header")
    return weights, tokenizer_beside(path, config, "llm.c keeps no vocabulary with a model")


def _shapes(config: GPT2Config, padded: int) -> list[tuple[str, torch.Size]]:
    """Names (ours) and shapes (theirs: projections are (out, in)) in the order of the file."""
    import torch

    C = config.n_embd
    blocks = (
        ("ln_1.weight", (C,)),
        ("ln_1.bias", (C,)),
        ("attn.c_attn.weight", (3 * C, C)),
        ("attn.c_attn.bias", (3 * C,)),
        ("attn.c_proj.weight", (C, C)),
        ("attn.c_proj.bias", (C,)),
        ("ln_2.weight", (C,)),
        ("ln_2.bias", (C,)),
        ("mlp.c_fc.weight", (4 * C, C)),
        ("mlp.c_fc.bias", (4 * C,)),
        ("mlp.c_proj.weight", (C, 4 * C)),
        ("mlp.c_proj.bias", (C,)),
    )
    shapes: list[tuple[str, tuple[int, ...]]] = [("wte.weight", (padded, C)), ("wpe.weight", (config.n_positions, C))]
    shapes += [(f"h.{layer}.{name}", shape) for name, shape in blocks for layer in range(config.n_layer)]
    shapes += [("ln_f.weight", (C,)), ("ln_f.bias", (C,))]
    return [(name, torch.Size(shape)) for name, shape in shapes]
