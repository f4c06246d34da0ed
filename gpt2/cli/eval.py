"""`gpt2 eval`: what a model makes of your own texts: perplexity, bits per byte, and the passages that cost it most."""

import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gpt2.cli.common import Device, DType, Json, Model, Revision, Threads, Width, console, load_model, print_json
from gpt2.errors import BadData, BadOption

if TYPE_CHECKING:
    from gpt2.evaluation.passages import Passage
    from gpt2.evaluation.perplexity import Document, Measure, Perplexity

# Documents that the table shows.
_ROWS = 10


def command(
    files: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="FILE...",
            help="Text files, .jsonl files (field text), folders of them; - reads standard input.",
            show_default=False,
        ),
    ] = None,
    stride: Annotated[
        int | None, typer.Option(help="How far windows move, in tokens.", show_default="half the window")
    ] = None,
    context: Annotated[
        int | None, typer.Option("--context", "--window", help="Tokens of a window.", show_default="the model's")
    ] = None,
    end_of_text_first: Annotated[
        bool, typer.Option(help="Read end of text before a document, so that its first token is scored too.")
    ] = True,
    transformers: Annotated[
        bool,
        typer.Option(
            "--transformers", help="Count as the strided recipe of transformers' documentation does (no end of text)."
        ),
    ] = False,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Score only so many documents, the first ones.", show_default="all")
    ] = None,
    hardest: Annotated[int, typer.Option(min=0, help="How many of the hardest passages to show.")] = 5,
    model: Model = None,
    revision: Revision = None,
    device: Device = "cpu",
    dtype: Width = DType.float32,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Measure how well a model predicts texts: perplexity, bits per byte and per character, document by document.

    Each text file, and each line of a .jsonl file, is one document, read by itself. What was done is printed with the
    figures, because perplexities by different protocols, or of different vocabularies, are not to be compared.
    """
    if not files:
        raise BadOption("Give text files to score, or - for standard input.")
    for name, value in (("--stride", stride), ("--context", context)):
        if value is not None and value < 1:
            raise BadOption(f"{name} is {value}; it must be at least 1.")
    if stride is not None and context is not None and stride > context:
        raise BadOption(f"--stride is {stride}; it must be between 1 and the window, {context}.")
    documents = _read(files, limit)
    from gpt2.evaluation.perplexity import Protocol, perplexity

    protocol = Protocol(context, stride, end_of_text_first and not transformers, transformers)
    loaded = load_model(model, revision, device, dtype, threads)
    protocol.sizes(loaded.config.n_positions)
    with _bar() as progress:
        found = perplexity(loaded, documents, protocol, hardest=hardest, progress=progress)
    if as_json:
        print_json({"model": loaded.source, "dtype": loaded.dtype, **_as_json(found)})
    else:
        _show(found)


def _read(names: list[str], limit: int | None) -> "list[Document]":
    """The documents that the names stand for, no more than `limit`."""
    found: list[Document] = []
    for document in _documents(names):
        if "\0" in document.text:
            raise BadData(f"{document.name} holds zero bytes, so it is no text.")
        found.append(document)
        if len(found) == limit:
            break
    if not found:
        raise BadData(f"{', '.join(names)} holds no text to score.")
    return found


def _documents(names: list[str]) -> "Iterator[Document]":
    from gpt2.cli.common import decode
    from gpt2.evaluation.perplexity import Document
    from gpt2.training.documents import find_files, read_documents

    if names.count("-") > 1:
        raise BadOption("Standard input (-) can be read once.")
    # All are found before one is read, so that a slip is told at once.
    paths = find_files([Path(name) for name in names if name != "-"]) if set(names) != {"-"} else []
    if "-" in names:
        if sys.stdin is None:
            raise BadData("Standard input is closed, so there is nothing to read for `-`.")
        if text := decode(sys.stdin.buffer.read(), "Standard input"):
            yield Document("standard input", text)
    for path in paths:
        for number, text in enumerate(read_documents([path]), 1):
            yield Document(f"{path} #{number}" if path.suffix == ".jsonl" else str(path), text)


@contextmanager
def _bar() -> "Iterator[Callable[[int, int], None] | None]":
    """A progress bar over windows on stderr, where that is a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    shown = Console(file=sys.stderr)
    if not shown.is_terminal:
        yield None
        return
    columns = (TextColumn("window"), MofNCompleteColumn(), BarColumn(bar_width=24), TimeRemainingColumn())
    with Progress(*columns, console=shown, transient=True) as bar:
        task = bar.add_task("windows", total=None)
        yield lambda done, of: bar.update(task, completed=done, total=of)


