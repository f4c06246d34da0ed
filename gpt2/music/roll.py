"""Notes to be looked at: a piano roll as an array, and as a picture.

Time runs to the right, pitch upwards, and the darker a note, the louder. A picture holds rectangles, not pixels, so it
is as sharp in an SVG or PDF as in a PNG.
"""

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gpt2.errors import BadData
from gpt2.files import write_atomically
from gpt2.music.events import pitch_name
from gpt2.music.notes import PITCHES, TICKS_A_SECOND, Notes

_SHADES = ("#a8d8d0", "#4f9fcb", "#2b5aa5", "#241747")  # soft to loud; the softest still stands out from white
_ORANGE, _GREY, _LINES, _BLACK_KEYS, _PRIMER = "#c8501e", "#555555", "#d4d4d4", "#f5f5f5", "#fbeee6"

_WIDTH, _LONGEST_WIDTH = 10.0, 16.0  # inches, up to half a minute and from five minutes on
_DPI = 150
_FEWEST = 24  # pitches on the axis, two octaves
_OCTAVE = 12
_STEPS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 1200, 1800, 3600)  # seconds between marks
_MOST_MARKS = 12
_CLOCK = 90  # from so many seconds on, time is written 1:30


def piano_roll(notes: Notes) -> npt.NDArray[np.uint8]:
    """(128, ticks) uint8: the MIDI velocity of each pitch in each tick of 10 ms, 0 where it is silent."""
    roll = np.zeros((PITCHES, int(notes.ends.max(initial=0))), dtype=np.uint8)
    rows = zip(notes.pitches.tolist(), notes.onsets.tolist(), notes.ends.tolist(), notes.midi_velocities, strict=True)
    for pitch, onset, end, velocity in rows:
        roll[pitch, onset:end] = velocity
    return roll


def draw(notes: Notes, title: str = "", primer_ticks: int = 0) -> Any:
    """A piano roll as a `matplotlib.figure.Figure`, which a notebook shows and `savefig` writes.

    primer_ticks: how much of the beginning was given and not composed; it is shaded. Raises BadData without notes.
    """
    if not len(notes):
        raise BadData("There are no notes to draw.")
    # The Figure class alone: pyplot would look for a display and keep a global state.
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LinearSegmentedColormap, Normalize
    from matplotlib.figure import Figure

    low, high = _pitches(notes)
    seconds = max(notes.seconds, 1.0)
    width = float(np.interp(seconds, (30, 300), (_WIDTH, _LONGEST_WIDTH)))
    figure = Figure(figsize=(width, 1.5 + 0.055 * (high - low)), layout="constrained")
    axes = figure.add_subplot()
    axes.set_xlim(0, seconds)
    axes.set_ylim(low - 0.5, high + 0.5)
    colours = ScalarMappable(Normalize(0, PITCHES - 1), LinearSegmentedColormap.from_list("velocity", _SHADES))
    _paper(axes, low, high)
    _times(axes, seconds)
    axes.add_collection(_rectangles(notes, seconds / (width * _DPI), colours), autolim=False)
    if primer_ticks > 0:
        _primer(axes, min(primer_ticks / TICKS_A_SECOND, seconds), seconds)
    _legend(figure, axes, colours)
    if title:
        title = title.encode("utf-8", "replace").decode()
        shown = axes.set_title(title, loc="left", fontsize=11, fontweight="bold", pad=16 if primer_ticks > 0 else 8)
        # A file's name may hold dollars, and bytes that are no text.
        shown.set_parse_math(False)
    return figure


def write_png(notes: Notes, path: Path, title: str = "", primer_ticks: int = 0) -> None:
    """Writes what `draw` draws as a PNG file, whole or not at all. Raises BadData without notes."""
    picture = BytesIO()
    draw(notes, title, primer_ticks).savefig(picture, format="png", dpi=_DPI)
    write_atomically(Path(path), picture.getvalue())


