"""`gpt2 tokenizer train`: learns a vocabulary from files."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from gpt2.errors import BadOption

app = typer.Typer(help="Learn a vocabulary of your own.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    # With a callback, a group of one command keeps the command's name.
    pass


@app.command("train")
def train(
    files: Annotated[list[Path], typer.Argument(help="Text files, .jsonl files (field text), or folders of them.")],
    vocab_size: Annotated[int, typer.Option(help="Tokens: 256 bytes, the merges, and <|endoftext|>.")],
    out: Annotated[Path, typer.Option(help="Folder to write.", show_default=False)],
    layout: Annotated[
        str, typer.Option(help="hf (tokenizer.json, vocab.json, merges.txt) or openai (encoder.json, vocab.bpe).")
    ] = "hf",
    force: Annotated[bool, typer.Option("--force", help="Replace the vocabulary in the folder.")] = False,
) -> None:
    """Learn a byte-level BPE vocabulary from text. The same files give the same vocabulary."""
    if layout not in ("hf", "openai"):
        raise BadOption(f"--layout is {layout!r}; it must be hf or openai.")
    if out.exists() and (not out.is_dir() or any(out.iterdir())) and not force:
        raise BadOption(f"{out} is there already; choose another --out, or --force to replace its vocabulary.")
    from gpt2.tokenizer import learn, write_tokenizer
    from gpt2.training.documents import read_documents

    tokenizer = learn(read_documents(files), vocab_size, progress=sys.stderr.isatty())
    # Into the folder, and not in its place: what else lies there stays.
    write_tokenizer(tokenizer, out, "hf" if layout == "hf" else "openai")
    print(f"{tokenizer.vocab_size:,} tokens in {out}")
