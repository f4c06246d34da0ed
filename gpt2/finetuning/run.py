"""A fine-tuning from end to end: rows or text, the trainer's run, answers before and after, the best checkpoint.

It makes a `Work` of what was asked and hands it to the trainer; nothing here takes a step.
"""

import json
import os
import tomllib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpt2.checkpoint import LanguageModel, load, locate, read_directory, write_directory
from gpt2.checkpoint.adapter import is_adapter
from gpt2.errors import BadOption
from gpt2.files import write_atomically
from gpt2.finetuning.examples import Rows, open_rows
from gpt2.finetuning.lora import Lora
from gpt2.finetuning.measure import answers, check_scores, measured, shared_beginnings
from gpt2.finetuning.options import FinetuneOptions
from gpt2.finetuning.rows import Row
from gpt2.tasks.template import TASK, Task, Template, read_task, write_task
from gpt2.training.begin import is_path
from gpt2.training.changes import check_steps
from gpt2.training.loop import resume, train
from gpt2.training.options import TrainingOptions, shorter_warmup
from gpt2.training.processes import is_first
from gpt2.training.reporter import Reporter, Result, Sample, Silent
from gpt2.training.run import RunFolder
from gpt2.training.words import counted
from gpt2.training.work import Form, Note, Whole, Work, open_text

if TYPE_CHECKING:
    from gpt2.model import GPT2
    from gpt2.tokenizer import Tokenizer
    from gpt2.training.work import Material

SCORES = "scores.json"
_COMMAND = "gpt2 finetune"
_MOST_LABELS = 100


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a fine-tuning came to. result: the trainer's; best: the checkpoint with the lowest validation loss (without
    one, the last); task: what its task.json says; scores: of the best checkpoint's answers, empty if none are asked."""

    result: Result
    best: Path
    task: Task | None
    scores: Mapping[str, Any]


def finetune(
    options: TrainingOptions,
    tuning: FinetuneOptions,
    data: Sequence[Path | str],
    out: Path,
    reporter: Reporter,
    sample: Sample | None = None,
) -> Outcome:
    """Fine-tunes the model that `options.init` names on rows (with a template) or text files, into a run folder.

    `sample` writes a text with a model on the way; for rows, the first held-out answers are written instead.
    Raises BadData, BadOption, BadCheckpoint, Busy or Unavailable before anything is trained.
    """
    if not options.init:
        raise BadOption("init is empty, but a fine-tuning begins from a model: name one with --init.")
    check_scores(tuning.scores)
    if is_first():
        # Before the data are read and answers written, which may take minutes.
        RunFolder.create(out, _work(options, tuning, [], None, None))
    reporter = _of_first(reporter)
    model = load(options.init)
    options = options.changed({"init": _base_name(options.init, tuning)})
    window = model.config.n_positions
    if options.context > window:
        reporter.note(f"context is {window:,}, the window of {options.init}, and no longer {options.context:,}")
        options = options.changed({"context": window})
    if not tuning.template:
        work = _work(options, tuning, [], None, None)
        return _done(train(options, [Path(path) for path in data], out, reporter, sample, work), tuning, None, reporter)
    places = [_place(path) for path in data]
    rows = _rows(options, tuning, places, model.tokenizer, reporter.note)
    options = _with_epochs(options, tuning, len(rows.training))
    if not len(rows.held) and (options.patience or tuning.classify or tuning.scores):
        reporter.note("no rows are held out, so nothing is scored, and the run is not stopped early")
    task = _task(tuning, rows, options, reporter.note)
    if not isinstance(reporter, Silent):
        _show("before", model, task, rows, tuning, reporter.note)
    work = _work(options, tuning, places, rows, task)
    return _done(
        train(options, [], out, reporter, _sampling(task, rows, tuning, options), work), tuning, rows, reporter
    )


