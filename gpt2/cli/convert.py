"""`gpt2 convert`: a checkpoint from one format to another."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from gpt2.cli.common import FileDType, Revision


class Format(StrEnum):
    """Formats that are written."""

    hf = "hf"
    openai = "openai"


def command(
    model: Annotated[str, typer.Argument(help="What to read: a folder, a file or a name, as --model takes it.")],
    to: Annotated[Format, typer.Option(help="hf: a Hugging Face directory; openai: OpenAI's TensorFlow checkpoint.")],
    out: Annotated[Path, typer.Option(help="Folder to write.", show_default=False)],
    dtype: Annotated[FileDType, typer.Option(help="Width of the weights that are written.")] = FileDType.float32,
    revision: Revision = None,
    force: Annotated[bool, typer.Option("--force", help="Replace what is in the folder.")] = False,
) -> None:
    """Convert a checkpoint: Hugging Face, OpenAI (TensorFlow), nanoGPT or llm.c in; Hugging Face or OpenAI out."""
    from gpt2.checkpoint import convert, load

    convert(load(model, revision=revision, dtype=dtype.value), to.value, out, force=force)
    print(f"{out} holds {model} as {to.value}")
