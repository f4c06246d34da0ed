"""`gpt2 paper`: the paper's zero-shot table for any checkpoint, beside the paper's own numbers."""

import sys
import textwrap
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
# On a terminal below this the readings would be a word a line: the intervals are left out.
_NARROW = 100


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
    from rich.padding import Padding
    from rich.table import Table

    from gpt2.evaluation.published import LARGEST, PAPER, nearest
    from gpt2.evaluation.rows import Cell

    size = nearest(model.config.parameters)
    console = Console(highlight=False, width=None if sys.stdout.isatty() else _WIDTH)
    narrow = console.width < _NARROW
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("", overflow="fold")
    heads = ["this model", "95 %", "random", f"paper, {size}", "harness", "items", "note"]
    shown = [head for head in heads if (control or head != "random") and not (narrow and head == "95 %")]
    for head in shown:
        table.add_column(head.replace(" ", "\n") if narrow else head, justify="right", no_wrap=True)
    numbers: dict[tuple[str, str], int] = {}  # what several cells have in common is said once
    notes: list[str] = []
    missing: list[str] = []
    starred = False
    for result in found:
        table.add_row(f"[bold]{escape(result.row.title)}[/]")
        made: list[tuple[int, Cell]] = []
        for cell in result.cells:
            if not isinstance(cell, Cell):
                missing.append(f"{result.row.title}: {cell.why}")
                continue
            key = (cell.reading, cell.protocol)
            if key not in numbers:
                numbers[key] = len(numbers) + 1
                made.append((numbers[key], cell))
            published = PAPER[cell.paper] if cell.paper else {}
            paper, star = published.get(size, published.get(LARGEST)), "" if size in published else "*"
            starred |= bool(paper and star)
            harness, random = result.harness_of(cell), result.control_of(cell)
            values = (
                _number(cell.value),
                "" if cell.interval is None else f"{_number(cell.interval[0])} to {_number(cell.interval[1])}",
                "" if random is None else _number(random.value),
                "" if paper is None else f"{paper:g}{star}",
                "same" if cell.harness else "" if harness is None else _number(harness.value),
                f"{cell.items:,}",
                str(numbers[key]),
            )
            line = [value for head, value in zip(heads, values, strict=True) if head in shown]
            table.add_row(Padding(f"{escape(cell.metric)}, {escape(cell.reading)}", (0, 0, 0, 2)), *line)
        if not result.scored:
            table.add_row("  not scored, see below")
        notes += _notes(result.row.title, made)
    console.print(table)
    if narrow:
        console.print("[dim]The 95 % intervals need a wider terminal; --json has them.[/]")
    console.print(f"\nThis model: {model.source}, {model.config.parameters:,} parameters, {model.dtype}.", markup=False)
    console.print(
        "harness: what lm-evaluation-harness' protocol gives for this model; same: this reading is that protocol.",
        markup=False,
    )
    if starred:
        console.print(f"*: of the paper's largest model, {LARGEST}; it gives no other.", markup=False)
    for title, lines in (("How each was made:", notes), ("Not scored:", missing)):
        if lines:
            console.print(f"\n{title}", markup=False)
        for text in dict.fromkeys(lines):
            # On a terminal a note's lines stand behind its number; in a file it is one line.
            behind = " " * (len(text) - len(text.lstrip()) + 4)
            width = console.width if console.is_terminal else len(text) + 1
            text = textwrap.fill(text, width, subsequent_indent=behind, break_on_hyphens=False)
            console.print(text, markup=False, emoji=False, soft_wrap=True)


def _notes(title: str, made: "Sequence[tuple[int, Cell]]") -> list[str]:
    """A row's notes: what all its own readings have in common behind its title, then what each has alone."""
    if not made:
        return []
    parts = [cell.protocol.split("; ") for _, cell in made]
    own = [each for each, (_, cell) in zip(parts, made, strict=True) if not cell.reading.startswith("harness")]
    shared = [part for part in own[0] if all(part in each for each in own)] if len(own) > 1 else []
    lines = [f"{title}: {'; '.join(shared)}." if shared else f"{title}:"]
    for each, (number, cell) in zip(parts, made, strict=True):
        alone = [part for part in each if part not in shared] if each in own else each
        task = f" (the task {cell.harness})" if cell.harness else ""
        lines.append(f"  {number:>2} {cell.reading.rstrip(':')}{task}{': ' if alone else ''}{'; '.join(alone)}.")
    return lines


def _number(value: float) -> str:
    """Four figures, or whole numbers where there are more before the point."""
    if value >= 1e6:
        return f"{value:.3g}"
    places = next((places for places, least in enumerate((1000, 100, 10)) if value >= least), 3)
    return f"{value:,.{places}f}"
