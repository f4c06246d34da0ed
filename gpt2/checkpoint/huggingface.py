"""Reads and writes a Hugging Face model directory, the one checkpoint format of this package.

Reads every layout that the hub has: names with and without `transformer.`, masks that were saved along, a head or none,
one file or shards, safetensors or PyTorch's `.bin`. Other programs' formats have files of their own.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpt2.config import GPT2Config
from gpt2.errors import BadCheckpoint, BadOption, BadTokenizer, Notice
from gpt2.files import new_directory
from gpt2.tokenizer import Tokenizer, read_tokenizer, write_tokenizer

if TYPE_CHECKING:
    import torch

    from gpt2.checkpoint.weights import Stored, Weights
    from gpt2.model import GPT2

CONFIG = "config.json"
# Where weights may lie, best first.
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
TOKENIZER = ("tokenizer.json", "vocab.json", "merges.txt", "encoder.json", "vocab.bpe")

# What people have instead of weights that can be read, and what to do about it.
_OTHERS = (
    (
        "adapter_model.safetensors",
        "a LoRA adapter, which is read where no config.json lies beside it",
    ),
    ("tf_model.h5", "Keras weights; save the model as safetensors with transformers first"),
    ("flax_model.msgpack", "Flax weights; save the model as safetensors with transformers first"),
)


def read_directory(
    path: Path, *, device: str | torch.device = "cpu", dtype: torch.dtype | None = None
) -> tuple[GPT2, Tokenizer]:
    """The network and the tokenizer of a Hugging Face directory.

    dtype: what the weights become (None: float32). On the CPU, weights that have it already stay mapped to their
    file; see `files.py` for what that means when the file changes. The network is in evaluation mode, and its
    parameters can be trained.

    Raises BadCheckpoint, naming file and tensor, for anything missing, damaged or contradictory.
    """
    import torch

    weights, tokenizer = open_directory(path)
    return weights.network(dtype or torch.float32).to(device).eval(), tokenizer


def open_directory(path: Path) -> tuple[Weights, Tokenizer]:
    """As `read_directory`, but the weights' values are not read yet, and so not checked."""
    from gpt2.checkpoint.files import by_our_names
    from gpt2.checkpoint.weights import Weights

    path = Path(path)
    config = read_config(path)
    weights = Weights(by_our_names(_tensors(path)), config, config_source=str(path / CONFIG))
    return weights, tokenizer_of(path, config)


def read_config(path: Path) -> GPT2Config:
    """The config of a Hugging Face directory; BadCheckpoint if there is none or it cannot be honoured."""
    file = path / CONFIG
    if not file.is_file():
        raise BadCheckpoint(
            f"{path} has no {CONFIG}, so it is no Hugging Face model directory; give the folder that holds one."
        )
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadCheckpoint(f"{file} cannot be read ({error}).") from None
    return GPT2Config.from_json(text, str(file))


def tokenizer_of(path: Path, config: GPT2Config) -> Tokenizer:
    """The tokenizer whose files lie in a folder, checked against the config.

    A folder without any and with a vocabulary of exactly GPT-2's size gets GPT-2's, with a Notice. A vocabulary
    smaller than the embedding is fine: embeddings are often padded to a round number of rows.

    Raises BadTokenizer for damaged files, for none at all, and for a vocabulary larger than the embedding.
    """
    if not has_tokenizer(path):
        gpt2 = Tokenizer.gpt2()
        if config.vocab_size != gpt2.vocab_size:
            raise BadTokenizer(
                f"{path} has no tokenizer: looked for tokenizer.json, vocab.json with merges.txt, and encoder.json "
                f"with vocab.bpe; its vocabulary of {config.vocab_size} is not GPT-2's, so nothing can be guessed."
            )
        warnings.warn(
            f"{path} has no tokenizer files; its vocabulary has GPT-2's size, so GPT-2's own is used.",
            Notice,
            stacklevel=2,
        )
        return gpt2
    tokenizer = read_tokenizer(path)
    check_fit(tokenizer, config, str(path))
    return tokenizer


def tokenizer_beside(file: Path, config: GPT2Config, elsewhere: str) -> Tokenizer:
    """The tokenizer for a format that is one file: the one whose files lie beside it, or GPT-2's if the size fits.

    `elsewhere` says where that format keeps other vocabularies. GPT-2's is often padded, to 50,304 rows at most.
    Raises BadTokenizer for a vocabulary that is not GPT-2's when there are no tokenizer files.
    """
    if has_tokenizer(file.parent):
        return tokenizer_of(file.parent, config)
    if 50257 <= config.vocab_size <= 50304:
        return Tokenizer.gpt2()
    raise BadTokenizer(
        f"{file}: its vocabulary of {config.vocab_size} is not GPT-2's, and {elsewhere}; "
        "put the tokenizer's files (tokenizer.json, or encoder.json with vocab.bpe) beside it."
    )


