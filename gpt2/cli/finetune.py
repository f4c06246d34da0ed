"""`gpt2 finetune`: a model goes on with a task or a style, into a run folder."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gpt2.cli.common import Json, print_json
from gpt2.cli.progress import Progress
from gpt2.cli.train import (
    AllowChanges,
    RunOut,
    as_path,
    check_resume,
    done,
    said_once,
    stopped,
    with_training_options,
    write_sample,
)
from gpt2.errors import BadOption
from gpt2.finetuning.options import FinetuneOptions, read_task_recipe, task_recipe_names
from gpt2.training.options import TrainingOptions, over_recipe

if TYPE_CHECKING:
    from gpt2.finetuning import Task
    from gpt2.finetuning.run import Outcome


def _finetune(
    data: Annotated[
        list[str] | None,
        typer.Argument(
            help="With a template: files with rows (.jsonl, .csv, .tsv, .parquet; .gz and .zst too), folders of them, "
            "a dump of Wikipedia (.xml.bz2), or owner/name on the hub. Without: text files.",
            show_default=False,
        ),
    ] = None,
    out: RunOut = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            help=f"Where values come from that no flag sets: {', '.join(task_recipe_names())}, or a TOML file.",
            show_default=False,
        ),
    ] = None,
    resume: Annotated[Path | None, typer.Option(help="Go on with this run folder.", show_default=False)] = None,
    allow_changes: AllowChanges = False,
    export: Annotated[
        Path | None,
        typer.Option(
            help="At the end, write the best checkpoint there as a plain Hugging Face directory, adapters merged.",
            show_default=False,
        ),
    ] = None,
    as_json: Json = False,
    **values: Any,
) -> None:
    r"""Fine-tune a model: on rows with a prompt and a target, the loss on the target alone, or on plain text.

    The template says how a row becomes a text: '{article}\nTL;DR: {summary}' learns the column `summary` behind the
    column `article`. Checkpoints hold a task.json, which says in what words the model is asked, and `gpt2 generate
    --task NAME` asks so. With --lora an adapter is learnt, which peft reads, and the base stays as it is.
    """
    tunings = {field.name for field in dataclasses.fields(FinetuneOptions)}
    given = {name: value for name, value in values.items() if value is not None and name not in tunings}
    tuned = {name: value for name, value in values.items() if value is not None and name in tunings}
    outcome = _run(data or [], out, recipe, resume, allow_changes, export, given, tuned)
    result = outcome.result
    if export is not None and result.is_first and not result.interrupted:
        from gpt2.finetuning.run import export as write_merged

        write_merged(outcome.best, export)
    if not result.is_first:
        pass
    elif as_json:
        validation = result.validation
        print_json(
            {
                "run": str(result.path),
                "step": result.step,
                "best": str(outcome.best),
                "train_loss": result.train_loss,
                "validation_loss": validation.nats_per_token if validation else None,
                "interrupted": result.interrupted,
                "scores": dict(outcome.scores),
            }
        )
    elif result.interrupted:
        print(stopped(result, "gpt2 finetune"))
    else:
        print(f"{done(result)} The best checkpoint: {outcome.best}")
        print(f"Try it: gpt2 generate --model {as_path(export or outcome.best)} {_hint(outcome.task)}")
    if result.interrupted:
        raise typer.Exit(130)


@said_once()
def _run(
    data: list[str],
    out: Path | None,
    recipe: str | None,
    resume: Path | None,
    allow_changes: bool,
    export: Path | None,
    given: dict[str, Any],
    tuned: dict[str, Any],
) -> "Outcome":
    if resume is not None:
        check_resume(data, out, recipe, given | tuned, allow_changes and not tuned)
    elif not data:
        raise BadOption("Give data to learn from, or --resume RUN.")
    elif allow_changes:
        raise BadOption("--allow-changes is for --resume.")
    if export is not None and export.exists():
        raise BadOption(f"{export} is there already; choose another place to --export to.")
    options, tuning = _chosen(recipe, given, tuned) if resume is None else (None, None)
    from gpt2.finetuning import run as finetuning
    from gpt2.training.allocator import keep_freed_memory

    keep_freed_memory()
    with Progress() as reporter:
        if resume is not None:
            return finetuning.go_on(resume, reporter, write_sample, given, allow_changes)
        assert options is not None
        assert tuning is not None
        folder = out or Path("runs") / (tuning.name or "finetune")
        return finetuning.finetune(options, tuning, data, folder, reporter, write_sample)


def _hint(task: "Task | None") -> str:
    """How `generate` asks for what was learnt."""
    if task is None:
        return "'Once upon a time'"
    fields = task.template.prompt_fields
    return f"--task {task.name} " + ("'a text'" if len(fields) == 1 else "--file ROWS.jsonl" if fields else "")


def _chosen(
    recipe: str | None, given: dict[str, Any], tuned: dict[str, Any]
) -> tuple[TrainingOptions, FinetuneOptions]:
    """The recipe's values, and over them those of the command line."""
    training, task = read_task_recipe(recipe)
    if "template" in tuned:
        # What a shell passes on has no line ends of its own.
        tuned["template"] = tuned["template"].replace("\\n", "\n").replace("\\t", "\t")
    if "epochs" in tuned and "steps" in given:
        raise BadOption("--epochs sets the steps; leave out --steps, or --epochs.")
    if "held_out" in tuned:
        tuned["held_out"] = str(Path(tuned["held_out"]).expanduser().absolute())
    values = over_recipe(training, given)
    tuning = FinetuneOptions.from_mapping(task | tuned, "the command line")
    return TrainingOptions.from_mapping(values, "the command line"), tuning


command = with_training_options(_finetune, FinetuneOptions)
