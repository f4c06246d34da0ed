"""From any format that is read here to one that is written here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

from gpt2.checkpoint.huggingface import CONFIG, TOKENIZER, WEIGHTS, write_directory
from gpt2.checkpoint.language_model import LanguageModel
from gpt2.errors import BadOption

# What models' folders hold. A folder with anything else in it is not replaced, even when that is asked for.
_FILES = (
    *(CONFIG, "generation_config.json", "hparams.json", *TOKENIZER, *WEIGHTS),
    *("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "task.json"),
    *("checkpoint", "model.ckpt*", "model-*.safetensors", "pytorch_model-*.bin"),
)


def convert(
    source: LanguageModel,
    to: Literal["hf", "openai"],
    out: Path,
    *,
    force: bool = False,
    beside: Callable[[Path], None] | None = None,
) -> None:
    """Writes a model as a Hugging Face directory (`hf`, in the network's dtype) or OpenAI's folder (`openai`, float32).

    A folder with anything in it is not touched, unless `force` says to replace it, and then only if nothing but a
    model is in it. beside: puts more into a Hugging Face directory.

    Raises BadOption for a target that exists, that cannot be written or that is not known, and for a model that
    OpenAI's code would run as something else; Unavailable for `openai` without TensorFlow.
    """
    if to not in ("hf", "openai"):
        raise BadOption(
            f"to is {to!r}; models are written as hf (Hugging Face) or openai (OpenAI's TensorFlow folder)."
        )
    out = Path(out)
    if out.exists() and not out.is_dir():
        raise BadOption(f"{out} is a file, but a model is a folder; choose another place.")
    if out.is_dir() and any(out.iterdir()):
        if not force:
            raise BadOption(
                f"{out} is a folder with something in it; choose another place, or replace it with --force."
            )
        strange = [file.name for file in sorted(out.iterdir()) if not any(map(file.match, _FILES))]
        if strange:
            raise BadOption(
                f"{out} holds {strange[0]}, which is no part of a model; --force does not replace such a folder."
            )
    try:
        if to == "hf":
            write_directory(source.network, source.tokenizer, out, beside=beside)
        else:
            from gpt2.checkpoint.openai import write_openai

            write_openai(source, out)
    except OSError as error:
        # Its file name would be that of the temporary folder.
        raise BadOption(f"{out} cannot be written: {error.strerror or error}. Choose another place.") from error
