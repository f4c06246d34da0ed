"""The run folder: what a training run leaves on disk, every piece written whole or not at all.

    NAME/
      recipe.toml             the resolved options and the data
      metrics.jsonl           a line per step that was measured
      samples/step-000500.txt
      loss.png
      lock                    held while a process writes here
      latest, best            the name of a checkpoint each
      checkpoints/step-000500/            a Hugging Face directory
        training/optimizer.safetensors    with what resuming needs beside it
        training/state.json

It knows nothing of how a step is made.
"""

import json
import shutil
import tempfile
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import NoneType
from typing import Any

from filelock import FileLock, Timeout
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from gpt2.checkpoint import read_directory, write_directory
from gpt2.errors import BadCheckpoint, BadData, BadOption, Busy
from gpt2.files import write_atomically
from gpt2.model import GPT2
from gpt2.tokenizer import Tokenizer
from gpt2.training.options import TrainingOptions, read_recipe


class RunFolder:
    """One run's folder. Construct it with `create` or `open`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def create(cls, path: Path) -> "RunFolder":
        """A new run's folder, not yet on disk; raises BadOption if something is there already or it cannot be made."""
        if path.exists() and (not path.is_dir() or any(file.name != "lock" for file in path.iterdir())):
            raise BadOption(
                f"{path} is there already; choose another --out, or go on with `gpt2 train --resume {path}`."
            )
        above = path.absolute()
        while not above.exists():
            above = above.parent
        try:
            # Only trying tells: permissions, read-only disks and full ones have nothing else in common.
            tempfile.TemporaryDirectory(prefix=".gpt2-", dir=above).cleanup()
        except OSError as error:
            raise BadOption(f"{path} cannot be made: {above}: {error.strerror}. Choose another --out.") from None
        return cls(path)

    @classmethod
    def open(cls, path: Path) -> tuple["RunFolder", TrainingOptions, list[str]]:
        """A run's folder, its options and its data; raises BadOption if it is none."""
        recipe = path / "recipe.toml"
        if not recipe.is_file():
            raise BadOption(f"{path} is no run folder: it has no recipe.toml.")
        options = TrainingOptions.from_mapping(read_recipe(str(recipe)), str(recipe))
        data = tomllib.loads(recipe.read_text(encoding="utf-8")).get("run", {}).get("data")
        if not isinstance(data, list):
            raise BadOption(f"{recipe} is damaged: it does not say what data the run has.")
        return cls(path), options, data

    def write_recipe(self, options: TrainingOptions, data: list[str]) -> None:
        """Writes the resolved options and the data's paths."""
        recipe = options.to_toml() + f"\n[run]\ndata = {json.dumps(data)}\n"
        write_atomically(self.path / "recipe.toml", recipe.encode())

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Holds the folder against other processes; raises Busy if one has it."""
        self.path.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.path / "lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise Busy(f"Another process is training in {self.path}; wait for it, or choose another --out.") from None
        try:
            # What a killed process left half-written.
            for stale in (self.path / "checkpoints").glob(".*.tmp"):
                shutil.rmtree(stale)
            yield
        finally:
            lock.release()

    # Metrics

    def log(self, line: dict[str, Any]) -> None:
        """Appends a line to metrics.jsonl."""
        with (self.path / "metrics.jsonl").open("a", encoding="utf-8") as file:
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

    def forget_after(self, step: int) -> None:
        """Drops the metrics of steps after this one: a resumed run makes them again."""
        kept = [line for line in self.metrics() if line["step"] <= step]
        write_atomically(self.path / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in kept).encode())

    def write_sample(self, step: int, text: str) -> None:
        """Keeps a text that the model wrote."""
        write_atomically(self.path / "samples" / f"{_name(step)}.txt", text.encode())

    # Checkpoints

    def checkpoint(self, pointer: str = "latest") -> Path | None:
        """The checkpoint that a pointer file (`latest`, `best`) names, None without the file.

        Raises BadCheckpoint if the file names nothing that is there.
        """
        name = self._pointed(pointer)
        if name is None:
            return None
        present = self._checkpoints()
        path = next((path for path in present if path.name == name), None)
        if path is None:
            advice = f"write {present[-1].name} into it" if present else "delete it, and the run begins again"
            raise BadCheckpoint(
                f"{self.path / pointer} says {name!r}, which is no checkpoint in {self.path / 'checkpoints'}; {advice}."
            )
        return path

    def _pointed(self, pointer: str) -> str | None:
        file = self.path / pointer
        return file.read_text(encoding="utf-8", errors="replace").strip() if file.is_file() else None

    def _checkpoints(self) -> list[Path]:
        """What is whole in the folder of checkpoints, oldest first."""
        found = [path for path in (self.path / "checkpoints").glob("step-*") if path.name[5:].isdecimal()]
        return sorted(found, key=lambda path: int(path.name[5:]))

    def save(
        self, step: int, network: GPT2, tokenizer: Tokenizer, optimizer: dict[str, Tensor], state: dict[str, Any]
    ) -> Path:
        """Writes a checkpoint and points `latest` at it; `state` is JSON."""
        path = self.path / "checkpoints" / _name(step)

        def beside(folder: Path) -> None:
            (folder / "training").mkdir()
            save_file({key: value.contiguous() for key, value in optimizer.items()}, folder / "training" / _OPTIMIZER)
            (folder / "training" / "state.json").write_text(
                json.dumps(state | {"step": step}, indent=2, allow_nan=False) + "\n"
            )

        write_directory(network, tokenizer, path, beside=beside)
        self.point("latest", step)
        return path

    def point(self, pointer: str, step: int) -> None:
        """Points `latest` or `best` at the checkpoint of a step."""
        write_atomically(self.path / pointer, f"{_name(step)}\n".encode())

    def load(self) -> tuple[GPT2, Tokenizer, dict[str, Tensor], dict[str, Any]]:
        """Network, tokenizer, optimiser and state of the latest checkpoint; raises BadCheckpoint if there is none."""
        path = self.checkpoint()
        if path is None:
            raise BadCheckpoint(f"{self.path} has no checkpoint yet.")
        network, tokenizer = read_directory(path)
        # Copies: the weights are mapped to a file that `prune` deletes later, which Windows would not allow.
        network.load_state_dict({name: tensor.clone() for name, tensor in network.state_dict().items()}, assign=True)
        folder = path / "training"
        try:
            state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
            _check_state(state)
            return network, tokenizer, load_file(folder / _OPTIMIZER), state
        except (OSError, ValueError, SafetensorError) as error:
            others = [other.name for other in self._checkpoints() if other != path]
            advice = f"write {others[-1]} into {self.path / 'latest'}" if others else "start the run anew"
            raise BadCheckpoint(
                f"{folder} is damaged, so the run cannot be resumed from it ({error}); {advice}."
            ) from None

    def prune(self, keep: int) -> None:
        """Deletes all but the newest `keep` checkpoints and those that are pointed at; 0 keeps all."""
        if not keep:
            return
        pointed = {self._pointed("latest"), self._pointed("best")}
        for path in self._checkpoints()[:-keep]:
            if path.name not in pointed:
                shutil.rmtree(path)


_OPTIMIZER = "optimizer.safetensors"


# What resuming reads from state.json, and what each may be.
_STATE: dict[str, tuple[type, ...]] = {
    "step": (int,),
    "data": (str,),
    "seconds": (int, float),
    "best": (int, float, NoneType),
    "best_step": (int, NoneType),
}


def _check_state(state: Any) -> None:
    """Raises ValueError for a state.json that is no such thing."""
    if not isinstance(state, dict):
        raise ValueError(f"state.json holds a {type(state).__name__}, not an object")
    for key, kinds in _STATE.items():
        if key not in state:
            raise ValueError(f"state.json lacks {key}")
        if not isinstance(state[key], kinds) or isinstance(state[key], bool):
            raise ValueError(f"state.json says {key} = {state[key]!r}")


def _name(step: int) -> str:
    return f"step-{step:06d}"
