"""The paper's table for a checkpoint: runs the rows, sets their numbers beside the published ones, and a control.

What a row is stands in `rows.py`, how each is scored in the modules that `all_rows` names. Nothing is scored twice:
results are kept by model, row and item (`store.py`), and a run that was stopped goes on.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpt2.errors import BadOption, Busy, Error
from gpt2.evaluation.published import HARNESS, PAPER, PARAMETERS, nearest
from gpt2.evaluation.rows import Cell, Job, Missing, Row
from gpt2.evaluation.sets import Sets
from gpt2.evaluation.store import Store, model_fingerprint, path_for

if TYPE_CHECKING:
    from gpt2.checkpoint import LanguageModel

_CONTROL_SEED = 1


def all_rows() -> tuple[Row, ...]:
    """Every row, in the paper's order: Table 3, then the tasks of its section 3."""
    from gpt2.evaluation import answers, cloze, lambada, language, writing

    # A module with rows of its own gives them here: a tuple of `Row`, each with a function of a `Job`.
    return (lambada.ROW, *cloze.CBT_ROWS, *language.ROWS, cloze.WINOGRAD_ROW, *answers.ROWS, *writing.ROWS)


def chosen_rows(names: Sequence[str]) -> tuple[Row, ...]:
    """The rows of these names, in the paper's order; all for no names. Raises BadOption for one that there is not."""
    rows = all_rows()
    known = [row.name for row in rows]
    for name in names:
        if name not in known:
            raise BadOption(f"There is no row {name!r}; there are {', '.join(known)}.")
    return tuple(row for row in rows if not names or row.name in names)


@dataclass(frozen=True, slots=True)
class Result:
    """A row's numbers, and the control's for the same cells (None where there is no control)."""

    row: Row
    cells: tuple[Cell | Missing, ...]
    control: tuple[Cell | Missing, ...] | None = None

    @property
    def scored(self) -> tuple[Cell, ...]:
        """The cells that have a number."""
        return tuple(cell for cell in self.cells if isinstance(cell, Cell))

    def control_of(self, cell: Cell) -> Cell | None:
        """What the control got by the same reading, where a model had a part in it."""
        if cell.baseline:
            return None
        same = (each for each in self.control or () if isinstance(each, Cell))
        return next((each for each in same if (each.metric, each.reading) == (cell.metric, cell.reading)), None)

    def harness_of(self, cell: Cell) -> Cell | None:
        """What this model gets for the same metric by lm-evaluation-harness' protocol, if that is another one."""
        if cell.harness or cell.baseline:
            return None
        return next((each for each in self.scored if each.metric == cell.metric and each.harness), None)


def results(
    model: "LanguageModel",
    rows: Sequence[Row],
    sets: Sets,
    *,
    limit: int | None = None,
    stride: int | None = None,
    control: bool = False,
    folder: Path | None = None,
    progress: Callable[[str, int, int], None] = lambda *_: None,
) -> Iterator[Result]:
    """The rows' results, each as it is done. What cannot be had is a `Missing` in its row.

    limit: most items of each reading; stride: tokens between windows (default: half the model's window); control: a
    random model of the same shape is scored beside; folder: where scores are kept (default: the cache).

    Raises BadOption for a stride above the window, Busy where another process scores the same row.
    """
    window = model.config.n_positions
    if stride is not None and not 1 <= stride <= window:
        raise BadOption(f"stride is {stride}; it must be between 1 and the model's window, {window}.")
    random = random_control(model) if control else None
    for row in rows:
        found = _run(model, row, sets, limit, stride, folder, progress)
        beside = None
        if random is not None and any(isinstance(cell, Cell) for cell in found):
            beside = _run(random, row, sets, limit, stride, folder, lambda what, *n: progress(f"control, {what}", *n))
        yield Result(row, found, beside)


def _run(
    model: "LanguageModel",
    row: Row,
    sets: Sets,
    limit: int | None,
    stride: int | None,
    folder: Path | None,
    progress: Callable[[str, int, int], None],
) -> tuple[Cell | Missing, ...]:
    found: list[Cell | Missing] = []
    with Store(path_for(model, row.scores or row.name, folder)) as store:
        job = Job(model, sets, store, limit, stride, lambda what, *n: progress(f"{row.title}, {what}", *n))
        try:
            found.extend(row.cells(job))
        except Busy:
            raise
        except Error as error:
            # A window that is too small for the row's items, say: that is the row's to tell, and no end of the table.
            found.append(Missing(row.title, str(error)))
    return tuple(found)


def random_control(model: "LanguageModel") -> "LanguageModel":
    """A freshly initialised model (seed 1) of the same shape, vocabulary and device, in float32 or the same width."""
    import torch

    from gpt2.checkpoint import LanguageModel
    from gpt2.model import GPT2

    network = GPT2(model.config).initialise(_CONTROL_SEED).eval().requires_grad_(False)
    if model.dtype == "bfloat16":
        network = network.to(torch.bfloat16)
    return LanguageModel(network.to(model.network.device), model.tokenizer, "random control")


def as_json(model: "LanguageModel", found: Sequence[Result]) -> dict[str, Any]:
    """The table as one JSON document: every cell with its protocol, the paper's four sizes, and the nearest one's."""
    size = nearest(model.config.parameters)
    return {
        "model": model.source,
        "fingerprint": model_fingerprint(model),
        "parameters": model.config.parameters,
        "dtype": model.dtype,
        "nearest": {"size": size, "parameters": PARAMETERS[size]},
        "rows": [
            {
                "row": result.row.name,
                "title": result.row.title,
                "cells": [_cell(result, cell, size) for cell in result.scored],
                "missing": [asdict(cell) for cell in result.cells if isinstance(cell, Missing)],
                "paper": {column: dict(PAPER[column]) for column in result.row.columns},
            }
            for result in found
        ],
    }


def _cell(result: Result, cell: Cell, size: str) -> dict[str, Any]:
    paper = dict(PAPER[cell.paper]) if cell.paper else {}
    control, harness = result.control_of(cell), result.harness_of(cell)
    reported = HARNESS.get((cell.harness or "", cell.metric), ())
    return {
        "metric": cell.metric,
        "reading": cell.reading,
        "value": cell.value,
        "interval": cell.interval,
        "items": cell.items,
        "protocol": cell.protocol,
        "paper_column": cell.paper,
        "paper": paper,
        "paper_nearest": paper.get(size),
        "harness_task": cell.harness,
        "harness_reported": [asdict(each) for each in reported],
        "harness_protocol": {"task": harness.harness, "value": harness.value} if harness else None,
        "control": control.value if control else None,
    }
