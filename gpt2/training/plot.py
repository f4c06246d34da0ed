"""The loss curve as a picture."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any


def draw_losses(metrics: Sequence[dict[str, Any]], path: Path, note: Callable[[str], None]) -> None:
    """Draws training and validation loss in nats per token against steps into a PNG file, from a run's metrics.

    Says so (`note`) where there is no matplotlib: a run must not fail for want of a picture.
    """
    try:
        # The Figure class alone: pyplot would look for a display and keep a global state.
        from matplotlib.figure import Figure
    except ImportError:
        note(f"{path} was left out: matplotlib is not installed here.")
        return

    training = [(line["step"], line["train_loss"]) for line in metrics if "train_loss" in line]
    measured = [line for line in metrics if "validation_loss" in line]
    if not training:
        return
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(*zip(*training, strict=True), color="#b9cce3", linewidth=1, label="training, each batch")
    reach = max(1, len(training) // 50)
    label = f"training, mean of {2 * reach + 1}"
    axes.plot(*zip(*_smooth(training, reach), strict=True), color="#1f5a99", linewidth=2, label=label)
    if measured:
        orange = "#c8501e"
        # The end may score more tokens than the measurements on the way: another set, so no part of their line.
        same = [line for line in measured if line["validation_tokens"] == measured[0]["validation_tokens"]]
        points = [(line["step"], line["validation_loss"]) for line in same]
        axes.plot(*zip(*points, strict=True), color=orange, linewidth=2, marker="o", markersize=4, label="validation")
        last = measured[-1]
        if last is not same[-1]:
            label = f"validation, all {last['validation_tokens']:,} tokens"
            axes.plot(last["step"], last["validation_loss"], color=orange, marker="D", linestyle="", label=label)
        axes.annotate(
            f"{last['validation_loss']:.3f}",
            (last["step"], last["validation_loss"]),
            textcoords="offset points",
            xytext=(8, 0),
            va="center",
            color=orange,
        )
    axes.set_xlabel("step")
    axes.set_ylabel("loss (nats per token)")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=120)


def _smooth(points: Sequence[tuple[int, float]], reach: int) -> list[tuple[int, float]]:
    """The mean of each point and those up to `reach` steps on either side: of the past alone, it would lag behind."""
    smooth = []
    for place, (step, _) in enumerate(points):
        # At the steep start as many on both sides; at the end all there are, lest it end in one batch's noise.
        near = min(reach, place)
        losses = [loss for _, loss in points[place - near : place + near + 1]]
        smooth.append((step, sum(losses) / len(losses)))
    return smooth
