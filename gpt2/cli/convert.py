"""`gpt2 convert`: a checkpoint from one format to another."""

import sys
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
    from gpt2.tasks import read_task, write_task

    source = load(model, revision=revision, dtype=dtype.value)
    task = None if source.path is None else read_task(source.path)
    convert(source, to.value, out, force=force, beside=None if task is None else lambda path: write_task(task, path))
    if task is not None and to is Format.openai:
        print(f"gpt2: note: OpenAI's format has no place for the task {task.name!r}; it is left out", file=sys.stderr)
    print(f"{out} holds {model} as {to.value}")
