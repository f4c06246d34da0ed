"""`gpt2 eval --harness`: tasks of lm-evaluation-harness, and their table."""

import io
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpt2.cli.bar import bar
from gpt2.cli.common import console
from gpt2.errors import BadOption

if TYPE_CHECKING:
    from gpt2.checkpoint import LanguageModel
    from gpt2.evaluation.harness import Result


def harness(
    tasks: str,
    load: "Callable[[], LanguageModel]",
    limit: int | None,
    num_fewshot: int | None,
    include_path: Path | None,
) -> tuple[dict[str, Any], Callable[[], None]]:
    """The answer as JSON, and what shows it to people. The tasks are looked up before the model is loaded."""
    names = [name.strip() for name in tasks.split(",")]
    if not all(names):
        raise BadOption(f"--harness is {tasks!r}; give names of tasks with commas between them.")
    with _quiet():
        from gpt2.evaluation.harness import VERSION, Tasks, evaluate

        chosen = Tasks(names, include_path)
    model = load()
    with bar() as progress, _quiet():
        found = evaluate(model, chosen, limit=limit, num_fewshot=num_fewshot, progress=progress)
    protocol = (
        f"lm-evaluation-harness {VERSION}: its prompts, metrics and aggregation, its tokenisation of context and "
        "continuation, its windows; log-probabilities and greedy choices by this package"
        + (f"; only the first {limit:,} items of each task" if limit else "")
    )
    document = {
        "model": model.source,
        "dtype": model.dtype,
        "protocol": protocol,
        "tasks": [
            {
                "task": each.task,
                "version": each.version,
                "num_fewshot": each.shots,
                "items": each.items,
                "metrics": [
                    {
                        "metric": figure.metric,
                        "filter": figure.filter,
                        "value": figure.value if math.isfinite(figure.value) else None,
                        "stderr": figure.stderr if figure.stderr is None or math.isfinite(figure.stderr) else None,
                        "higher_is_better": figure.higher_is_better,
                    }
                    for figure in each.figures
                ],
            }
            for each in found
        ],
    }
    return document, lambda: _show(found, protocol)


class _Nowhere(io.TextIOBase):
    """Takes what is written. It is never closed, since loggers may keep it."""

    def write(self, text: str) -> int:
        return len(text)


@contextmanager
def _quiet() -> Iterator[None]:
    """The library's bars, notes and prints are not shown: stdout may have to be one JSON document."""
    nowhere = _Nowhere()
    with redirect_stdout(nowhere), redirect_stderr(nowhere):
        yield


def _show(found: "list[Result]", protocol: str) -> None:
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("task", "metric"):
        table.add_column(name, overflow="fold")
    for name in ("value", "± standard error", "items", "shots"):
        table.add_column(name, justify="right")
    for each in found:
        for number, figure in enumerate(each.figures):
            arrow = {True: " ↑", False: " ↓", None: ""}[figure.higher_is_better]
            metric = figure.metric if figure.filter == "none" else f"{figure.metric} ({figure.filter})"
            table.add_row(
                escape(each.task) if not number else "",
                escape(metric) + arrow,
                _short(figure.value),
                "" if figure.stderr is None or math.isnan(figure.stderr) else f"± {_short(figure.stderr)}",
                f"{each.items:,}" if each.items and not number else "",
                str(each.shots) if each.shots is not None and not number else "",
            )
    shown = console()
    if not shown.is_terminal:
        shown.width = max(shown.width, 120)
    shown.print(table)
    shown.print(f"[dim]protocol: {escape(protocol)}[/]", soft_wrap=not shown.is_terminal)


def _short(value: float) -> str:
    return f"{value:,.4f}" if abs(value) < 1e5 else f"{value:.4g}"
