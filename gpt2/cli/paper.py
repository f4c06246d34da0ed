"""`gpt2 paper`: the paper's zero-shot table for any checkpoint, beside the paper's own numbers."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gpt2.cli.bar import bar
from gpt2.cli.common import Device, DType, Json, Model, Revision, Threads, Width, load_model, print_json
from gpt2.errors import BadOption

if TYPE_CHECKING:
    from gpt2.checkpoint import LanguageModel
    from gpt2.evaluation.paper import Result
    from gpt2.evaluation.rows import Cell

# Columns of a table that goes into a file or a pipe.
_WIDTH = 150


def command(
    only: Annotated[
        str | None,
        typer.Option(
            metavar="ROWS",
            help="Rows by name, with commas: lambada, cbt-cn, cbt-ne, wikitext2, ptb, enwik8, text8, wikitext103, 1bw, "
            "winograd, natural-questions, coqa, cnn-dailymail, wmt14-en-fr, wmt14-fr-en.",
            show_default="all",
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            help="Folder of test sets, under the names that they are published by (.zip files too).",
            show_default="fetched from the hub by name",
        ),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Score only the first N items of each reading.", show_default="all")
    ] = None,
    stride: Annotated[
        int | None, typer.Option(min=1, help="How far windows move, in tokens.", show_default="half the window")
    ] = None,
    control: Annotated[
        bool, typer.Option("--control", help="Score a random model of the same shape beside, to see what chance gives.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder that keeps the scores, so that a stopped run goes on.", show_default="the cache"),
    ] = None,
    model: Model = None,
    revision: Revision = None,
    device: Device = "cpu",
    dtype: Width = DType.float32,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Score a model on the test sets of the GPT-2 paper, zero-shot, by protocols that are written out.

    Where the paper does not say how a number was made, every reading is printed. What was scored is kept: after Ctrl-C
    the same command goes on where it was. A test set that is not to be had is a row that says how to get it.
    """
    from gpt2.evaluation import paper
    from gpt2.evaluation.sets import Sets

    names = [name.strip() for name in only.split(",")] if only is not None else []
    if only is not None and not all(names):
        raise BadOption(f"--only is {only!r}; give names of rows with commas between them.")
    rows = paper.chosen_rows(names)
    sets = Sets(data)
    loaded = load_model(model, revision, device, dtype, threads)
    try:
        with bar() as progress:
            found = list(
                paper.results(
                    loaded, rows, sets, limit=limit, stride=stride, control=control, folder=out, progress=progress
                )
            )
    except KeyboardInterrupt:
        print("gpt2: stopped; what was scored is kept, and the same command goes on from there.", file=sys.stderr)
        raise typer.Exit(130) from None
    if as_json:
        print_json(paper.as_json(loaded, found))
    else:
        _show(loaded, found, control)
    if not any(result.scored for result in found):
        print("gpt2: none of the rows could be scored.", file=sys.stderr)
        raise typer.Exit(2)


def _show(model: "LanguageModel", found: "Sequence[Result]", control: bool) -> None:
    """The table, and below it what each number means and what is missing."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from gpt2.evaluation.published import PAPER, nearest
    from gpt2.evaluation.rows import Cell

    size = nearest(model.config.parameters)
    columns = [
        "set",
        "measure",
        "reading",
        "this model",
        "95 %",
        f"paper, {size}",
        "harness' protocol",
        "items",
        "note",
    ]
    if control:
        columns.insert(5, "random")
    table = Table(*columns, box=None, pad_edge=False, header_style="bold")
    for column in table.columns[3:]:
        column.justify = "right"
    notes: dict[str, int] = {}  # what several cells have in common is said once
    missing: list[str] = []
    for result in found:
        title = result.row.title
        for cell in result.cells:
            if not isinstance(cell, Cell):
                missing.append(f"{result.row.title}: {cell.why}")
                continue
            paper = PAPER[cell.paper].get(size) if cell.paper else None
            note = notes.setdefault(f"{result.row.title}, {cell.reading}: {cell.protocol}.", len(notes) + 1)
            line = [
                title,
                cell.metric,
                cell.reading,
                _number(cell.value),
                "" if cell.interval is None else f"{_number(cell.interval[0])} to {_number(cell.interval[1])}",
                "" if paper is None else f"{paper:g}",
                _harness(result, cell),
                f"{cell.items:,}",
                str(note),
            ]
            if control:
                random = result.control_of(cell)
                line.insert(5, "" if random is None else _number(random.value))
            table.add_row(*map(escape, line))
            title = ""
        if not result.scored:
            table.add_row(escape(title), "", "not scored, see below")
    console = Console(highlight=False, width=None if sys.stdout.isatty() else _WIDTH)
    console.print(table)
    console.print(f"\nThis model: {model.source}, {model.config.parameters:,} parameters, {model.dtype}.", markup=False)
    made = [f"{number} {note}" for note, number in notes.items()]
    for title, lines in (("How each was made:", made), ("Not scored:", missing)):
        if lines:
            console.print(f"\n{title}", markup=False)
        for text in dict.fromkeys(lines):
            console.print(text, markup=False, emoji=False, soft_wrap=True)


def _harness(result: "Result", cell: "Cell") -> str:
    """What the harness' protocol gives for this model, with the task's name; "this" where this is that protocol."""
    if cell.harness:
        return f"this ({cell.harness})"
    other = result.harness_of(cell)
    return "" if other is None else f"{_number(other.value)} ({other.harness})"


def _number(value: float) -> str:
    """Four figures, or whole numbers where there are more before the point."""
    if value >= 1e6:
        return f"{value:.3g}"
    return f"{value:,.0f}" if value >= 10_000 else f"{value:.2f}" if value >= 10 else f"{value:.3f}"
