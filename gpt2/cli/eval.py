"""`gpt2 eval`: what a model makes of your own texts: perplexity, bits per byte, and the passages that cost it most.

With --harness it runs tasks of lm-evaluation-harness instead (`harness.py`), with --overlap it looks texts up in a
corpus (`overlap.py`).
"""

import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gpt2.cli.bar import bar
from gpt2.cli.common import Device, DType, Json, Model, Revision, Threads, Width, console, load_model, print_json
from gpt2.cli.harness import harness as run_harness
from gpt2.cli.overlap import overlap as look_up
from gpt2.cli.overlap import written
from gpt2.errors import BadData, BadOption
from gpt2.files import write_atomically

if TYPE_CHECKING:
    from gpt2.checkpoint import LanguageModel
    from gpt2.evaluation.passages import Passage
    from gpt2.evaluation.perplexity import Document, Measure, Perplexity, Protocol

# Documents that the table shows.
_ROWS = 10
# Flags that mean something only in one of the three ways to use the command.
_OWN: Mapping[str, frozenset[str]] = MappingProxyType(
    {
        "": frozenset({"stride", "context", "end_of_text_first", "transformers", "hardest"}),
        "--harness": frozenset({"num_fewshot", "include_path"}),
        "--overlap": frozenset({"n", "samples", "max_tokens", "top_k", "seed"}),
    }
)
_OF_SAMPLES = ("max_tokens", "top_k", "seed")