def _pitches(notes: Notes) -> tuple[int, int]:
    """The lowest and the highest pitch of the axis: those that are used and one more, at least two octaves."""
    low, high = int(notes.pitches.min()) - 1, int(notes.pitches.max()) + 1
    missing = max(_FEWEST - (high - low), 0)
    low -= missing // 2
    high += missing - missing // 2
    # At either end of the keyboard the room goes to the other side.
    over = max(-low, 0) - max(high - (PITCHES - 1), 0)
    low, high = low + over, high + over
    return max(low, 0), min(high, PITCHES - 1)


def _rectangles(notes: Notes, pixel: float, colours: Any) -> Any:
    """The notes as one collection; `pixel` is how many seconds it is wide."""
    from matplotlib.collections import PolyCollection

    left, right = notes.onsets / TICKS_A_SECOND, notes.ends / TICKS_A_SECOND
    # A little is left open at a note's end, or a pitch that is struck again would look like one long note.
    right = right - np.minimum(2.5 * pixel, 0.3 * (right - left))
    bottom, top = notes.pitches - 0.42, notes.pitches + 0.42
    corners = np.stack([left, bottom, left, top, right, top, right, bottom], axis=1).reshape(-1, 4, 2)
    shades = colours.to_rgba(notes.midi_velocities)
    # The outline keeps notes that are narrower than a pixel from fading away. Loud ones lie on top of soft ones.
    order = np.argsort(notes.velocities, kind="stable")
    return PolyCollection(
        list(corners[order]), facecolors=shades[order], edgecolors=shades[order], linewidths=0.3, zorder=3
    )


def _paper(axes: Any, low: int, high: int) -> None:
    """The keyboard behind the notes: a line below each C, the rows of the black keys shaded."""
    for pitch in range(low, high + 1):
        if pitch % _OCTAVE in (1, 3, 6, 8, 10):
            axes.axhspan(pitch - 0.5, pitch + 0.5, color=_BLACK_KEYS, linewidth=0, zorder=0)
        if pitch % _OCTAVE == 0:
            axes.axhline(pitch - 0.5, color=_LINES, linewidth=0.8, zorder=1)
    octaves = [pitch for pitch in range(low, high + 1) if pitch % _OCTAVE == 0]
    axes.set_yticks(octaves, [pitch_name(pitch) for pitch in octaves])
    axes.tick_params(axis="both", length=0, labelcolor=_GREY, labelsize=9)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(_LINES)


def _times(axes: Any, seconds: float) -> None:
    step = next((step for step in _STEPS if seconds / step <= _MOST_MARKS), seconds / _MOST_MARKS)
    marks = np.arange(0, seconds + step / 1000, step)
    clock = seconds > _CLOCK
    axes.set_xticks(marks, [f"{mark // 60:.0f}:{mark % 60:02.0f}" if clock else f"{mark:g}" for mark in marks])
    axes.set_xlabel("minutes:seconds" if clock else "seconds", color=_GREY, fontsize=9)
    axes.grid(axis="x", color=_LINES, linewidth=0.5, alpha=0.6, zorder=1)
    axes.set_axisbelow(True)


def _primer(axes: Any, end: float, seconds: float) -> None:
    axes.axvspan(0, end, color=_PRIMER, linewidth=0, zorder=0.5)
    axes.axvline(end, color=_ORANGE, linewidth=1.2, zorder=4)
    place = {"textcoords": "offset points", "xycoords": ("data", "axes fraction"), "fontsize": 9}
    # Where the line stands far to the right, there is room only on its left.
    side, shift = ("right", -4) if end > seconds / 2 else ("left", 4)
    text = "primer" if side == "right" else "primer ends"
    axes.annotate(text, (end, 1), xytext=(shift, 4), ha=side, color=_ORANGE, annotation_clip=False, **place)


def _legend(figure: Any, axes: Any, colours: Any) -> None:
    """A small bar of shades on the right, over the whole range of velocities, so that pictures compare."""
    bar = figure.colorbar(colours, ax=axes, fraction=0.02, pad=0.01, shrink=0.4, aspect=8, anchor=(0, 1))
    bar.set_ticks([0, 64, PITCHES - 1])
    bar.ax.tick_params(length=0, labelcolor=_GREY, labelsize=8)
    bar.outline.set_visible(False)
    bar.set_label("velocity", fontsize=8, color=_GREY)
