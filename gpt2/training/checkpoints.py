"""The checkpoints of a run: Hugging Face directories, written whole or not at all, and the files that point at them.

    latest, best            the name of a checkpoint each
    checkpoints/step-000500/            a Hugging Face directory
      training/                         the optimiser's files, and
        state.json                      scalars

Whatever is called `step-*` is whole at every instant, and so is what `latest` and `best` name, wherever a kill or a
full disk strikes: a checkpoint is written under a hidden name, synced and renamed, then pointed at, and it is hidden
again before it is deleted. This file knows nothing of how a step is made.
"""

import json
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import NoneType
from typing import Any

from safetensors import SafetensorError
from torch.distributed.checkpoint.api import CheckpointException

from gpt2.errors import BadCheckpoint, Error
from gpt2.files import remove_temporary, write_atomically
from gpt2.model import GPT2
from gpt2.tokenizer import Tokenizer
from gpt2.training.optimizer import Optimizer
from gpt2.training.ranks import Ranks
from gpt2.training.work import Work


class Checkpoints:
    """The checkpoints in a run's folder, which need not be there yet. work: what of a network they hold."""

    def __init__(self, run: Path, work: Work | None = None) -> None:
        self.run, self._work = run, work or Work()
        self.path = run / "checkpoints"

    def present(self) -> list[Path]:
        """All checkpoints, by their steps."""
        return sorted((path for path in self.path.glob("step-*") if path.name[5:].isdecimal()), key=_step)

    def pointed(self, pointer: str = "latest") -> Path | None:
        """The checkpoint that a pointer file (`latest`, `best`) names; None if there is none.

        Without a file `latest` it is the newest: a kill may come between a first checkpoint and its pointer.
        Raises BadCheckpoint if the file names nothing that is there.
        """
        name, present = self._name_in(pointer), self.present()
        if name is None:
            return present[-1] if pointer == "latest" and present else None
        path = next((path for path in present if path.name == name), None)
        if path is None:
            advice = f"write {present[-1].name} into it" if present else "delete it, and the run begins again"
            raise BadCheckpoint(f"{self.run / pointer} says {name!r}, which is no checkpoint in {self.path}; {advice}.")
        return path

    def before(self, step: int) -> Path | None:
        """The newest checkpoint of fewer steps; None if there is none."""
        return next((path for path in reversed(self.present()) if _step(path) < step), None)

    def _name_in(self, pointer: str) -> str | None:
        file = self.run / pointer
        return file.read_text(encoding="utf-8", errors="replace").strip() if file.is_file() else None

    # Writing

    def save(
        self,
        step: int,
        network: GPT2,
        tokenizer: Tokenizer,
        optimizer: Optimizer,
        state: dict[str, Any],
        ranks: Ranks,
    ) -> Path:
        """Writes the checkpoint of a step and points `latest` at it, and `best` at that of state["best_step"].

        `state` is JSON. Every rank calls it, and all of them must see this folder. Raises Error, naming the checkpoint
        that is whole, if the disk is full or the like.
        """
        path = self.path / _name(step)
        training = self.path / f".{path.name}.training.tmp"
        with self.writing(f"The checkpoint {path.name}"):
            try:
                if ranks.is_first:
                    shutil.rmtree(training, ignore_errors=True)
                    training.mkdir(parents=True)
                ranks.barrier()
                optimizer.save(training)
                ranks.barrier()  # all of its parts are there
                with ranks.whole(network) as whole:
                    if whole is not None:
                        (training / "state.json").write_bytes(_state_file(step, state))
                        self._work.form.write(whole, tokenizer, path, self._beside(training))
                if ranks.is_first:
                    write_atomically(self.run / "latest", f"{path.name}\n".encode())
                    self.point_best(state["best_step"])
                ranks.barrier()
            finally:
                if ranks.is_first:
                    shutil.rmtree(training, ignore_errors=True)
        return path

    def restate(self, step: int, state: dict[str, Any]) -> None:
        """Replaces the state in the checkpoint of a step, and points `best` as it says; nothing if it is gone."""
        training = self.path / _name(step) / "training"
        if training.is_dir():
            write_atomically(training / "state.json", _state_file(step, state))
        self.point_best(state["best_step"])

    def _beside(self, training: Path) -> Callable[[Path], None]:
        """Puts into a checkpoint's folder what it holds beside the network."""

        def put(folder: Path) -> None:
            training.rename(folder / "training")
            for name, content in self._work.files.items():
                (folder / name).write_bytes(content)

        return put

    def point_best(self, step: int | None) -> None:
        """Points `best` at the checkpoint of a step; if there is none, or somebody deleted it, there is no `best`."""
        if step is not None and (self.path / _name(step)).is_dir():
            write_atomically(self.run / "best", f"{_name(step)}\n".encode())
        else:
            (self.run / "best").unlink(missing_ok=True)

    def prune(self, keep: int, step: int) -> None:
        """Deletes all but the newest `keep` checkpoints up to `step` and those that are pointed at; 0 keeps all.

        Later ones belong to a life of the run that was given up, and do not count.
        """
        if not keep:
            return
        pointed = {self._name_in("latest"), self._name_in("best")}
        for path in [path for path in self.present() if _step(path) <= step][:-keep]:
            if path.name not in pointed:
                # Deleting takes a while: nobody shall find half a checkpoint.
                hidden = path.with_name(f".{path.name}.old.tmp")
                shutil.rmtree(hidden, ignore_errors=True)
                path.rename(hidden)
                shutil.rmtree(hidden, ignore_errors=True)

    def sweep(self) -> None:
        """Deletes what a process that was killed left half-written. Nobody may be writing here."""
        for folder in (self.path, *(path / "training" for path in self.present())):
            remove_temporary(folder)

    @contextmanager
    def writing(self, what: str) -> Iterator[None]:
        """Around writing `what` (which begins a sentence) into the run's folder: one sentence for whatever goes wrong.

        Raises Error, naming the checkpoint that is whole.
        """
        try:
            yield
        except (OSError, SafetensorError, CheckpointException) as error:
            try:
                whole = self.pointed()
            except (OSError, BadCheckpoint):
                whole = None
            saved = f"{whole.name} is whole" if whole else "nothing was saved before"
            raise Error(
                f"{what} could not be written to {self.run} ({reason(error)}); {saved}. "
                f"Mend that, and go on with `{self._work.command} --resume {self.run}`."
            ) from None

    # Reading

    def state(self) -> dict[str, Any]:
        """The state that was saved with the latest checkpoint; raises BadCheckpoint if there is none."""
        path = self._latest()
        file = path / "training" / "state.json"
        with self.reading():
            try:
                state = json.loads(file.read_text(encoding="utf-8"))
                _check_state(state)
            except (OSError, ValueError) as error:
                raise BadCheckpoint(f"{file} is damaged ({reason(error)}).") from None
            if state["step"] != _step(path):
                raise BadCheckpoint(f"{file} is of step {state['step']}, not of its checkpoint's.")
        return dict(state)

    def load(self) -> tuple[GPT2, Tokenizer, dict[str, Any], Path]:
        """Network, tokenizer and state of the latest checkpoint, and the folder with its optimiser's files.

        Raises BadCheckpoint, naming what is damaged and the checkpoint to go on from instead.
        """
        path, state = self._latest(), self.state()
        with self.reading():
            network, tokenizer = self._work.form.read(path)
            if state.get("tokenizer") not in (None, tokenizer.fingerprint()):
                raise BadCheckpoint(f"The tokenizer in {path} is not the one that the run was saved with.")
        # Copies: the weights are mapped to a file that `prune` deletes later, which Windows would not allow.
        network.load_state_dict({name: tensor.clone() for name, tensor in network.state_dict().items()}, assign=True)
        return network, tokenizer, state, path / "training"

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Around reading the latest checkpoint: whatever is wrong with it is told with what to do."""
        try:
            yield
        except BadCheckpoint as error:
            path = self._latest()
            older = self.before(_step(path))
            advice = "There is no older checkpoint: start the run anew."
            if older:
                advice = f"To go on from the checkpoint before it, write {older.name} into {self.run / 'latest'}."
            raise BadCheckpoint(f"{error} {advice}") from None

    def _latest(self) -> Path:
        path = self.pointed()
        if path is None:
            raise BadCheckpoint(f"{self.run} has no checkpoint yet.")
        return path


def reason(error: BaseException) -> str:
    """What the system said, for a sentence; safetensors and torch wrap it up in words of their own."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    said = re.search(r"([^:]+) \(os error \d+\)", str(error))
    return said[1].strip() if said else str(error)


