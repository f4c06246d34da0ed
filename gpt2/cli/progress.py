"""How `gpt2 train` shows a run on stderr: a bar that moves where there is a terminal, and lines that stay.

A view is no reason to lose a run: when nobody reads it any more, or its disk is full, it falls silent.
"""

import os
import sys
import time
import unicodedata
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO, cast

from gpt2.training.words import figure

if TYPE_CHECKING:
    from rich.console import Console

    from gpt2.training.evaluate import Evaluation

# Without a terminal a run that evaluates rarely still says that it lives: seconds between its lines.
_SILENCE = 300.0
# Columns of a terminal that has room for the bar, and for what not everybody looks for.
_WIDE = 100


class _Unfailing:
    """A stream that goes nowhere once it cannot be written to."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.encoding = stream.encoding

    def write(self, text: str) -> int:
        with self._giving_up():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with self._giving_up():
            self._stream.flush()

    def isatty(self) -> bool:
        return self._stream.isatty()

    def fileno(self) -> int:
        return self._stream.fileno()

    @contextmanager
    def _giving_up(self) -> Iterator[None]:
        try:
            yield
        except OSError:
            # Nobody reads it, or its disk is full. What is left in Python's buffer must not fail later, nor a note.
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())


class Progress:
    """A reporter for `gpt2.training` on a console (default: stderr). Use it as a context."""

    def __init__(self, console: "Console | None" = None) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
        from rich.progress import Progress as Bar
        from rich.table import Column

        self._console = console or Console(file=cast("TextIO", _Unfailing(sys.stderr)), highlight=False, emoji=False)
        self._bar = Bar(
            TextColumn("step", table_column=Column(no_wrap=True)),
            MofNCompleteColumn(table_column=Column(no_wrap=True)),
            *([BarColumn(bar_width=24)] if self._console.width >= _WIDE else []),
            TextColumn("{task.fields[said]}", table_column=Column(no_wrap=True)),
            console=self._console,
            disable=not self._console.is_terminal,
            # What stays are the lines; a bar that is left behind them would say what was so a moment before.
            transient=True,
        )
        self._task = self._bar.add_task("training", visible=False, said="")
        self._loss: float | None = None
        self._facts: Mapping[str, float] = {}
        # Seconds a token took, of the steps since the last line.
        self._paces: list[float] = []
        self._said_at = time.monotonic()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def note(self, text: str) -> None:
        """A line that stays."""
        # Data, and what a young model writes, may hold bytes that a terminal would obey.
        text = "".join(
            each if _is_harmless(each) else "\N{REPLACEMENT CHARACTER}" for each in text.replace("\r\n", "\n")
        )
        # A terminal gets whole words; a file and a pipe lines as they are.
        self._console.print(text, markup=False, emoji=False, soft_wrap=not self._console.is_terminal)
        self._said_at = time.monotonic()

    def start(self, step: int, steps: int) -> None:
        # Not before: of many processes one alone reports.
        self._bar.start()
        self._bar.update(self._task, completed=step, total=steps, visible=True)

    def step(self, step: int, loss: float, tokens_per_second: float, facts: Mapping[str, float]) -> None:
        self._loss, self._facts = loss, facts
        self._paces.append(1 / max(tokens_per_second, 1e-9))
        shown = {**facts, "tokens_per_second": tokens_per_second}
        if self._console.width < _WIDE:
            shown = {name: shown[name] for name in ("tokens_per_second", "mfu", "seconds_left") if name in shown}
        said = "  ".join([f"loss {loss:.3f}", *describe(shown)])
        self._bar.update(self._task, completed=step, said=said)
        if not self._console.is_terminal and time.monotonic() - self._said_at > _SILENCE:
            self._line(step, "")

    def evaluation(self, step: int, evaluation: "Evaluation") -> None:
        self._line(
            step,
            f"  validation {evaluation.nats_per_token:.3f} nats/token, {evaluation.bits_per_byte:.3f} bits/byte "
            f"({evaluation.tokens:,} tokens)",
        )

    def sample(self, step: int, text: str) -> None:
        indented = "\n".join(f"    {line}" for line in text.strip().splitlines())
        self.note(f"sample at step {step}:\n{indented}")

    def _line(self, step: int, validation: str) -> None:
        """A line that stays, with the mean speed since the last one."""
        facts = dict(self._facts)
        if self._paces:
            mean = len(self._paces) / sum(self._paces)
            # What follows from the speed is told of the same steps.
            share = mean / facts.get("tokens_per_second", mean)
            facts |= {name: facts[name] * share for name in ("flops_per_second", "mfu") if name in facts}
            facts["tokens_per_second"] = mean
        train = "" if self._loss is None else f"  train {self._loss:.3f}"
        self.note("  ".join([f"step {step:>6}{train}{validation}", *describe(facts)]))
        self._paces.clear()


def describe(facts: Mapping[str, float]) -> list[str]:
    """What of a step's facts people read, in a few words each: speed, FLOP rate, its share of the peak where that is
    known, memory, time left."""
    said = []
    if "tokens_per_second" in facts:
        said.append(f"{facts['tokens_per_second']:,.0f} tokens/s")
    if "flops_per_second" in facts:
        said.append(f"{figure(facts['flops_per_second'] / 1e12)} TFLOP/s")
    if "mfu" in facts:
        said.append(f"{facts['mfu']:.1%} MFU")
    if facts.get("memory"):
        said.append(f"{facts['memory'] / 1e9:.1f} GB")
    if "seconds_left" in facts:
        said.append(f"{duration(facts['seconds_left'])} left")
    return said


def duration(seconds: float) -> str:
    """A length of time in the two units that matter: "3 d 4 h", "2 h 05 min", "4 min 09 s", "12 s"."""
    whole = max(0, round(seconds))
    minutes, seconds_left = divmod(whole, 60)
    hours, minutes_left = divmod(minutes, 60)
    days, hours_left = divmod(hours, 24)
    if days:
        return f"{days:,} d {hours_left} h"
    if hours:
        return f"{hours} h {minutes_left:02} min"
    if minutes:
        return f"{minutes} min {seconds_left:02} s"
    return f"{whole} s"


def _is_harmless(character: str) -> bool:
    """Whether a character only shows itself: no control, no half of a pair, nothing that turns a line's direction."""
    if character.isprintable() or character in "\n\t":
        return True
    # Spaces of other widths; the joiners that Persian and emoji are spelt with.
    return unicodedata.category(character) == "Zs" or character in "\u200c\u200d"
