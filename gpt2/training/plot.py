"""The loss curve as a picture."""

from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

from gpt2.config import GPT2Config
from gpt2.files import write_atomically
from gpt2.training.options import TrainingOptions

_BLUE, _PALE, _ORANGE = "#1f5a99", "#b9cce3", "#c8501e"

# More points than this are no more to see: a stretch of steps is then drawn as the span and the mean of its losses.
_MOST_POINTS = 1500

# Fewer steps have no moving mean.
_FEW_STEPS = 100

# Longer names of folders do not fit above the picture with what stands beside them.
_LONGEST_NAME = 40


def draw_losses(metrics: Sequence[dict[str, Any]], path: Path, note: Callable[[str], None], title: str = "") -> None:
    """Draws training and validation loss in nats per token against steps into a PNG file, from a run's metrics.

    title: which run it is. Whatever is in the way is told (`note`): a run must not fail for want of a picture.
    """
    try:
        if picture := _picture(metrics, title):
            write_atomically(path, picture)
    except ImportError:
        note(f"{path} was left out: matplotlib is not installed here.")
    except Exception as error:
        note(f"{path} was left out: {str(error) or type(error).__name__}")


def title(name: str, config: GPT2Config, options: TrainingOptions, window: int) -> str:
    """What tells the pictures of two runs apart: the folder's name, and how it learns. window: tokens in a row."""
    name = name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}…"
    return (
        f"{name}: {config.n_layer} x {config.n_embd}, {options.optimizer}, {options.schedule}, "
        f"rate {options.learning_rate:g}, {options.batch_size} x {window:,} tokens a step"
    )


