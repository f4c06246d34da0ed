"""What the commands share: flags that are the same word everywhere, and how input is read and output written."""

import json
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gpt2.errors import BadPrompt
from gpt2.threads import check_threads

if TYPE_CHECKING:
    from rich.console import Console

    from gpt2.checkpoint import LanguageModel


class DType(StrEnum):
    """Widths that a model generates in."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    int8 = "int8"
    int4 = "int4"


class FileDType(StrEnum):
    """Widths that weights are written in."""

    float32 = "float32"
    bfloat16 = "bfloat16"


Model = Annotated[
    str | None,
    typer.Option(
        help="A model that ships with the package (the default), gpt2, gpt2-medium, gpt2-large, gpt2-xl, "
        "a folder (with a slash in it), a run folder, or owner/name on the hub.",
        show_default=False,
    ),
]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub name.", show_default=False)]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps.")]
Width = Annotated[DType, typer.Option("--dtype", help="What the model computes in.")]
Compile = Annotated[
    bool | None,
    typer.Option(
        "--compile/--no-compile",
        help="torch.compile, or plain PyTorch; default: what is fastest here.",
        show_default=False,
    ),
]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads; default: as many as torch takes.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")]


def load_model(
    model: str | None,
    revision: str | None = None,
    device: str = "cpu",
    dtype: str = "float32",
    threads: int | None = None,
) -> "LanguageModel":
    """Loads what `--model` and its companions name; `dtype` is a value of `DType`."""
    import torch

    from gpt2.checkpoint import DEFAULT_MODEL, load

    if threads is not None:
        check_threads(threads, "--threads")
        torch.set_num_threads(threads)
    return load(DEFAULT_MODEL if model is None else model, revision=revision, device=device, dtype=str(dtype))


def read_text(argument: str) -> str:
    """A text given on the command line; `-` reads standard input, less one line end at its end."""
    if argument != "-":
        return argument
    if sys.stdin is None:
        raise BadPrompt("Standard input is closed, so there is nothing to read for `-`.")
    return without_line_end(decode(sys.stdin.buffer.read(), "Standard input"))


def read_file(path: Path) -> str:
    """The text of a file. Raises BadPrompt if it is no UTF-8."""
    return decode(path.read_bytes(), str(path))


def decode(data: bytes, source: str) -> str:
    """Bytes as UTF-8 text, with or without a byte order mark. Raises BadPrompt, naming the source, for other bytes."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadPrompt(f"{source} is not UTF-8 text: byte {error.start} is {data[error.start]:#04x}.") from None


def without_line_end(text: str) -> str:
    """The text less one line end at its end, which editors and `echo` put there."""
    return text.removesuffix("\n").removesuffix("\r")


def print_json(document: Any) -> None:
    """Prints one JSON document on stdout."""
    print(json.dumps(document, ensure_ascii=False))


def console() -> "Console":
    """A rich console on stdout."""
    from rich.console import Console

    return Console(highlight=False)