def go_on(
    out: Path,
    reporter: Reporter,
    sample: Sample | None = None,
    changes: Mapping[str, Any] | None = None,
    allow_changes: bool = False,
) -> Outcome:
    """Goes on with a fine-tuning, as `training.resume` does with a run. Raises BadOption for a run that is none."""
    reporter = _of_first(reporter)
    folder, options, _ = RunFolder.open(out, Work())
    # Before anything else that fewer steps may not go with.
    check_steps(folder, (changes or {}).get("steps"))
    options = options.changed(changes or {})
    tuning, places = _recorded(out)
    if not tuning.template:
        work = _work(options, tuning, [], None, None)
        return _done(resume(out, reporter, sample, changes, allow_changes, work), tuning, None, reporter)
    tokenizer = load(options.init).tokenizer
    rows = _rows(options, tuning, places, tokenizer, reporter.note)
    task = _task(tuning, rows, options, reporter.note)
    work = _work(options, tuning, places, rows, task)
    result = resume(out, reporter, _sampling(task, rows, tuning, options), changes, allow_changes, work)
    return _done(result, tuning, rows, reporter)


def _of_first(reporter: Reporter) -> Reporter:
    """Of several processes, which all read the data, one says what is in them."""
    return reporter if is_first() else Silent()


def export(run: Path, out: Path) -> None:
    """Writes the best checkpoint of a run (or a checkpoint, by its folder) as a plain Hugging Face directory, adapters
    added to their base, with its task. Raises BadOption for a folder with something in it, BadCheckpoint."""
    best = locate(run)
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise BadOption(f"{out} is there already; choose another place for the model.")
    model, task = load(best), read_task(best)

    beside = None if task is None else lambda folder: write_task(task, folder)
    write_directory(model.network, model.tokenizer, out, beside=beside)


def _recorded(out: Path) -> tuple[FinetuneOptions, list[str]]:
    recipe = out / "recipe.toml"
    record = tomllib.loads(recipe.read_text(encoding="utf-8")).get("run", {}).get("finetune")
    if not isinstance(record, dict):
        raise BadOption(f"{out} is no fine-tuning; go on with `gpt2 train --resume {out}`.")
    places = record.pop("data", [])
    return FinetuneOptions.from_mapping(record, str(recipe)), [str(place) for place in places]


def _place(data: Path | str) -> str:
    """Data as a run remembers them: from wherever it is resumed."""
    path = Path(data).expanduser()
    return str(path.absolute()) if path.exists() else str(data)


def _base_name(init: str, tuning: FinetuneOptions) -> str:
    """The base as an adapter will name it: of a run, the checkpoint that it has now."""
    found = locate(init, weights=False)
    if tuning.lora and is_adapter(found):
        raise BadOption(f"{init} is an adapter itself; write it as a whole model first (gpt2 convert --to hf).")
    # Without following links: a name in a cache says what a file is.
    return os.path.abspath(found) if is_path(init) else init  # noqa: PTH100


def _rows(
    options: TrainingOptions, tuning: FinetuneOptions, places: Sequence[str], tokenizer: "Tokenizer", note: Note
) -> Rows:
    return open_rows(
        places,
        Template(tuning.template),
        options,
        tokenizer,
        note,
        held=tuning.held_out or None,
        skip_bad=tuning.skip_bad,
        most=tuning.rows,
        shown=max(tuning.examples, tuning.scored if tuning.scores or tuning.classify else 0),
    )


def _with_epochs(options: TrainingOptions, tuning: FinetuneOptions, examples: int) -> TrainingOptions:
    if not tuning.epochs:
        return options
    steps = max(1, round(tuning.epochs * examples / options.batch_size))
    warmup = shorter_warmup(options.warmup_steps, options.steps, steps)
    return options.changed({"steps": steps, "warmup_steps": warmup})


