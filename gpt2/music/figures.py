"""What music is like, in figures: how dense, how loud, in which scale, how much of it comes back.

They say whether composed pieces resemble those that were learned from. They do not say whether the pieces are good.
Most are as in Yang and Lerch, "On the evaluation of generative models in music" (2018); what differs is said below.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from textwrap import fill
from typing import Any

import numpy as np
import numpy.typing as npt

from gpt2.errors import BadData
from gpt2.music.events import pitch_name
from gpt2.music.notes import TICKS_A_SECOND, Notes, Numbers

Real = npt.NDArray[np.float64]

_CLASSES = 12
_WHITE = (0, 2, 4, 5, 7, 9, 11)  # C D E F G A B
_WINDOW = 8  # notes that have to come back together
_GRID = 10  # ticks: a player's repeat is not more exact than about 50 ms to either side

_COLOURS = ("#1f5a99", "#c8501e", "#8a8a8a", "#3f8f6b", "#8a5aa8")
# What is drawn of how pieces differ: the figure, its title, the factor to its unit.
_SPREADS = (
    ("notes_a_second", "notes a second", 1),
    ("polyphony", "notes at once", 1),
    ("repetition", "heard before, %", 100),
)
_GREY, _LINES = "#555555", "#d4d4d4"


@dataclass(frozen=True, slots=True)
class Figures:
    """A piece in figures, or the means of several. "The time" is from the first onset to the end of the last note.

    notes_a_second: onsets in the time. pitch_classes: 12 shares of the onsets, C first, together 1. polyphony: notes
    that sound at once, over the time in which any does. silence: share of the time in which none does. note_seconds:
    mean length. velocity, velocity_spread: mean and standard deviation, MIDI's 1 to 127. lowest, highest: pitches.

    repetition: share of the windows of 8 notes in succession that came before in the piece, in any key: the same 7
    intervals and the same 7 times between onsets, in steps of 100 ms. The measure is our own.
    """

    notes_a_second: float
    pitch_classes: tuple[float, ...]
    polyphony: float
    silence: float
    note_seconds: float
    velocity: float
    velocity_spread: float
    lowest: float
    highest: float
    repetition: float

    @property
    def in_scale(self) -> float:
        """Share of the onsets in the seven pitch classes of the one major (or natural minor) scale that fits best."""
        turned = in_c(self.pitch_classes)
        return sum(turned[pitch] for pitch in _WHITE)


def measure(notes: Notes) -> Figures:
    """The figures of one piece. Raises BadData without notes."""
    if not len(notes):
        raise BadData("There are no notes to measure.")
    lengths = (notes.ends - notes.onsets) / TICKS_A_SECOND
    first, last = int(notes.onsets[0]), int(notes.ends.max())
    # Silence lies between the latest end so far and the next onset.
    gaps = notes.onsets[1:] - np.maximum.accumulate(notes.ends)[:-1]
    silent = int(gaps.clip(min=0).sum()) / TICKS_A_SECOND
    time = (last - first) / TICKS_A_SECOND
    velocities = notes.midi_velocities
    classes = np.bincount(notes.pitches % _CLASSES, minlength=_CLASSES) / len(notes)
    return Figures(
        notes_a_second=len(notes) / time,
        pitch_classes=tuple(classes.tolist()),
        polyphony=float(lengths.sum()) / (time - silent),
        silence=silent / time,
        note_seconds=float(lengths.mean()),
        velocity=float(velocities.mean()),
        velocity_spread=float(velocities.std()),
        lowest=float(notes.pitches.min()),
        highest=float(notes.pitches.max()),
        repetition=_repetition(notes.onsets, notes.pitches),
    )


def mean_of(pieces: Sequence[Figures]) -> Figures:
    """The mean of each figure, every piece counting the same; of pitch classes, after turning each piece by `in_c`, as
    pieces in many keys would otherwise look like pieces in none. Raises BadData for none.
    """
    if not pieces:
        raise BadData("There are no pieces to take a mean of.")

    def mean(name: str) -> float:
        return float(np.mean([getattr(piece, name) for piece in pieces]))

    return Figures(
        notes_a_second=mean("notes_a_second"),
        pitch_classes=tuple(np.mean([in_c(piece.pitch_classes) for piece in pieces], axis=0).tolist()),
        polyphony=mean("polyphony"),
        silence=mean("silence"),
        note_seconds=mean("note_seconds"),
        velocity=mean("velocity"),
        velocity_spread=mean("velocity_spread"),
        lowest=mean("lowest"),
        highest=mean("highest"),
        repetition=mean("repetition"),
    )


def in_c(pitch_classes: Sequence[float]) -> tuple[float, ...]:
    """Pitch classes transposed so that the most of them fall on white keys: to C major or A minor, if they have a key.

    F and B count a little less: a tune of five notes fits three scales, and this settles it.
    """
    weights = np.array([1, 0, 1, 0, 1, 0.99, 0, 1, 0, 1, 0, 0.99])
    turns = _turns(pitch_classes)
    return tuple(turns[int(np.argmax(turns @ weights))].tolist())


def distance(one: Sequence[float], other: Sequence[float]) -> float:
    """Between two rows of pitch classes, 0 (the same) to 1: the share of the notes that would have to be others, after
    the transposition that fits best (the total variation).
    """
    return float(np.abs(_turns(one) - np.asarray(other)).sum(axis=1).min() / 2)


def table(sets: Mapping[str, Figures]) -> str:
    """A Markdown table whose columns also line up as plain text: one for each set, a row for each figure.

    Distances are to the first set.
    """
    rows = {
        "notes a second": [f"{one.notes_a_second:.1f}" for one in sets.values()],
        "notes at once": [f"{one.polyphony:.2f}" for one in sets.values()],
        "silence, % of the time": [f"{100 * one.silence:.1f}" for one in sets.values()],
        "length of a note, s": [f"{one.note_seconds:.2f}" for one in sets.values()],
        "velocity (and its spread)": [f"{one.velocity:.0f} ({one.velocity_spread:.0f})" for one in sets.values()],
        "lowest to highest, mean of pieces": [
            f"{pitch_name(round(o.lowest))} to {pitch_name(round(o.highest))}" for o in sets.values()
        ],
        "in one scale, % of the notes": [f"{100 * one.in_scale:.0f}" for one in sets.values()],
        "heard before, % of windows of 8 notes": [f"{100 * one.repetition:.1f}" for one in sets.values()],
    }
    first = next(iter(sets.values()), None)
    if first is not None and len(sets) > 1:
        away = [f"{distance(first.pitch_classes, one.pitch_classes):.3f}" for one in sets.values()]
        rows["distance in pitch classes, 0 to 1"] = ["", *away[1:]]
    names = [name.replace("|", "\\|") for name in sets]
    lines = [["", *names], *([name, *cells] for name, cells in rows.items())]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])])
    padded = ([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])] for line in lines)
    return "".join(f"| {' | '.join(line)} |\n" for line in padded)


def compare(sets: Mapping[str, Sequence[Figures]]) -> Any:
    """A `matplotlib.figure.Figure` that compares sets of pieces: a row for each set, and in it the mean pitch classes
    (turned by `in_c`), and how notes a second, notes at once and repetition are spread over the pieces.

    Raises BadData where a set has no pieces.
    """
    empty = next((name for name, pieces in sets.items() if not pieces), None)
    if empty is not None or not sets:
        raise BadData(f"There are no pieces to draw{f' in {empty}' if empty else ''}.")
    # The Figure class alone: pyplot would look for a display and keep a global state.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 0.8 + 1.5 * len(sets)), layout="constrained")
    grid = figure.subplots(len(sets), 1 + len(_SPREADS), sharex="col", squeeze=False, width_ratios=[1.4, 1, 1, 1])
    grid[0, 0].set_title("pitch classes, % of the notes", loc="left", fontsize=9, color=_GREY)
    for place, (key, title, scale) in enumerate(_SPREADS, 1):
        values = [np.array([scale * getattr(piece, key) for piece in pieces]) for pieces in sets.values()]
        # Twenty bins, the same for every set.
        edges = np.linspace(0, max(max(row.max() for row in values), 1e-9) * 1.02, 21)
        grid[0, place].set_title(title, loc="left", fontsize=9, color=_GREY)
        for axes, row, colour in zip(grid[:, place], values, cycle(_COLOURS)):
            _spread(axes, row, edges, colour)
    for axes, (name, pieces), colour in zip(grid[:, 0], sets.items(), cycle(_COLOURS)):
        axes.sharey(grid[0, 0])
        axes.bar(range(_CLASSES), [100 * share for share in mean_of(pieces).pitch_classes], color=colour)
        axes.set_xticks(range(_CLASSES), [pitch_name(pitch)[:-2] for pitch in range(_CLASSES)])
        axes.set_ylabel(fill(name, 14), fontsize=9, fontweight="bold", color=colour).set_parse_math(False)
    for axes in grid.flat:
        axes.tick_params(length=0, labelcolor=_GREY, labelsize=8)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.spines["bottom"].set_color(_LINES)
    return figure


def _spread(axes: Any, values: Real, edges: Real, colour: str) -> None:
    """How values are spread over the pieces, and their median."""
    counts, _, _ = axes.hist(values, bins=edges, color=colour, alpha=0.5)
    axes.set_ylim(0, 1.3 * counts.max())
    axes.set_yticks([])
    median = float(np.median(values))
    axes.axvline(median, color=colour, linewidth=1.5)
    side, shift = ("right", -3) if median > edges[-1] / 2 else ("left", 3)
    place = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points"}
    axes.annotate(f"{median:.3g}", (median, 1), xytext=(shift, -8), ha=side, fontsize=8, color=colour, **place)


def _turns(pitch_classes: Sequence[float]) -> Real:
    """(12, 12) float64: the row transposed down by 0 to 11 semitones."""
    return np.array([np.roll(np.asarray(pitch_classes, dtype=np.float64), -turn) for turn in range(_CLASSES)])


def _repetition(onsets: Numbers, pitches: Numbers) -> float:
    if len(onsets) < _WINDOW:
        return 0.0
    rhythm = (np.diff(onsets) + _GRID // 2) // _GRID
    steps = np.stack([np.diff(pitches), rhythm], axis=1)
    windows = np.lib.stride_tricks.sliding_window_view(steps, _WINDOW - 1, axis=0).reshape(-1, 2 * (_WINDOW - 1))
    return 1 - len(np.unique(windows, axis=0)) / len(windows)