def has_tokenizer(path: Path) -> bool:
    """Whether any of a tokenizer's files lies in a folder."""
    return any((path / name).is_file() for name in TOKENIZER)


def check_fit(tokenizer: Tokenizer, config: GPT2Config, where: str) -> None:
    """Raises BadTokenizer if the tokenizer has ids for which there is no row in the embedding."""
    if tokenizer.vocab_size > config.vocab_size:
        raise BadTokenizer(
            f"{where}: the tokenizer has {tokenizer.vocab_size} tokens, but the embedding wte.weight has only "
            f"{config.vocab_size} rows (vocab_size); they do not belong together."
        )


def _tensors(path: Path) -> Iterator[Stored]:
    from gpt2.checkpoint.files import read_safetensors, read_state

    name = next((name for name in WEIGHTS if (path / name).is_file()), None)
    if name is None:
        other = next((f": {name} holds {what}" for name, what in _OTHERS if (path / name).is_file()), "")
        raise BadCheckpoint(f"{path} has no weights that can be read; looked for {', '.join(WEIGHTS)}{other}.")
    read = read_safetensors if ".safetensors" in name else read_state
    if not name.endswith(".index.json"):
        yield from read(path / name)
        return
    index = path / name
    for shard, names in shards(index).items():
        if not (path / shard).is_file():
            raise BadCheckpoint(f"{index} puts the tensor {min(names)} in {shard}, which is not in that folder.")
        held = set()
        for stored in read(path / shard):
            held.add(stored.name)
            yield stored
        lost = sorted(names - held)
        if lost:
            _check_lost(index, path / shard, lost)


def shards(index: Path) -> dict[str, set[str]]:
    """Files of a sharded checkpoint, with the tensors that its index says are in each."""
    files = read_json(index).get("weight_map")
    if not isinstance(files, dict) or not files:
        raise BadCheckpoint(f"{index} has no weight_map, which says in what file each tensor is.")
    named: dict[str, set[str]] = {}
    for name, file in files.items():
        # A name with a folder in it could point anywhere on this machine.
        if not isinstance(file, str) or Path(file).name != file or file in ("", ".", ".."):
            raise BadCheckpoint(f"{index} puts the tensor {name} in {file!r}, which is no file name.")
        named.setdefault(file, set()).add(name)
    return named


def _check_lost(index: Path, shard: Path, lost: list[str]) -> None:
    from gpt2.checkpoint.weights import canonical_name

    # Masks are not read, so they are not missed.
    lost = [name for name in lost if canonical_name(name) is not None]
    if lost:
        raise BadCheckpoint(f"{shard} lacks the tensor {lost[0]}, which {index.name} says is there.")


def write_directory(
    network: GPT2,
    tokenizer: Tokenizer,
    path: Path,
    *,
    dtype: torch.dtype | None = None,
    beside: Callable[[Path], None] | None = None,
) -> None:
    """Writes a Hugging Face directory, whole or not at all; a folder that is at `path` is replaced.

    Writes config.json (with `n_ctx`, which llama.cpp's converter needs), model.safetensors (names with
    `transformer.`, no head), generation_config.json and the tokenizer's files.

    dtype: float32, bfloat16 or float16, of the weights in the file (None: the network's own).
    beside: is given the folder before anybody can see it, to put more into it.
    Raises BadOption for another dtype, BadTokenizer for a tokenizer that does not fit the embedding.
    """
    import torch
    from safetensors.torch import save_file

    dtype = dtype or network.dtype
    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise BadOption(f"dtype is {dtype}, but weights are written in float32, bfloat16 or float16.")
    check_fit(tokenizer, network.config, "what is to be written")
    end = tokenizer.end_of_text
    config = network.config.to_dict(end) | {"dtype": str(dtype).removeprefix("torch.")}
    generation = {"bos_token_id": end, "eos_token_id": end}
    state = {
        f"transformer.{name}": tensor.detach().to("cpu", dtype).contiguous()
        for name, tensor in network.state_dict().items()
    }
    with new_directory(Path(path).absolute()) as folder:
        _write_json(folder / CONFIG, config)
        _write_json(folder / "generation_config.json", generation)
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
        write_tokenizer(tokenizer, folder, model_max_length=network.config.n_positions)
        if beside is not None:
            beside(folder)


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file; BadCheckpoint if it holds anything else."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadCheckpoint(f"{path} cannot be read as JSON ({error}).") from None
    if not isinstance(data, dict):
        raise BadCheckpoint(f"{path} holds a {type(data).__name__}, but a JSON object belongs there.")
    return data


def _write_json(path: Path, data: Mapping[str, object]) -> None:
    path.write_text(json.dumps(data, indent=2, sort_keys=True) + "\n", encoding="utf-8")