def _task(tuning: FinetuneOptions, rows: Rows, options: TrainingOptions, note: Note) -> Task:
    """What task.json will say. Raises BadOption for labels that are none."""
    examples = rows.training
    longest = max(len(examples.target(index)) for index in range(len(examples)))
    labels: tuple[str, ...] = ()
    if tuning.classify:
        ids = {tuple(examples.target(index)) for index in range(len(examples))}
        labels = tuple(sorted(rows.tokenizer.decode(label) for label in ids))
        if not 2 <= len(labels) <= _MOST_LABELS:
            raise BadOption(
                f"classify is for 2 to {_MOST_LABELS} labels, and these rows have {len(labels):,} different targets."
            )
        if unseen := sum(tuple(rows.held.target(index)) not in ids for index in range(len(rows.held))):
            note(f"{counted(unseen, 'held-out row')} of {len(rows.held):,} have labels that no row to learn from has")
        alike: defaultdict[str, list[str]] = defaultdict(list)
        for label in labels:
            alike[" ".join(label.split()).casefold()].append(repr(label))
        for same_words in alike.values():
            if len(same_words) > 1:
                note(f"labels that differ in spaces or capitals alone: {', '.join(same_words)}")
        if same := shared_beginnings([rows.tokenizer.encode(label) for label in labels]):
            note(f"{same} of {len(labels)} labels share their first token with another: labels are scored whole")
    # An answer has its end, too, and leaves the prompt at least half of the window.
    most = max(1, min(longest + 1, options.context // 2))
    return Task(tuning.name or "finetuned", Template(tuning.template), (), most, labels, options.context)


def _work(
    options: TrainingOptions, tuning: FinetuneOptions, places: Sequence[str], rows: Rows | None, task: Task | None
) -> Work:
    def opened(
        paths: Sequence[Path], options: TrainingOptions, tokenizer: "Tokenizer | None", note: Note
    ) -> "Material":
        return open_text(paths, options, tokenizer, note) if rows is None else rows

    record = tuning.record() | ({"data": list(places)} if places else {})
    files = {} if task is None else {TASK: task.to_json().encode()}
    return Work(opened, _form(options, tuning), record, files, _COMMAND)


def _form(options: TrainingOptions, tuning: FinetuneOptions) -> Form:
    if not tuning.lora:
        return Whole()
    base = options.init

    def read_base() -> "tuple[GPT2, Tokenizer]":
        found = locate(base)
        if (found / "config.json").is_file():
            return read_directory(found)
        model = load(base)
        return model.network, model.tokenizer

    return Lora(tuning.lora, tuning.alpha, tuning.matrices, base, read_base)


def _sampling(task: Task, rows: Rows, tuning: FinetuneOptions, options: TrainingOptions) -> Sample | None:
    """What is written on the way; the end has answers of its own."""
    shown = rows.shown[: tuning.examples]
    if not shown or not options.sample_every:
        return None
    return lambda model: _told(model, task, shown)


def _show(when: str, model: LanguageModel, task: Task, rows: Rows, tuning: FinetuneOptions, note: Note) -> None:
    shown = rows.shown[: tuning.examples]
    if shown:
        note(f"{when}:\n{_told(model, task, shown)}")


def _told(model: LanguageModel, task: Task, rows: Sequence[Row]) -> str:
    """Examples for people: the prompt's end, what should come, what comes."""
    lines = []
    for answer in answers(model, task, rows):
        end = answer.prompt if len(answer.prompt) <= 300 else f"... {answer.prompt[-300:]}"
        wanted, text = (each.replace("\n", "\n            ") for each in (answer.target, answer.text))
        lines.append(f"--- {end}\n    wanted: {wanted}\n    answer: {text}")
    return "\n".join(lines)


def _done(result: Result, tuning: FinetuneOptions, rows: Rows | None, reporter: Reporter) -> Outcome:
    """Shows and scores what the best checkpoint answers, once a run is at its end."""
    if not result.is_first or result.interrupted:
        return Outcome(result, result.path, None, {})
    best = locate(result.path)
    task = read_task(best)
    scores: dict[str, Any] = {}
    if rows is not None and task is not None:
        model = load(best)
        _show(f"after ({best.name})", model, task, rows, tuning, reporter.note)
        wanted = rows.shown[: tuning.scored] if tuning.scores or tuning.classify else ()
        scores = measured(model, task, wanted, tuning.scores)
        if scores:
            told = ", ".join(f"{name} {value:.4g}" for name, value in scores.items() if isinstance(value, float))
            reporter.note(f"{best.name}, {counted(scores['rows'], 'held-out row')}: {told}")
            write_atomically(result.path / SCORES, (json.dumps(scores, indent=2) + "\n").encode())
    return Outcome(result, best, task, scores)
