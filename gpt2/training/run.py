"""The run folder: what a training run leaves on disk, every piece written whole or not at all.

    NAME/
      recipe.toml             the resolved options and the data
      metrics.jsonl           a line per step that was measured
      samples/step-000500.txt
      loss.png
      compiler.txt            what torch.compile said when it failed; of the second process, compiler-1.txt
      lock                    held while a process writes here
      latest, best, checkpoints/    see checkpoints.py

It knows nothing of how a step is made.
"""

import json
import math
import os
import platform
import secrets
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from gpt2.errors import BadData, BadOption, Busy, Error
from gpt2.files import check_writable, is_temporary, remove_temporary, write_atomically
from gpt2.model import GPT2
from gpt2.tokenizer import Tokenizer
from gpt2.training.checkpoints import Checkpoints, reason
from gpt2.training.evaluate import Evaluation
from gpt2.training.optimizer import Optimizer
from gpt2.training.options import TrainingOptions, read_recipe
from gpt2.training.ranks import Ranks
from gpt2.training.work import Work


class RunFolder:
    """One run's folder. Construct it with `create` or `open`."""

    def __init__(self, path: Path, work: Work | None = None) -> None:
        self.path, self.work = path, work or Work()
        self.checkpoints = Checkpoints(path, self.work)
        self._token = ""

    @classmethod
    def create(cls, path: Path, work: Work | None = None) -> "RunFolder":
        """A new run's folder, not yet on disk; raises BadOption if something is there already or it cannot be made."""
        made = cls(path, work)
        try:
            if path.exists() and (not path.is_dir() or not all(_is_nothing(file) for file in path.iterdir())):
                raise BadOption(f"{path} is there already; choose another --out, or go on with `{made.command}`.")
            check_writable(path)
        except OSError as error:
            tried = Path(error.filename or path).absolute()
            raise BadOption(f"{path} cannot be made: {tried}: {reason(error)}. Choose another --out.") from None
        return made

    @classmethod
    def open(cls, path: Path, work: Work | None = None) -> tuple["RunFolder", TrainingOptions, list[str]]:
        """A run's folder, its options and its data; raises BadOption if it is none, or one of other work."""
        recipe = path / "recipe.toml"
        if not recipe.is_file():
            why = "it has no recipe.toml" if path.is_dir() else "there is no such folder"
            raise BadOption(f"{path} is no run folder: {why}.")
        options = TrainingOptions.from_mapping(read_recipe(str(recipe)), str(recipe))
        run = tomllib.loads(recipe.read_text(encoding="utf-8")).get("run")
        data = run.get("data") if isinstance(run, dict) else None
        if not isinstance(data, list) or not all(isinstance(name, str) for name in data):
            raise BadOption(
                f"{recipe} is damaged: it does not say what data the run has. Give it back its last lines: "
                '[run] and data = ["/path/to/the/text.txt"].'
            )
        if work is None and isinstance(run, dict) and "finetune" in run:
            raise BadOption(f"{path} is a fine-tuning; go on with `gpt2 finetune --resume {path}`.")
        return cls(path, work), options, data

    @property
    def command(self) -> str:
        """What goes on with this run."""
        return f"{self.work.command} --resume {self.path}"

    @property
    def again(self) -> str:
        """Where to change an option that a run cannot go on with, and how to go on."""
        begun = self.checkpoints.pointed() is not None
        go_on = f"`{self.command}{' --allow-changes' if begun else ''}`"
        return f"in {self.path / 'recipe.toml'}, and {'go on' if begun else 'begin again'} with {go_on}"

    def write_recipe(self, options: TrainingOptions, data: list[str]) -> None:
        """Writes the resolved options and the data's paths."""
        recipe = options.to_toml() + f"\n[run]\ndata = {json.dumps(data, ensure_ascii=False)}\n"
        if self.work.record:
            recipe += "\n[run.finetune]\n" + "".join(
                f"{name} = {json.dumps(value, ensure_ascii=False)}\n" for name, value in self.work.record.items()
            )
        try:
            recipe.encode()
        except UnicodeEncodeError:
            raise BadOption(f"A path among {data!a} is no UTF-8, so recipe.toml cannot hold it; rename it.") from None
        with self._writing("recipe.toml"):
            write_atomically(self.path / "recipe.toml", recipe.encode())

    @contextmanager
    def locked(self, ranks: Ranks) -> Iterator[None]:
        """Holds the folder against other runs, in the first process of this one, and clears away what a kill left.

        The system lets go of it when a process dies, so a file `lock` that is left over bars nobody.
        Raises Busy if another run has it, BadOption if nothing can be written there.
        """
        if not ranks.is_first:
            yield
            return
        lock = FileLock(self.path / "lock")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=0)
        except Timeout:
            raise Busy(
                f"Another process is training in {self.path}{self._holder()}; wait for it, or choose another --out."
            ) from None
        except OSError as error:
            raise BadOption(f"{self.path} cannot be written to ({reason(error)}), so no run can go on there.") from None
        try:
            token = f"process {os.getpid()} on {platform.node()}, {secrets.token_hex(4)}"
            with self._writing("lock"):
                # In place: a file renamed over it would not be the one that is locked.
                (self.path / "lock").write_text(token, encoding="utf-8")
            self._token = token
            for folder in (self.path, self.path / "samples"):
                remove_temporary(folder)
            self.checkpoints.sweep()
            yield
        finally:
            self._token = ""
            lock.release()

    def _holder(self) -> str:
        """Who says in the file `lock` that it is theirs, as a part of a sentence; nothing where nobody does."""
        try:
            token = (self.path / "lock").read_text(encoding="utf-8", errors="replace")
        except OSError:  # there is none, or (Windows) nobody else may read it
            return ""
        return f" ({token})" if token else ""

    @contextmanager
    def _writing(self, what: str) -> Iterator[None]:
        """Around every write: into the folder that was locked, and with one sentence for whatever goes wrong."""
        # No comparison of inodes: some network file systems change them.
        if self._token and (not self.path.is_dir() or self._holder() not in ("", f" ({self._token})")):
            raise Error(
                f"{self.path} was deleted, moved or taken over by another run while this one was on, so this one ends. "
                f"If it was moved, go on from there with `{self.work.command} --resume`."
            )
        with self.checkpoints.writing(what):
            yield

    # Metrics

    def log(self, line: dict[str, Any]) -> None:
        """Appends a line to metrics.jsonl."""
        with self._writing("metrics.jsonl"), (self.path / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, allow_nan=False) + "\n")

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl, without a last one that a kill cut short; raises BadData for a damaged one."""
        path = self.path / "metrics.jsonl"
        lines = path.read_bytes().splitlines(keepends=True) if path.is_file() else []
        metrics = []
        for number, line in enumerate(lines, 1):
            if not line.endswith(b"\n"):
                continue
            try:
                metrics.append(json.loads(line))
                whole = "step" in metrics[-1] and all(isinstance(value, int | float) for value in metrics[-1].values())
            except (ValueError, TypeError, AttributeError):
                whole = False
            if not whole:
                raise BadData(
                    f"{path}, line {number} is damaged: it is no measurement in JSON. Delete that line, or the file: "
                    "nothing but the record and the picture of the losses is made from it."
                )
        return metrics

    def take_up(self, step: int, best_step: int | None, keep: int) -> None:
        """Makes the folder what it was when the checkpoint of `step` had just been saved, so that a run goes on there.

        Measurements of later steps are dropped, for they are made again. Later checkpoints stay until they are.
        """
        kept = [line for line in self.metrics() if line["step"] <= step]
        with self._writing("metrics.jsonl"):
            write_atomically(self.path / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in kept).encode())
            self.checkpoints.point_best(best_step)
            self.checkpoints.prune(keep, step)

    def write_sample(self, step: int, text: str) -> None:
        """Keeps a text that the model wrote."""
        with self._writing("A sample"):
            write_atomically(self.path / "samples" / f"step-{step:06d}.txt", text.encode())

    def write_compiler(self, text: str, rank: int) -> Path:
        """Keeps what a compiler said to a process, and returns where. Raises Error."""
        path = self.path / f"compiler{f'-{rank}' * (rank > 0)}.txt"
        with self._writing(path.name):
            write_atomically(path, text.encode(errors="backslashreplace"))
        return path

    # Checkpoints

    def save(
        self,
        step: int,
        network: GPT2,
        tokenizer: Tokenizer,
        optimizer: Optimizer,
        state: dict[str, Any],
        ranks: Ranks,
        keep: int,
    ) -> None:
        """Writes a checkpoint, points at it, and deletes all but the newest `keep` (0: none) and the best.

        `state` is JSON, its `best_step` the checkpoint that is best. Every rank calls it. Raises Error.
        """
        if ranks.is_first:
            self._sync_metrics()
        self.checkpoints.save(step, network, tokenizer, optimizer, state, ranks)
        if ranks.is_first:
            self.checkpoints.prune(keep, step)

    def restate(self, step: int, state: dict[str, Any], ranks: Ranks, keep: int) -> None:
        """Replaces the state in the checkpoint of a step that has just been saved, and does as `save` with the best."""
        if ranks.is_first:
            with self._writing("state.json"):
                self.checkpoints.restate(step, state)
                self.checkpoints.prune(keep, step)

    def _sync_metrics(self) -> None:
        # The metrics up to a checkpoint must outlast a power cut as it does.
        path = self.path / "metrics.jsonl"
        with self._writing("metrics.jsonl"):
            if path.is_file():
                with path.open("r+b") as file:
                    os.fsync(file.fileno())


def _is_nothing(file: Path) -> bool:
    """Whether a file in a folder is what a run leaves that ended before its first step."""
    left = file.name in ("lock", "recipe.toml", "tensorboard", "tracking")
    return left or file.match("compiler*.txt") or is_temporary(file)


def rounded(facts: Mapping[str, float]) -> dict[str, float]:
    """A step's facts as they are written down: six digits are more than any of them is good for."""
    return {name: float(f"{value:.6g}") for name, value in facts.items() if name != "seconds_left"}


def last_losses(metrics: Sequence[dict[str, Any]]) -> tuple[float | None, Evaluation | None]:
    """The training loss and the validation that were written down last."""
    loss = next((line["train_loss"] for line in reversed(metrics) if "train_loss" in line), None)
    last = next((line for line in reversed(metrics) if "validation_loss" in line), None)
    if last is None:
        return loss, None
    nats = last["validation_loss"] * last["validation_tokens"]
    return loss, Evaluation(
        nats, last["validation_tokens"], round(nats / math.log(2) / last["validation_bits_per_byte"])
    )
