"""Reads and writes OpenAI's original checkpoint folders: a TensorFlow bundle, hparams.json, encoder.json, vocab.bpe.

Needs TensorFlow, which the extra `openai` installs. The network itself is never built in TensorFlow: its variables are
read and written by name, with no graph of OpenAI's (so no `model.ckpt.meta`, which their code does not read either).
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpt2.checkpoint.huggingface import read_json, tokenizer_of
from gpt2.checkpoint.language_model import LanguageModel
from gpt2.config import GPT2Config
from gpt2.errors import BadCheckpoint, BadOption, Unavailable
from gpt2.files import new_directory
from gpt2.tokenizer import Tokenizer, write_tokenizer

if TYPE_CHECKING:
    from gpt2.checkpoint.weights import Stored, Weights
    from gpt2.model import GPT2

HPARAMS = "hparams.json"
_BUNDLE = "model.ckpt"

# OpenAI's hyperparameters and the config keys that they are.
_KEYS = {
    "n_vocab": "vocab_size",
    "n_ctx": "n_positions",
    "n_embd": "n_embd",
    "n_head": "n_head",
    "n_layer": "n_layer",
}

_VARIABLE = re.compile(r"model/(?:h(\d+)/)?((?:attn/|mlp/)?\w+)(?:/(w|b|g))?")
_OURS = {"w": "weight", "g": "weight", "b": "bias", None: "weight"}


def read_openai(path: Path) -> tuple[Weights, Tokenizer]:
    """The weights and the tokenizer of OpenAI's folder (`117M`, `124M`, ...), or of one in that layout.

    A fine-tuned folder's optimiser variables are passed over.
    Raises Unavailable without TensorFlow, BadCheckpoint, naming file and variable, for a folder that is damaged.
    """
    from gpt2.checkpoint.weights import Weights

    config = _config(path / HPARAMS)
    found = {_our_name(stored.name): stored for stored in _variables(path)}
    weights = Weights(found, config, config_source=str(path / HPARAMS))
    return weights, tokenizer_of(path, config)


def write_openai(model: LanguageModel, path: Path) -> None:
    """Writes OpenAI's folder in float32, whole or not at all; a folder that is at `path` is replaced.

    Raises BadOption for a config that OpenAI's code does not compute (see `check_writable`), Unavailable without
    TensorFlow.
    """
    check_writable(model.config)
    config = model.config
    hparams = {theirs: getattr(config, ours) for theirs, ours in _KEYS.items()}
    # Before the work: a missing extra should not cost a folder.
    tensorflow = _tensorflow()
    with new_directory(Path(path).absolute()) as folder:
        (folder / HPARAMS).write_text(json.dumps(hparams), encoding="utf-8")
        write_tokenizer(model.tokenizer, folder, layout="openai")
        _write_bundle(tensorflow, model.network, folder / _BUNDLE)
        (folder / "checkpoint").write_text(
            f'model_checkpoint_path: "{_BUNDLE}"\nall_model_checkpoint_paths: "{_BUNDLE}"\n', encoding="utf-8"
        )


def check_writable(config: GPT2Config) -> None:
    """Raises BadOption, naming the key, for a shape that OpenAI's code would run as something else.

    `reorder_and_upcast_attn` may be set: it changes nothing in float32, in which OpenAI's code computes.
    """
    for key, accepted in (
        ("activation_function", ("gelu_new", "gelu_pytorch_tanh")),
        ("layer_norm_epsilon", (1e-5,)),
        ("n_inner", (None, 4 * config.n_embd)),
        ("scale_attn_weights", (True,)),
        ("scale_attn_by_inverse_layer_idx", (False,)),
    ):
        value = getattr(config, key)
        if value not in accepted:
            raise BadOption(
                f"This model has {key} = {value!r}, and OpenAI's code computes {accepted[0]!r} only; "
                "it cannot be written in OpenAI's format."
            )


def _config(file: Path) -> GPT2Config:
    data = read_json(file)
    missing = next((key for key in _KEYS if key not in data), None)
    if missing:
        raise BadCheckpoint(f"{file} lacks {missing}.")
    try:
        return GPT2Config(**{ours: data[theirs] for theirs, ours in _KEYS.items()})
    except BadOption as error:
        raise BadCheckpoint(f"{file}: {error}") from None


def _our_name(variable: str) -> str:
    match = _VARIABLE.fullmatch(variable)
    if match is None:
        return variable
    layer, part, kind = match.groups()
    return f"{'' if layer is None else f'h.{layer}.'}{part.replace('/', '.')}.{_OURS[kind]}"


def _their_name(name: str) -> str:
    parts = name.split(".")
    if parts[0] == "h":
        parts[:2] = [f"h{parts[1]}"]
    if parts[0] in ("wte", "wpe"):
        return f"model/{parts[0]}"
    kind = "b" if parts[-1] == "bias" else "g" if parts[-2].startswith("ln_") else "w"
    return "/".join(["model", *parts[:-1], kind])


def _variables(path: Path) -> Iterator[Stored]:
    """The bundle's variables under `model/`, projections as matrices."""
    import numpy as np
    import torch

    from gpt2.checkpoint.weights import Stored

    tf = _tensorflow()
    prefix = tf.train.latest_checkpoint(str(path)) or str(path / _BUNDLE)
    index = Path(f"{prefix}.index")
    if not index.is_file():
        raise BadCheckpoint(f"{path} has no weights: looked for the TensorFlow bundle {index.name}.")
    name = ""
    try:
        reader = tf.train.load_checkpoint(prefix)
        for name in sorted(reader.get_variable_to_shape_map()):
            # Optimisers keep their own variables beside each of the model's: model/wte/Adam.
            if not name.startswith("model/") or re.search(r"/Adam(_\d+)?$|/\.", name):
                continue
            value = reader.get_tensor(name)
            if value.dtype.kind not in "fV" and value.dtype.name != "bfloat16":
                raise BadCheckpoint(f"{index}: {name} holds {value.dtype}; weights are floating point numbers.")
            if value.dtype.name not in ("float32", "float16", "float64"):
                value = value.astype(np.float32)
            # A convolution of width 1 in OpenAI's code: (1, in, out).
            if name.endswith("/w") and value.ndim == 3 and value.shape[0] == 1:
                value = value[0]
            if not value.flags.writeable:
                value = value.copy()
            yield Stored(index, name, torch.from_numpy(value))
    except (tf.errors.OpError, ValueError, RuntimeError, IndexError, KeyError, OSError) as error:
        at = f" at the variable {name}" if name else ""
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise BadCheckpoint(f"{index} or its data cannot be read{at} ({reason}).") from None


