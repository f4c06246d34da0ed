"""Where a run's metrics go beside metrics.jsonl: TensorBoard, Weights & Biases, trackio, behind one small face.

metrics.jsonl is the record; these are views of it. So one that fails says so once, and the training goes on. A run that
is resumed goes on in the same place. Names of metrics are those of metrics.jsonl. Nothing heavy is imported before a
tracker is made.
"""

import html
import json
import os
import secrets
import sys
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from gpt2.errors import BadOption, Unavailable
from gpt2.files import write_atomically

NAMES = ("tensorboard", "wandb", "trackio")


class Tracker(Protocol):
    """One of the programs."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None: ...
    def text(self, step: int, sample: str) -> None: ...
    def close(self) -> None: ...


def check_names(trackers: str) -> tuple[str, ...]:
    """The trackers that the option `trackers` names, in its order; "auto" and "none" stand alone. Raises BadOption."""
    names = tuple(name.strip() for name in trackers.split(","))
    if names in (("auto",), ("none",)):
        return names
    if unknown := [name for name in names if name not in NAMES]:
        raise BadOption(
            f"trackers is {unknown[0]!r}; it is auto, none, or some of {', '.join(NAMES)}, separated by commas."
        )
    return tuple(dict.fromkeys(names))


def check_installed(trackers: str) -> tuple[str, ...]:
    """The trackers that a run with this option has here: "auto" is TensorBoard where it is installed.

    Raises BadOption for an unknown name, and Unavailable for one that was asked for and is not installed.
    """
    names = check_names(trackers)
    if names == ("none",):
        return ()
    if names == ("auto",):
        return ("tensorboard",) if find_spec("tensorboard") else ()
    for name in names:
        if find_spec(name) is None:
            raise Unavailable(f"Logging to {name} needs the package {name}: install the extra `log` (see README).")
    return names


class Trackers:
    """The trackers of one run, in its folder. Use it as a context, or call `close`.

    trackers: the option. recipe: the run's resolved options. resumed_at: the step that a run goes on from, whose later
    points are dropped; None: it is new. note: is told, once, of a tracker that fails.
    """

    def __init__(
        self,
        folder: Path,
        trackers: str,
        recipe: Mapping[str, Any],
        resumed_at: int | None,
        note: Callable[[str], None],
    ) -> None:
        self._note = note
        self._trackers: dict[str, Tracker] = {}
        makers: dict[str, Callable[..., Tracker]] = {
            "tensorboard": TensorBoard,
            "wandb": WeightsAndBiases,
            "trackio": Trackio,
        }
        for name in check_installed(trackers):
            try:
                self._trackers[name] = makers[name](folder, recipe, resumed_at)
            except Exception as error:
                self._gave_up(name, error)

    def __enter__(self) -> "Trackers":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Numbers of a step, a line of metrics.jsonl; its "step" is left out."""
        numbers = {name: value for name, value in metrics.items() if name != "step"}
        self._each(lambda tracker: tracker.log(step, numbers))

    def text(self, step: int, sample: str) -> None:
        """A text that the model wrote."""
        self._each(lambda tracker: tracker.text(step, sample))

    def close(self) -> None:
        """Writes what is still to be written. Further calls do nothing."""
        self._each(lambda tracker: tracker.close())
        self._trackers.clear()

    def _each(self, call: Callable[[Tracker], None]) -> None:
        for name, tracker in list(self._trackers.items()):
            try:
                call(tracker)
            # A view of the record, in someone else's code: whatever is wrong there is no reason to lose a run.
            except Exception as error:
                del self._trackers[name]
                self._gave_up(name, error)

    def _gave_up(self, name: str, error: Exception) -> None:
        what = " ".join(str(error).split()) or "no message"
        self._note(f"{name} failed ({type(error).__name__}: {what}); the run goes on without it.")


class TensorBoard:
    """Event files in the run's folder `tensorboard/`."""

    def __init__(self, folder: Path, recipe: Mapping[str, Any], resumed_at: int | None) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # Points from here on belong to the run's earlier life: TensorBoard drops them as it reads the files.
        purge = None if resumed_at is None else resumed_at + 1
        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=purge, flush_secs=30)
        if resumed_at is None:
            self._writer.add_text("recipe", _as_code(json.dumps(dict(recipe), indent=1)), 0)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def text(self, step: int, sample: str) -> None:
        self._writer.add_text("sample", _as_code(sample), step)

    def close(self) -> None:
        self._writer.close()


def _as_code(text: str) -> str:
    """Markdown that shows a text as it is: an indented block, which no text can end early."""
    return "\n".join(f"    {line}" for line in text.splitlines())


class WeightsAndBiases:
    """A run of the project `gpt2` (or WANDB_PROJECT); with WANDB_MODE=offline it stays in the run's folder `wandb/`."""

    def __init__(self, folder: Path, recipe: Mapping[str, Any], resumed_at: int | None) -> None:
        import wandb

        self._place = _Place(folder, "wandb", resumed_at)
        self._html = wandb.Html
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "gpt2"),
            id=self._place.name,
            name=folder.resolve().name,
            dir=folder,
            config=dict(recipe),
            resume="allow",
            settings=wandb.Settings(console="off"),
        )

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        if self._place.is_new(step):
            self._run.log(dict(metrics), step=step)

    def text(self, step: int, sample: str) -> None:
        if self._place.is_new(step):
            self._run.log({"sample": self._html(f"<pre>{html.escape(sample)}</pre>")}, step=step)

    def close(self) -> None:
        self._run.finish()


class Trackio:
    """A run of trackio's project `gpt2` (or TRACKIO_PROJECT) on this machine; `trackio show` opens it."""

    def __init__(self, folder: Path, recipe: Mapping[str, Any], resumed_at: int | None) -> None:
        import trackio

        self._place = _Place(folder, "trackio", resumed_at)
        # It prints where it writes, and stdout belongs to `--json`.
        with redirect_stdout(sys.stderr):
            self._run = trackio.init(
                project=os.environ.get("TRACKIO_PROJECT", "gpt2"),
                name=f"{folder.resolve().name}-{self._place.name}",
                config=dict(recipe),
                resume="allow",
                embed=False,
            )

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        if self._place.is_new(step):
            self._run.log(dict(metrics), step=step)

    def text(self, step: int, sample: str) -> None:
        if self._place.is_new(step):
            self._run.log({"sample": sample}, step=step)

    def close(self) -> None:
        with redirect_stdout(sys.stderr):
            self._run.finish()


class _Place:
    """A run's name with a tracker that cannot take points back, and how far it got there, in the run's folder.

    What a killed run logged after its last checkpoint stands already; the resumed run makes the same steps again, and
    does not log them twice.
    """

    def __init__(self, folder: Path, tracker: str, resumed_at: int | None) -> None:
        path = folder / "tracking" / f"{tracker}.txt"
        self.name, self._reached, self._now = secrets.token_hex(4), -1, -1
        kept = path.read_text(encoding="ascii").split() if path.is_file() else []
        if resumed_at is not None and len(kept) == 2 and kept[1].isdecimal():
            self.name, self._reached = kept[0], int(kept[1])
        write_atomically(path, self._line(max(self._reached, 0)))
        # One short write in place a step: a kill leaves the old number or the new one.
        self._file = path.open("r+b", buffering=0)

    def is_new(self, step: int) -> bool:
        """Whether a step's points are not there yet; notes that they are now."""
        if step <= self._reached:
            return False
        if step != self._now:
            self._file.seek(0)
            self._file.write(self._line(step))
            self._now = step
        return True

    def _line(self, step: int) -> bytes:
        return f"{self.name} {step:012}\n".encode()
