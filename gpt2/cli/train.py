"""`gpt2 train`: text files or token shards in, a run folder out."""

import dataclasses
import inspect
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gpt2.cli.common import Json, print_json
from gpt2.cli.progress import Progress
from gpt2.errors import BadOption, Error
from gpt2.training.options import HOW, TrainingOptions, chosen_options, recipe_names
from gpt2.training.processes import first_alone_notices, told_by_first

if TYPE_CHECKING:
    from gpt2.checkpoint import LanguageModel
    from gpt2.training import Result


# What `gpt2 finetune` has as well.
RunOut = Annotated[Path | None, typer.Option(help="Run folder to make.", show_default="runs/RECIPE")]
AllowChanges = Annotated[
    bool, typer.Option("--allow-changes", help="With --resume: also with a changed recipe or changed data.")
]


def _train(
    data: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Text files (.txt, .md), .jsonl files (field text) or folders of them; or a folder that `gpt2 corpus "
            "build` made, which also reads pages, archives and compressed files; or token files (.bin) of nanoGPT or "
            "llm.c.",
            show_default=False,
        ),
    ] = None,
    out: RunOut = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            "--recipe",
            "--preset",
            help=f"Where values come from that no flag sets: {', '.join(recipe_names())}, or a TOML file.",
            show_default=False,
        ),
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(
            help="Go on with this run folder. Other flags may say how long, how often and where, not what is learnt.",
            show_default=False,
        ),
    ] = None,
    allow_changes: AllowChanges = False,
    as_json: Json = False,
    **values: Any,
) -> None:
    """Train a GPT-2 on text or on token shards, into a run folder whose checkpoints every other command reads.

    The folder holds checkpoints (Hugging Face directories), metrics.jsonl, samples, and loss.png at the end. A single
    text is split: its last tenth is held out. Of many documents a tenth is held out, by hash. Ctrl-C saves and stops.
    """
    given = {name: value for name, value in values.items() if value is not None}
    result = _run(data or [], out, recipe, resume, allow_changes, given)
    if not result.is_first:
        pass
    elif as_json:
        validation = result.validation
        print_json(
            {
                "run": str(result.path),
                "step": result.step,
                "train_loss": result.train_loss,
                "validation_loss": validation.nats_per_token if validation else None,
                "validation_bits_per_byte": validation.bits_per_byte if validation else None,
                "best": str(result.best) if result.best else None,
                "interrupted": result.interrupted,
            }
        )
    elif result.interrupted:
        print(stopped(result, "gpt2 train"))
    else:
        for line in _ended(result):
            print(line)
    if result.interrupted:
        raise typer.Exit(130)


def _trial(path: Path) -> str:
    """A command that tries a model: on a run folder, or on a checkpoint."""
    from gpt2.checkpoint import locate
    from gpt2.music.events import vocabulary
    from gpt2.tokenizer import read_tokenizer

    # Whatever has become of the files meanwhile: advice is no reason to fail.
    with suppress(Error):
        if read_tokenizer(locate(path)) == vocabulary():
            return f"gpt2 music generate --model {as_path(path)} --out new.mid"
    return f"gpt2 generate --model {as_path(path)} 'Once upon a time'"


def stopped(result: "Result", command: str) -> str:
    """What is said of a run that was asked to stop; command: what goes on with it."""
    done = f"at step {result.step} and saved" if result.step else "before the first step"
    return f"Stopped {done}; go on with: {command} --resume {result.path}"


def done(result: "Result") -> str:
    """How a sentence begins of a run that is at its end."""
    return "Nothing was left to do." if result.first_step == result.step else "Done."


def _ended(result: "Result") -> Iterator[str]:
    """What to do with a run that is at its end."""
    latest = result.path / "checkpoints" / f"step-{result.step:06d}"
    if result.best is None or result.best.name == latest.name:
        yield f"{done(result)} Try it: {_trial(result.path)}"
        return
    better = f"that of {result.best.name}, not of the last step, {result.step:,}"
    yield f"{done(result)} The lowest validation loss is {better}."
    yield f"Try it: {_trial(result.best)}"


@contextmanager
def said_once() -> Iterator[None]:
    """Under torchrun every process meets the same mistake, or notice, and the first says it."""
    try:
        with first_alone_notices():
            yield
    except Error as error:
        if told_by_first(str(error)):
            raise typer.Exit(2) from None
        raise


@said_once()
def _run(
    data: list[Path],
    out: Path | None,
    recipe: str | None,
    resume: Path | None,
    allow_changes: bool,
    given: dict[str, Any],
) -> "Result":
    if resume is not None:
        check_resume(data, out, recipe, given, allow_changes)
    elif not data:
        raise BadOption("Give text files to train on, or --resume RUN.")
    else:
        if allow_changes:
            raise BadOption("--allow-changes is for --resume.")
        options = chosen_options(recipe, given)
    from gpt2 import training
    from gpt2.training.allocator import keep_freed_memory

    # This process is ours and does nothing else; a caller of `gpt2.train` decides for itself.
    keep_freed_memory()
    with Progress() as reporter:
        if resume is not None:
            return training.resume(resume, reporter, write_sample, given, allow_changes)
        return training.train(options, data, out or _default_folder(recipe), reporter, write_sample)


def check_resume(
    data: list[str] | list[Path], out: Path | None, recipe: str | None, given: dict[str, Any], allow_changes: bool
) -> None:
    """Raises BadOption for what cannot be said of a run that is resumed."""
    others = [f"--{name.replace('_', '-')}" for name in given if name not in HOW and not allow_changes]
    others += ["DATA"] * bool(data) + ["--out"] * (out is not None) + ["--recipe"] * (recipe is not None)
    if others:
        raise BadOption(
            f"A resumed run has its data and options already; leave out {', '.join(others)}. (With --allow-changes, "
            "flags of options are taken.)"
        )


def _default_folder(recipe: str | None) -> Path:
    return Path("runs") / (Path(recipe).stem if recipe else "gpt2")


def as_path(path: Path) -> str:
    """The path as `--model` takes it: with a slash, so that it cannot be a name."""
    return str(path) if "/" in str(path) or "\\" in str(path) else f"./{path}"


def write_sample(model: "LanguageModel") -> str:
    """What is written on the way: a text from nothing."""
    from gpt2.generation import Completion, generate

    answer = generate(model, "", max_tokens=120, seed=1, overflow="stop")
    assert isinstance(answer, Completion)
    return answer.text


def with_training_options(function: Any, *others: type) -> Any:
    """Gives a command a flag for every field of other dataclasses of options and of TrainingOptions, so that names and
    help are written down once."""
    parameters = [p for p in inspect.signature(function).parameters.values() if p.kind is not p.VAR_KEYWORD]
    for field in [field for kind in (*others, TrainingOptions) for field in dataclasses.fields(kind)]:
        kind: Any = field.type
        flag = f"--{field.name.replace('_', '-')}"
        declared = f"{flag}/--no-{flag[2:]}" if kind is bool else flag
        # A flag that is not given is None, so that a recipe's value stands; its default is told in the help.
        told = f"{field.metadata['help']} [default: {field.default}]"
        annotation = Annotated[kind | None, typer.Option(declared, help=told, show_default=False)]
        parameters.append(
            inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
        )
    function.__signature__ = inspect.Signature(parameters)
    function.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return function


command = with_training_options(_train)
