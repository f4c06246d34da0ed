"""Training runs as steps of an experiment: each is made once, goes on where it stopped, and leaves a small result.

It calls `gpt2 train` as a user does, in a process of its own, and knows nothing of what the experiment compares.
"""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt2.training.options import TrainingOptions

Curve = list[tuple[int, float]]


@dataclass(frozen=True, slots=True)
class Finished:
    """What a run came to. validation: its last loss in nats a token, over all held-out tokens; curve: (tokens read,
    loss) of the measurements on the way; seconds: spent in steps."""

    validation: float
    bits_per_byte: float
    tokens: int
    seconds: float
    curve: Curve


class OutOfTime(Exception):
    """The limit was reached; what was being made is saved and goes on next time."""


@dataclass(frozen=True, slots=True)
class Runs:
    """Runs under `state`/runs. data: what `gpt2 train` reads; trainer: the folder whose `gpt2` trains; nice: added to
    the processes; until: `time.monotonic()` after which nothing is begun and what is under way is stopped."""

    state: Path
    data: Sequence[Path]
    trainer: Path
    nice: int = 0
    until: float = float("inf")

    def make(self, name: str, options: TrainingOptions, data: Sequence[Path] | None = None) -> Finished:
        """The run of that name, made or continued if it is not finished. Raises OutOfTime, RuntimeError."""
        folder = self.state / "runs" / name
        recipe, result = self.state / "recipes" / f"{name}.toml", folder / "result.json"
        recipe.parent.mkdir(parents=True, exist_ok=True)
        if recipe.is_file() and recipe.read_text(encoding="utf-8") != _toml(options):
            raise RuntimeError(
                f"{folder} was made with other options, see {recipe}; delete both, or use another state."
            )
        recipe.write_text(_toml(options), encoding="utf-8")
        if not result.is_file():
            if (folder / "recipe.toml").is_file():
                self._train(name, ["--resume", str(folder), "--steps", str(options.steps)])
            else:
                files = [str(path.absolute()) for path in data or self.data]
                self._train(name, [*files, "--recipe", str(recipe), "--out", str(folder)])
            result.write_text(json.dumps(dataclasses.asdict(_finished(folder, options.steps))) + "\n", encoding="utf-8")
        return read_result(folder)

    def branch(self, name: str, source: str, step: int) -> None:
        """A new run that goes on from another one's checkpoint of a step; nothing if it is there already."""
        folder, origin = self.state / "runs" / name, self.state / "runs" / source
        if (folder / "recipe.toml").is_file():
            return
        shutil.rmtree(folder, ignore_errors=True)
        for path in sorted((origin / "checkpoints").glob("step-*")):
            if int(path.name[5:]) <= step:
                # Links: a finished checkpoint is never written to again.
                shutil.copytree(path, folder / "checkpoints" / path.name, copy_function=os.link)
        latest = folder / "checkpoints" / f"step-{step:06d}"
        if not latest.is_dir():
            raise RuntimeError(f"{origin} has no checkpoint of step {step}.")
        (folder / "latest").write_text(f"{latest.name}\n")
        shutil.copy(origin / "metrics.jsonl", folder)
        # Last: what has a recipe is complete.
        shutil.copy(origin / "recipe.toml", folder)

    def drop_checkpoints(self, name: str) -> None:
        """Deletes the weights of a run that nothing will go on from; its result and its metrics stay."""
        shutil.rmtree(self.state / "runs" / name / "checkpoints", ignore_errors=True)

    def metrics(self, name: str) -> list[dict[str, Any]]:
        """The lines that a run wrote down."""
        return _metrics(self.state / "runs" / name)

    def _train(self, name: str, arguments: list[str]) -> None:
        if time.monotonic() >= self.until:
            raise OutOfTime
        print(f"{time.strftime('%H:%M:%S')} {name}", flush=True)
        log = self.state / "log" / f"{name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        command = ["nice", "-n", str(self.nice)] if self.nice else []
        command += [sys.executable, "-m", "gpt2", "train", *arguments]
        with log.open("a", encoding="utf-8") as output:
            process = subprocess.Popen(command, cwd=self.trainer, stdout=output, stderr=subprocess.STDOUT)
            try:
                limit = None if self.until == float("inf") else max(1.0, self.until - time.monotonic())
                code = process.wait(limit)
            except (subprocess.TimeoutExpired, KeyboardInterrupt):
                process.send_signal(signal.SIGTERM)
                process.wait()
                raise OutOfTime from None
        if code == 130:
            raise OutOfTime
        if code:
            raise RuntimeError(f"{name} failed ({code}); see {log}.")


def read_result(folder: Path) -> Finished:
    """The result of a finished run."""
    content = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    return Finished(**content | {"curve": [(tokens, loss) for tokens, loss in content["curve"]]})


def _finished(folder: Path, steps: int) -> Finished:
    metrics = _metrics(folder)
    tokens = {line["step"]: line["tokens"] for line in metrics if "tokens" in line}
    measured = [line for line in metrics if "validation_loss" in line]
    if not measured or measured[-1]["step"] != steps:
        raise RuntimeError(f"{folder} ended before step {steps}.")
    # The end may score more tokens than the measurements on the way: those alone are one curve.
    size = measured[0]["validation_tokens"]
    curve = [(tokens[line["step"]], line["validation_loss"]) for line in measured if line["validation_tokens"] == size]
    seconds = max(line["seconds"] for line in metrics if "seconds" in line)
    last = measured[-1]
    return Finished(last["validation_loss"], last["validation_bits_per_byte"], tokens[steps], seconds, curve)


def _metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def _toml(options: TrainingOptions) -> str:
    """What differs from the defaults, so that a trainer which lacks a newer option can read it."""
    fields = {field.name: field.default for field in dataclasses.fields(options)}
    values = dataclasses.asdict(options)
    return "".join(f"{name} = {json.dumps(values[name])}\n" for name in fields if values[name] != fields[name])