def _picture(metrics: Sequence[dict[str, Any]], title: str) -> bytes | None:
    """The picture; None where no step was made."""
    training = [(line["step"], line["train_loss"]) for line in metrics if "train_loss" in line]
    measured = [line for line in metrics if "validation_loss" in line]
    if not training:
        return None
    # The Figure class alone: pyplot would look for a display and keep a global state.
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.add_subplot()
    smooth = _draw_training(axes, training)
    if measured:
        _draw_validation(axes, measured)
    else:
        axes.annotate(f" {smooth[-1][1]:.3f}", smooth[-1], va="center", color=_BLUE, annotation_clip=False)
    axes.set_ylim(_limits(training, smooth, [(line["step"], line["validation_loss"]) for line in measured]))
    # A folder may be called `$5`, which is no formula.
    axes.set_title(title, loc="left", fontsize="medium").set_parse_math(False)
    # A little room behind the last step, where markers stand; a run of one step needs a width.
    axes.set_xlim(0, 1.015 * training[-1][0])
    axes.set_xlabel(f"step{_tokens(metrics)}")
    axes.set_ylabel("loss (nats per token)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    axes.ticklabel_format(axis="y", useOffset=False)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda step, _: f"{step:,.0f}"))
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    # Under the curves there is no place that is free in every run.
    figure.legend(loc="outside lower center", ncols=4, frameon=False, columnspacing=1.2, handlelength=1.5)
    picture = BytesIO()
    figure.savefig(picture, format="png", dpi=120)
    return picture.getvalue()


def _draw_training(axes: Any, training: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """The training losses, pale, and their moving mean, which is returned. Of few steps the losses alone: a mean of two
    or three would be drawn over what it is made of."""
    if len(training) < _FEW_STEPS:
        label = "training, each batch"
        axes.plot(*zip(*training, strict=True), color=_BLUE, linewidth=1.5, label=label, marker="o", markersize=3)
        return list(training)
    if len(training) <= _MOST_POINTS:
        axes.plot(*zip(*training, strict=True), color=_PALE, linewidth=1, label="training, each batch")
    else:
        size = -(-len(training) // _MOST_POINTS)
        groups = [training[start : start + size] for start in range(0, len(training), size)]
        places = [group[len(group) // 2][0] for group in groups]
        lowest, highest = ([pick(loss for _, loss in group) for group in groups] for pick in (min, max))
        axes.fill_between(places, lowest, highest, color=_PALE, linewidth=0.5, label="training, all batches")
    reach = len(training) // 50
    smooth = _smooth(training, reach)
    # The mean changes slowly: more points of it than pixels would only cost time.
    shown = smooth[:: max(1, len(smooth) // _MOST_POINTS)] + smooth[-1:]
    axes.plot(*zip(*shown, strict=True), color=_BLUE, linewidth=2, label=f"training, mean of up to {2 * reach + 1:,}")
    return smooth


def _draw_validation(axes: Any, measured: Sequence[dict[str, Any]]) -> None:
    # The end may score more tokens than the measurements on the way: another set, so no part of their line.
    same = [line for line in measured if line["validation_tokens"] == measured[0]["validation_tokens"]]
    points = [(line["step"], line["validation_loss"]) for line in same]
    # Dots say where it was measured; where they would touch, the line says enough.
    marker = "o" if len(points) <= 60 else None
    axes.plot(*zip(*points, strict=True), color=_ORANGE, linewidth=2, label="validation", marker=marker, markersize=4)
    last = measured[-1]
    if last is not same[-1]:
        label = f"validation, all {last['validation_tokens']:,} tokens"
        place = [last["step"]], [last["validation_loss"]]
        axes.plot(*place, color=_ORANGE, marker="D", linestyle="", label=label, clip_on=False, zorder=5)
    best = min(same, key=lambda line: line["validation_loss"])
    if best is not same[-1]:
        place = [best["step"]], [best["validation_loss"]]
        label = f"best, {best['validation_loss']:.3f}"
        axes.plot(*place, color=_ORANGE, marker="o", markersize=9, fillstyle="none", linestyle="", label=label)
    axes.annotate(
        f"{last['validation_loss']:.3f}",
        (last["step"], last["validation_loss"]),
        textcoords="offset points",
        xytext=(8, 0),
        va="center",
        color=_ORANGE,
        annotation_clip=False,
    )


def _limits(
    training: Sequence[tuple[int, float]], smooth: Sequence[tuple[int, float]], validation: Sequence[tuple[int, float]]
) -> tuple[float, float]:
    """The losses that are shown. The fall of the first steps, from about 11, would press all that follows into a strip:
    the picture reaches up to where the losses stand after a tenth of the run, and some of the fall above that."""
    begin = training[len(training) // 10][0]
    means = [loss for step, loss in (*smooth, *validation) if step >= begin]
    low = min(min(means), min(loss for _, loss in training))
    high, first = max(means), max(loss for _, loss in smooth)
    room = max(high - low, 0.1)
    # Where the beginning is not far above, it is shown whole.
    top = max(first, high) if first <= high + room else high + 0.5 * room
    return low - 0.05 * room, top + 0.05 * room


def _tokens(metrics: Sequence[dict[str, Any]]) -> str:
    """How many tokens were read by the last step, for the axis."""
    read = next((line["tokens"] for line in reversed(metrics) if "tokens" in line), 0)
    for size, word in ((1e9, "billion"), (1e6, "million"), (1e3, "thousand")):
        if read >= size:
            return f" ({read / size:,.3g} {word} tokens in all)"
    return ""


def _smooth(points: Sequence[tuple[int, float]], reach: int) -> list[tuple[int, float]]:
    """The mean of each point and those up to `reach` on either side: of the past alone, it would lag behind."""
    sums = [0.0]
    for _, loss in points:
        sums.append(sums[-1] + loss)
    smooth = []
    for place, (step, _) in enumerate(points):
        # Few at the steep start, where a mean would lie above the losses; at the end all there are, lest it end in one
        # batch's noise.
        near = min(reach, place // 8)
        start, end = place - near, min(place + near + 1, len(points))
        smooth.append((step, (sums[end] - sums[start]) / (end - start)))
    return smooth
