"""The bars of docs/performance.png: a band for each work, a column for each width, a line for each program."""

from pathlib import Path
from typing import Any

from benchmarks.figures import WIDTHS, Figures
from benchmarks.peers.catalogue import PEERS

_OURS, _PEERS, _INK, _FAINT, _LIMIT = "#0b6e99", "#cfd4d8", "#22272b", "#6b747c", "#c2410c"
# Inches: of a program's line, between bands, above the first band, below the last.
_LINE, _GAP, _TOP, _BOTTOM = 0.26, 0.55, 0.85, 0.42


def draw(figures: Figures, path: Path) -> None:
    """Draws what was measured into a PNG file."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    prefills = [case for case in figures.cases("prefill") if "all logits" in case]
    bands = [
        ("decode", next(iter(figures.cases("decode")), None), "One text"),
        ("prefill", prefills[-1] if prefills else None, "Prefill"),
        ("streams", next(iter(figures.cases("streams")), None), "Many texts"),
    ]
    bands = [band for band in bands if band[1]]
    widths = [width for width in WIDTHS if any(figures.rows(band[0], band[1], width) for band in bands)]
    programs = [each for each in PEERS if any(row["peer"] == each.name for row in figures.content["rows"])]
    height = _TOP + len(bands) * (len(programs) * _LINE + _GAP) - _GAP + _BOTTOM
    picture = Figure(figsize=(11, height), dpi=160, facecolor="white")
    FigureCanvasAgg(picture)
    left, step = 0.155, 0.84 / len(widths)
    for number, (work, case, heading) in enumerate(bands):
        top = _TOP + number * (len(programs) * _LINE + _GAP)
        low = 1 - (top + len(programs) * _LINE) / height
        picture.text(0.012, 1 - (top - 0.12) / height, heading, fontsize=10.5, weight="bold", color=_INK)
        picture.text(left, 1 - (top - 0.12) / height, f"{case}, tokens/s", fontsize=9, color=_FAINT)
        for column, width in enumerate(widths):
            place = (left + column * step, low, step * 0.9, len(programs) * _LINE / height)
            axes = picture.add_axes(place)
            rates = {row["peer"]: row["rate"] for row in figures.rows(work, case, width) if row["seconds"]}
            limit = figures.memory_limit(width) if work == "decode" else None
            _panel(axes, [rates.get(each.name) for each in programs], limit)
            if not column:
                axes.set_yticks(range(len(programs)), [each.title for each in programs], fontsize=9, color=_INK)
                axes.get_yticklabels()[0].set(color=_OURS, weight="bold")
            if not number:
                picture.text(place[0], 1 - 0.3 / height, width, fontsize=12, weight="bold", color=_INK)
    content = figures.content
    picture.text(
        0.012,
        0.12 / height,
        f"GPT-2 124M, {content['threads']} threads of {content['machine']['processor']}, {content['date']}. "
        "Every panel has its own scale.",
        fontsize=8.5,
        color=_FAINT,
    )
    if any(figures.memory_limit(width) for width in widths):
        words = "Dashed: as fast as memory can be read"
        picture.text(0.988, 0.12 / height, words, fontsize=8.5, color=_LIMIT, ha="right")
    picture.savefig(path)


def _panel(axes: Any, rates: list[float | None], limit: float | None) -> None:
    """Bars from the top down; the first is ours. A program without a figure gets a dash."""
    longest = max([rate for rate in rates if rate] + [limit or 0.0] + [1e-9])
    if limit:
        axes.axvline(limit, color=_LIMIT, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
    for place, rate in enumerate(rates):
        ours = place == 0
        if rate:
            axes.barh(place, rate, height=0.7, color=_OURS if ours else _PEERS, zorder=2)
        axes.text(
            (rate or 0.0) + longest * 0.02,
            place,
            f"{rate:,.0f}" if rate else "–",
            va="center",
            fontsize=9,
            color=_OURS if ours else _INK if rate else _FAINT,
            weight="bold" if ours else "normal",
            zorder=3,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.8},
        )
    axes.set(xlim=(0, longest * 1.28), ylim=(len(rates) - 0.5, -0.5), xticks=[], yticks=[])
    axes.axvline(0, color=_FAINT, linewidth=0.8)
    axes.tick_params(length=0)
    for side in axes.spines.values():
        side.set_visible(False)