def command(
    ctx: typer.Context,
    files: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="FILE...",
            help="Text, .jsonl (both also as .gz, .zst) and .parquet files, folders of them; - reads standard input.",
            show_default=False,
        ),
    ] = None,
    text_field: Annotated[
        str, typer.Option(help="Field with the text, in .jsonl and .parquet files (of a corpus, too).")
    ] = "text",
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
    harness: Annotated[
        str | None,
        typer.Option(
            metavar="TASKS",
            help="Run these tasks of lm-evaluation-harness instead: names with commas, * and ?; or .yaml files.",
            show_default=False,
        ),
    ] = None,
    num_fewshot: Annotated[
        int | None, typer.Option(min=0, help="With --harness: examples in the prompt.", show_default="the task's")
    ] = None,
    include_path: Annotated[
        Path | None, typer.Option(help="With --harness: a folder with tasks of your own.", show_default=False)
    ] = None,
    overlap: Annotated[
        str | None,
        typer.Option(
            metavar="CORPUS",
            help="Look the texts' n-grams up in a corpus instead: its folder of shards, or files and folders of text.",
            show_default=False,
        ),
    ] = None,
    n: Annotated[int, typer.Option("--n", min=1, help="With --overlap: words of an n-gram.")] = 8,
    samples: Annotated[
        int | None,
        typer.Option(min=1, help="With --overlap: look so many texts up that the model writes, not files."),
    ] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="With --samples: tokens of each.")] = 256,
    top_k: Annotated[
        int | None, typer.Option(min=1, help="With --samples: draw from the likeliest so many.", show_default="all")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="With --samples: of the first; the others count on.")] = 1,
    out: Annotated[
        Path | None, typer.Option(help="A file that gets what --json prints, too.", show_default=False)
    ] = None,
    model: Model = None,
    revision: Revision = None,
    device: Device = "cpu",
    dtype: Width = DType.float32,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Measure how well a model predicts texts: perplexity, bits per byte and per character, document by document.

    Each text file, and each record of a .jsonl or .parquet file, is one document, read by itself. What was done is
    printed with the figures, because perplexities by different protocols, or of different vocabularies, are not to be
    compared.
    """
    _check_way(ctx, harness, overlap, samples, bool(files))

    def load() -> "LanguageModel":
        return load_model(model, revision, device, dtype, threads)

    if harness is not None:
        document, show = run_harness(harness, load, limit, num_fewshot, include_path)
    elif overlap is not None:
        document, show = look_up(
            overlap,
            text_field,
            n,
            lambda: (
                (_read(files or [], text_field, limit), {})
                if samples is None
                else written(load(), samples, max_tokens, top_k, seed)
            ),
        )
    else:
        protocol = _protocol(stride, context, end_of_text_first, transformers)
        document, show = _perplexity(_read(files or [], text_field, limit), protocol, hardest, load)
    if out is not None:
        write_atomically(out, json.dumps(document, ensure_ascii=False, indent=1).encode() + b"\n")
    if as_json:
        print_json(document)
    else:
        show()


def _check_way(ctx: typer.Context, harness: str | None, overlap: str | None, samples: int | None, files: bool) -> None:
    """Raises BadOption for flags and files that do not belong to the way that is asked for."""
    if harness is not None and overlap is not None:
        raise BadOption("Give --harness or --overlap, not both.")
    way = "--harness" if harness is not None else "--overlap" if overlap is not None else ""
    for name in ctx.params:
        source = ctx.get_parameter_source(name)
        if source is None or source.name != "COMMANDLINE":
            continue
        flag = "--" + name.replace("_", "-")
        for other, names in _OWN.items():
            if other != way and name in names:
                raise BadOption(f"{flag} means nothing {f'with {way}' if way else f'without {other}'}.")
        if not files and overlap is None and name == "text_field":
            raise BadOption(f"{flag} means nothing without files.")
        if samples is None and name in _OF_SAMPLES:
            raise BadOption(f"{flag} means nothing without --samples.")
    if files and way == "--harness":
        raise BadOption("--harness reads the tasks' own data; leave the files out.")
    if files and samples is not None:
        raise BadOption("Give files, or --samples of the model's own, not both.")
    if not files and way != "--harness" and samples is None:
        what = "to look up, or --samples" if way else "to score, or - for standard input"
        raise BadOption(f"Give text files {what}.")


def _protocol(stride: int | None, context: int | None, end_of_text_first: bool, transformers: bool) -> "Protocol":
    from gpt2.evaluation.perplexity import Protocol

    for name, value in (("--stride", stride), ("--context", context)):
        if value is not None and value < 1:
            raise BadOption(f"{name} is {value}; it must be at least 1.")
    if stride is not None and context is not None and stride > context:
        raise BadOption(f"--stride is {stride}; it must be between 1 and the window, {context}.")
    return Protocol(context, stride, end_of_text_first and not transformers, transformers)


def _perplexity(
    documents: "list[Document]", protocol: "Protocol", hardest: int, load: "Callable[[], LanguageModel]"
) -> tuple[dict[str, Any], Callable[[], None]]:
    """The answer as JSON, and what shows it to people."""
    from gpt2.evaluation.perplexity import perplexity

    model = load()
    protocol.sizes(model.config.n_positions)
    with bar() as progress:
        found = perplexity(
            model, documents, protocol, hardest=hardest, progress=lambda done, of: progress("window", done, of)
        )
    return {"model": model.source, "dtype": model.dtype, **_as_json(found)}, lambda: _show(found)


def _read(names: list[str], field: str, limit: int | None) -> "list[Document]":
    """The documents that the names stand for, no more than `limit`."""
    found: list[Document] = []
    for document in _documents(names, field):
        if "\0" in document.text:
            raise BadData(f"{document.name} holds zero bytes, so it is no text.")
        found.append(document)
        if len(found) == limit:
            break
    if not found:
        raise BadData(f"{', '.join(names)} holds no text to score.")
    return found


def _documents(names: list[str], field: str) -> "Iterator[Document]":
    from gpt2.cli.common import decode
    from gpt2.evaluation.perplexity import Document
    from gpt2.evaluation.texts import read_texts

    if names.count("-") > 1:
        raise BadOption("Standard input (-) can be read once.")
    # All are found before one is read, so that a slip is told at once.
    found = read_texts([name for name in names if name != "-"], field)
    if "-" in names:
        if sys.stdin is None:
            raise BadData("Standard input is closed, so there is nothing to read for `-`.")
        if text := decode(sys.stdin.buffer.read(), "Standard input"):
            yield Document("standard input", text)
    yield from found


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
    shown.print(f"[dim]protocol: {escape(found.protocol)}[/]", soft_wrap=not shown.is_terminal)
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
    from rich.padding import Padding

    before, text, behind = (escape(_on_one_line(part)) for part in (passage.before, passage.text, passage.behind))
    where = f"  {escape(passage.document)}" if several else ""
    tokens = "1 token" if passage.tokens == 1 else f"{passage.tokens} tokens"
    shown = console()
    shown.print(f"[dim]{passage.nats:.1f} nats, {tokens}{where}[/]", soft_wrap=True)
    text = f"…{before}[bold red]»{text}«[/]{behind}…"
    if shown.is_terminal:
        shown.print(Padding(text, (0, 0, 0, 2)))
    else:
        shown.print(f"  {text}", soft_wrap=True)


def _on_one_line(text: str) -> str:
    """Line ends as ↵, and what a terminal would obey left out."""
    return "".join("↵" if each == "\n" else each if each.isprintable() else " " for each in text)


def _short(value: float) -> str:
    if math.isnan(value):
        return "–"
    return f"{value:,.2f}" if value < 1e5 else f"{value:.3g}"
