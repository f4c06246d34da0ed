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
    validation = [(line["step"], line["validation_loss"]) for line in metrics if "validation_loss" in line]
    if not training:
        return
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(*zip(*training, strict=True), color="#9db7d5", linewidth=1, label="training (one batch)")
    axes.plot(*zip(*_smooth(training), strict=True), color="#1f5a99", linewidth=2, label="training (running mean)")
    if validation:
        axes.plot(
            *zip(*validation, strict=True), color="#c8501e", linewidth=2, marker="o", markersize=4, label="validation"
        )
        step, loss = validation[-1]
        axes.annotate(
            f"{loss:.3f}", (step, loss), textcoords="offset points", xytext=(0, 8), ha="right", color="#c8501e"
        )
    axes.set_xlabel("step")
    axes.set_ylabel("loss (nats per token)")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=120)


def _smooth(points: Sequence[tuple[int, float]], decay: float = 0.95) -> list[tuple[int, float]]:
    mean, weight, smooth = 0.0, 0.0, []
    for step, loss in points:
        mean, weight = decay * mean + (1 - decay) * loss, decay * weight + (1 - decay)
        smooth.append((step, mean / weight))
    return smooth