def _as_json(found: "Perplexity") -> dict[str, Any]:
    documents = [{"name": each.name, **_figures(each)} for each in found.documents]
    return {
        **_figures(found.total),
        "interval": found.interval and [_number(end) for end in found.interval],
        "interval_over": found.units if found.interval else None,
        "protocol": found.protocol,
        "documents": documents,
        "hardest": [
            {
                "document": each.document,
                "before": each.before,
                "text": each.text,
                "behind": each.behind,
                "nats": each.nats,
                "tokens": each.tokens,
            }
            for each in found.hardest
        ],
    }


def _figures(measure: "Measure") -> dict[str, Any]:
    return {
        "perplexity": _number(measure.perplexity),
        "word_perplexity": _number(measure.word_perplexity),
        "nats_per_token": _number(measure.nats_per_token),
        "bits_per_byte": _number(measure.bits_per_byte),
        "bits_per_character": _number(measure.bits_per_character),
        "tokens": measure.tokens,
        "words": measure.words,
        "bytes": measure.bytes,
        "characters": measure.characters,
    }


def _number(value: float) -> float | None:
    """JSON knows no infinity and no NaN."""
    return value if math.isfinite(value) else None


def _show(found: "Perplexity") -> None:
    from rich.markup import escape
    from rich.table import Table

    shown, total = console(), found.total
    said = f"perplexity [bold]{_short(total.perplexity)}[/] a token"
    if found.interval:
        low, high = found.interval
        said += f" (95 %: {_short(low)} to {_short(high)}, over {found.units})"
    shown.print(f"{said}, {_short(total.word_perplexity)} a word", soft_wrap=True)
    shown.print(
        f"{total.bits_per_byte:.4f} bits a byte, {total.bits_per_character:.4f} a character, "
        f"{total.nats_per_token:.4f} nats a token"
    )
    several = len(found.documents) > 1
    documents = f"{len(found.documents):,} document{'s' * several}"
    shown.print(f"{total.tokens:,} tokens, {total.words:,} words, {total.bytes:,} bytes, {documents}")
    shown.print(f"[dim]protocol: {escape(found.protocol)}[/]", soft_wrap=True)
    if several:
        table = Table(box=None, pad_edge=False, header_style="dim")
        table.add_column("document, the worst first", overflow="fold")
        for name in ("bits/byte", "perplexity", "tokens"):
            table.add_column(name, justify="right")
        worst = sorted(found.documents, key=lambda each: -each.bits_per_byte)
        for each in worst[:_ROWS]:
            figures = (f"{each.bits_per_byte:.3f}", _short(each.perplexity), f"{each.tokens:,}")
            table.add_row(escape(each.name), *figures)
        shown.print()
        shown.print(table)
        if len(worst) > _ROWS:
            shown.print(f"[dim]and {len(worst) - _ROWS:,} more; --json has all[/]")
    if found.hardest:
        shown.print("\n[dim]what cost most, between » and «[/]")
    for passage in found.hardest:
        _show_passage(passage, several)


def _show_passage(passage: "Passage", several: bool) -> None:
    from rich.markup import escape

    before, text, behind = (escape(_on_one_line(part)) for part in (passage.before, passage.text, passage.behind))
    where = f"  {escape(passage.document)}" if several else ""
    tokens = "1 token" if passage.tokens == 1 else f"{passage.tokens} tokens"
    console().print(
        f"[dim]{passage.nats:.1f} nats, {tokens}{where}[/]\n  …{before}[bold red]»{text}«[/]{behind}…", soft_wrap=True
    )


def _on_one_line(text: str) -> str:
    """Line ends as ↵, and what a terminal would obey left out."""
    return "".join("↵" if each == "\n" else each if each.isprintable() else " " for each in text)


def _short(value: float) -> str:
    if math.isnan(value):
        return "–"
    return f"{value:,.2f}" if value < 1e5 else f"{value:.3g}"
