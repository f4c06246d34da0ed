"""`gpt2 train`: text files in, a run folder out."""

import dataclasses
import inspect
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gpt2.cli.common import Json, print_json
from gpt2.errors import BadOption
from gpt2.training.options import TrainingOptions, read_recipe, recipe_names

if TYPE_CHECKING:
    from gpt2.checkpoint import LanguageModel
    from gpt2.training.evaluate import Evaluation


def _train(
    data: Annotated[
        list[Path] | None,
        typer.Argument(help="Text files, .jsonl files (field text), or folders of them.", show_default=False),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Run folder to make.", show_default="runs/RECIPE")] = None,
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
        typer.Option(help="Go on with this run folder; of the other flags only --steps acts.", show_default=False),
    ] = None,
    as_json: Json = False,
    **values: Any,
) -> None:
    """Train a GPT-2 on text files, into a run folder whose checkpoints every other command reads.

    The folder holds checkpoints (Hugging Face directories), metrics.jsonl, samples, and loss.png at the end. A single
    text is split: its last tenth is held out. Of many documents a tenth is held out, by hash. Ctrl-C saves and stops.
    """
    given = {name: value for name, value in values.items() if value is not None}
    if resume is not None:
        _check_resume(data, out, recipe, given)
    elif not data:
        raise BadOption("Give text files to train on, or --resume RUN.")
    else:
        options = TrainingOptions.from_mapping((read_recipe(recipe) if recipe else {}) | given, "the command line")
    from gpt2 import training

    reporter = _Reporter()
    with reporter:
        if resume is not None:
            result = training.resume(resume, reporter, _write_sample, steps=given.get("steps"))
        else:
            result = training.train(options, data or [], out or _default_folder(recipe), reporter, _write_sample)
    if as_json:
        validation = result.validation
        print_json(
            {
                "run": str(result.path),
                "step": result.step,
                "train_loss": result.train_loss,
                "validation_loss": validation.nats_per_token if validation else None,
                "validation_bits_per_byte": validation.bits_per_byte if validation else None,
                "interrupted": result.interrupted,
            }
        )
    elif result.interrupted:
        print(f"Stopped at step {result.step} and saved; go on with: gpt2 train --resume {result.path}")
    else:
        print(f"Done. Try it: gpt2 generate --model {_as_path(result.path)} 'Once upon a time'")
    if result.interrupted:
        raise typer.Exit(130)


def _check_resume(data: list[Path] | None, out: Path | None, recipe: str | None, given: dict[str, Any]) -> None:
    others = [f"--{name.replace('_', '-')}" for name in given if name != "steps"]
    others += ["DATA"] * bool(data) + ["--out"] * (out is not None) + ["--recipe"] * (recipe is not None)
    if others:
        raise BadOption(f"A resumed run has its data and options already; leave out {', '.join(others)}.")


def _default_folder(recipe: str | None) -> Path:
    return Path("runs") / (Path(recipe).stem if recipe else "gpt2")


def _as_path(path: Path) -> str:
    """The path as `--model` takes it: with a slash, so that it cannot be a name."""
    return str(path) if "/" in str(path) or "\\" in str(path) else f"./{path}"


def _write_sample(model: "LanguageModel") -> str:
    from gpt2.generation import Completion, generate

    answer = generate(model, "", max_tokens=120, seed=1, overflow="stop")
    assert isinstance(answer, Completion)
    return answer.text


class _Reporter:
    """Progress on stderr: a bar that moves where there is a terminal, and lines that stay."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._console = Console(file=sys.stderr, highlight=False)
        self._bar = Progress(
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(),
            TextColumn("loss {task.fields[loss]:.3f}"),
            TextColumn("{task.fields[speed]:,.0f} tokens/s"),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._loss = self._speed = 0.0
        self._task = self._bar.add_task("training", visible=False, loss=0.0, speed=0.0)

    def __enter__(self) -> None:
        self._bar.start()

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def note(self, text: str) -> None:
        self._console.print(text, markup=False, soft_wrap=True)

    def start(self, step: int, steps: int) -> None:
        self._bar.update(self._task, completed=step, total=steps, visible=True)

    def step(self, step: int, loss: float, tokens_per_second: float) -> None:
        self._loss, self._speed = loss, tokens_per_second
        self._bar.update(self._task, completed=step, loss=loss, speed=tokens_per_second)

    def evaluation(self, step: int, evaluation: "Evaluation") -> None:
        self.note(
            f"step {step:>6}  train {self._loss:.3f}  validation {evaluation.nats_per_token:.3f} nats/token, "
            f"{evaluation.bits_per_byte:.3f} bits/byte  {self._speed:,.0f} tokens/s"
        )

    def sample(self, step: int, text: str) -> None:
        indented = "\n".join(f"    {line}" for line in text.strip().splitlines())
        self.note(f"sample at step {step}:\n{indented}")


def _with_training_options(function: Any) -> Any:
    """Gives the command a flag for every field of TrainingOptions, so that names and help are written down once."""
    parameters = [p for p in inspect.signature(function).parameters.values() if p.kind is not p.VAR_KEYWORD]
    for field in dataclasses.fields(TrainingOptions):
        kind: Any = field.type
        flag = f"--{field.name.replace('_', '-')}"
        declared = f"{flag}/--no-{field.name}" if kind is bool else flag
        # A flag that is not given is None, so that a recipe's value stands; its default is told in the help.
        told = f"{field.metadata['help']} [default: {field.default}]"
        annotation = Annotated[kind | None, typer.Option(declared, help=told, show_default=False)]
        parameters.append(
            inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
        )
    function.__signature__ = inspect.Signature(parameters)
    function.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return function


command = _with_training_options(_train)