def _name(step: int) -> str:
    return f"step-{step:06d}"


def _step(path: Path) -> int:
    return int(path.name[5:])


def _state_file(step: int, state: dict[str, Any]) -> bytes:
    return (json.dumps(state | {"step": step}, indent=2, allow_nan=False) + "\n").encode()


# What resuming reads from state.json, and what each may be.
_STATE: dict[str, tuple[type, ...]] = {
    "step": (int,),
    "data": (str,),
    "seconds": (int, float),
    "best": (int, float, NoneType),
    "best_step": (int, NoneType),
}
# Not in the state of older runs.
_LATER_STATE: dict[str, tuple[type, ...]] = {
    "options": (dict,),
    "guard": (list,),
    "tokenizer": (str,),
    "tokens": (int,),
}


def _check_state(state: Any) -> None:
    """Raises ValueError for a state.json that is no such thing."""
    if not isinstance(state, dict):
        raise ValueError(f"it holds a {type(state).__name__}, not an object")
    for key, kinds in (_STATE | _LATER_STATE).items():
        if key not in state:
            if key in _LATER_STATE:
                continue
            raise ValueError(f"it lacks {key}")
        if not isinstance(state[key], kinds) or isinstance(state[key], bool):
            raise ValueError(f"it says {key} = {state[key]!r}")
    guard = state.get("guard", [[], [], [0]])
    if len(guard) != 3 or not all(isinstance(part, list) and _numbers(part) for part in guard) or len(guard[2]) != 1:
        raise ValueError("its guard is no three lists of numbers")


def _numbers(values: list[Any]) -> bool:
    return all(isinstance(value, int | float) for value in values)
