"""Reads nanoGPT's `ckpt.pt`: a pickle of a state dictionary, the arguments its model was made with, and an optimiser.

Three things differ from a GPT-2 of Hugging Face's. Its projections are `nn.Linear`, so they lie (out, in). Its models
may have been made without biases, which equals biases of 0. And its MLP computes the exact GELU since 17 May 2023
(commit 594068e, "Use nn.GELU"); before that it computed OpenAI's tanh approximation. The file does not say which.
Files whose arguments have no `bias` are from before 27 January 2023 and get `gelu_new`; all others get `gelu`, which is
wrong by about 1e-3 in the activations for the few that were trained in the months between. Files that may be among
those (PyTorch older than 2.1, of October 2023, wrote them) say so in a Notice.

The optimiser stays unread, and there is no writer: convert to Hugging Face's format instead.
"""

from __future__ import annotations

import warnings
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpt2.checkpoint.huggingface import tokenizer_beside
from gpt2.config import GPT2Config
from gpt2.errors import BadCheckpoint, BadOption, Notice

if TYPE_CHECKING:
    import torch

    from gpt2.checkpoint.weights import Weights
    from gpt2.tokenizer import Tokenizer

# nanoGPT's arguments and the config keys that they are.
_KEYS = {
    "vocab_size": "vocab_size",
    "block_size": "n_positions",
    "n_embd": "n_embd",
    "n_layer": "n_layer",
    "n_head": "n_head",
}


def read_nanogpt(path: Path) -> tuple[Weights, Tokenizer]:
    """The weights and the tokenizer of a `ckpt.pt`.

    The tokenizer is the one whose files lie beside it, else GPT-2's if the vocabulary has 50,257 to 50,304 rows.
    A padded vocabulary is kept as it is.

    Raises BadCheckpoint for a file that wants to run code, that is damaged, or that holds something else, and
    BadTokenizer for another vocabulary: nanoGPT keeps those in `meta.pkl`, and a pickle is not opened.
    """
    from gpt2.checkpoint.files import by_our_names, read_pickle, stored_tensors
    from gpt2.checkpoint.weights import HEAD, Stored, Weights, expected_shapes, is_projection

    data = read_pickle(path)
    if not isinstance(data, dict) or not isinstance(data.get("model"), dict):
        raise BadCheckpoint(f"{path} is no checkpoint of nanoGPT's: it has no state dictionary under 'model'.")
    arguments = data.get("model_args")
    if not isinstance(arguments, dict):
        raise BadCheckpoint(f"{path} is no checkpoint of nanoGPT's: it has no dictionary under 'model_args'.")
    config = _config(arguments, path)
    if "bias" in arguments and _may_be_from_early_2023(path):
        warnings.warn(
            f"{path} does not say which GELU it was trained with; the exact one is assumed, which nanoGPT has since "
            "17 May 2023. If it was trained before that day, convert it to hf and set activation_function to gelu_new "
            "in config.json.",
            Notice,
            stacklevel=2,
        )
    found = by_our_names(stored_tensors(path, data["model"]))
    for name, stored in found.items():
        if is_projection(name) and stored.tensor.ndim == 2:
            found[name] = stored._replace(tensor=stored.tensor.t())
    if HEAD in found and "wte.weight" in found and _same(found[HEAD].tensor, found["wte.weight"].tensor):
        del found[HEAD]
    if not arguments.get("bias", True):
        import torch

        for name, shape in expected_shapes(config).items():
            if name.endswith(".bias"):
                found.setdefault(name, Stored(path, name, torch.zeros(shape)))
    weights = Weights(found, config, config_source=f"{path}'s model_args")
    tokenizer = tokenizer_beside(
        path, config, "nanoGPT keeps other vocabularies in meta.pkl, a pickle, which is not opened"
    )
    return weights, tokenizer


def _config(arguments: dict[str, Any], path: Path) -> GPT2Config:
    missing = next((key for key in _KEYS if key not in arguments), None)
    if missing:
        raise BadCheckpoint(f"{path}: its model_args lack {missing}.")
    dropout = arguments.get("dropout", 0.0)
    try:
        return GPT2Config(
            **{ours: arguments[theirs] for theirs, ours in _KEYS.items()},
            activation_function="gelu" if "bias" in arguments else "gelu_new",
            embd_pdrop=dropout,
            attn_pdrop=dropout,
            resid_pdrop=dropout,
        )
    except (BadOption, TypeError) as error:
        raise BadCheckpoint(f"{path}: its model_args make no GPT-2: {error}") from None


def _may_be_from_early_2023(path: Path) -> bool:
    """Whether PyTorch before 2.1 wrote the file: later ones put a record `byteorder` into it."""
    if not zipfile.is_zipfile(path):
        return True
    with zipfile.ZipFile(path) as file:
        return not any(name.endswith("/byteorder") for name in file.namelist())


def _same(a: torch.Tensor, b: torch.Tensor) -> bool:
    # The head and the embedding share their memory, in the file too: then there is nothing to compare.
    return a.data_ptr() == b.data_ptr() and a.shape == b.shape and a.stride() == b.stride()