def _write_bundle(tf: Any, network: GPT2, prefix: Path) -> None:
    names, values = [], []
    for name, tensor in network.state_dict().items():
        array = tensor.detach().float().cpu().numpy()
        names.append(_their_name(name))
        values.append(array[None] if names[-1].endswith("/w") else array)
    # A session of its own on the CPU: an eager operation would take hold of every GPU, and a graph with the weights
    # as constants may not be larger than 2 GB.
    with tf.Graph().as_default():
        places = [tf.compat.v1.placeholder(tf.float32, value.shape) for value in values]
        save = tf.raw_ops.SaveV2(
            prefix=str(prefix), tensor_names=names, shape_and_slices=[""] * len(names), tensors=places
        )
        settings = tf.compat.v1.ConfigProto(device_count={"GPU": 0})
        with tf.compat.v1.Session(config=settings) as session:
            session.run(save, dict(zip(places, values, strict=True)))


def _tensorflow() -> Any:
    # TensorFlow tells of its processor and its GPUs on stderr unless asked not to before it is imported.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    try:
        import tensorflow
    except ImportError as error:
        raise Unavailable(
            'OpenAI\'s checkpoint format needs TensorFlow, which is not here; `pip install "gpt2-complete[openai]"`.'
        ) from error
    return tensorflow
