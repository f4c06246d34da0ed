"""What the learning experiment found: the share of tokens, the time per token, a JSON file and a picture.

python -m benchmarks.learning_report [FILE]     (draws what is in benchmarks/results/learning again)
"""

import json
import math
import statistics
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS, PICTURES = ROOT / "benchmarks" / "results" / "learning", ROOT / "docs"
_PAPER, _FAST, _FAINT, _INK = "#6b747c", "#0b6e99", "#9cc3d6", "#22272b"


def share_needed(goal: float, ends: dict[float, float]) -> tuple[str, float] | None:
    """The share of tokens at which a recipe's last loss reaches `goal`: between measured shares, with the loss linear
    in the logarithm of the share. ends: last loss by share. "at most" or "more than" where no share brackets it."""
    if not ends:
        return None
    shares = sorted(ends)
    if ends[shares[0]] <= goal:
        return "at most", shares[0]
    for low, high in pairwise(shares):
        if ends[high] <= goal:
            part = (ends[low] - goal) / (ends[low] - ends[high])
            return "", math.exp(math.log(low) + part * (math.log(high) - math.log(low)))
    return "more than", shares[-1]


def findings(content: dict[str, Any]) -> dict[str, Any]:
    """The figures that are quoted, from what the experiment wrote down."""
    needed: dict[str, tuple[str, float]] = {}
    for seed, made in content.get("runs", {}).items():
        ends = {float(share): run["validation"] for share, run in made.get("fast", {}).items()}
        found = share_needed(made["paper"]["validation"], ends)
        if found:
            needed[seed] = found
    timed = content.get("seconds_per_step", {})
    return {
        "share_by_seed": {seed: f"{bound} {share:.3f}".strip() for seed, (bound, share) in needed.items()},
        "share_mean": round(statistics.mean(share for _, share in needed.values()), 3) if needed else None,
        "time_per_token_ratio": {tokens: round(each["fast"] / each["paper"], 3) for tokens, each in timed.items()}
        or None,
    }


def summary(content: dict[str, Any]) -> str:
    """The findings as lines of text."""
    lines = []
    for recipe, sweep in content.get("sweep", {}).items():
        lines.append(f"{recipe}: best of {len(sweep['tried'])} runs: {sweep['best']}")
    if whole := content.get("whole"):
        lines.append(f"paper at full length: best of {len(whole['tried'])} runs: {whole['best']}")
    for seed, made in content.get("runs", {}).items():
        fast = ", ".join(f"{float(s):.0%} {run['validation']:.4f}" for s, run in sorted(made.get("fast", {}).items()))
        lines.append(f"seed {seed}: paper ends at {made['paper']['validation']:.4f}; fast at {fast or 'nothing yet'}")
    lines += [f"{name}: {value}" for name, value in findings(content).items()]
    return "\n".join(lines)


def write(content: dict[str, Any], results: Path = RESULTS, pictures: Path = PICTURES) -> None:
    """Writes the figures (one file for each scale) and their picture."""
    results.mkdir(parents=True, exist_ok=True)
    path = results / f"{content['scale']}.json"
    path.write_text(json.dumps(content | {"findings": findings(content)}, indent=1) + "\n", encoding="utf-8")
    if content.get("runs"):
        draw(content, pictures / f"learning-{content['scale']}.png")


def draw(content: dict[str, Any], path: Path) -> None:
    """Validation loss against tokens read: every seed a line, the branches of `fast` apart, paper's end a level."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.5, 5), layout="constrained")
    axes = figure.add_subplot()
    whole = max(made["paper"]["tokens"] for made in content["runs"].values())
    lowest, late = math.inf, []
    for number, made in enumerate(content["runs"].values()):
        first = number == 0
        paper = made["paper"]
        curve = [*paper["curve"][:-1], (paper["tokens"], paper["validation"])]
        axes.plot(*_in_millions(curve), color=_PAPER, linewidth=1.6, label="paper" if first else None)
        late += [loss for tokens, loss in curve if tokens > whole / 8]
        for share, run in sorted(made.get("fast", {}).items(), key=lambda item: -float(item[0])):
            curve = [*run["curve"][:-1], (run["tokens"], run["validation"])]
            label = "fast, decaying at several lengths" if first and share == max(made["fast"], key=float) else None
            axes.plot(*_in_millions(curve), color=_FAST, linewidth=1.6, label=label)
            axes.plot(run["tokens"] / 1e6, run["validation"], color=_FAST, marker="o", markersize=5)
            late += [loss for tokens, loss in curve if tokens > whole / 8]
        lowest = min([lowest, *late])
    goal = statistics.mean(made["paper"]["validation"] for made in content["runs"].values())
    axes.axhline(goal, color=_PAPER, linewidth=1, linestyle=(0, (4, 3)))
    axes.annotate(
        f"paper ends at {goal:.3f}", (0, goal), (4, -12), textcoords="offset points", color=_PAPER, fontsize=9
    )
    found = findings(content)
    if found["share_mean"] is not None:
        bounds = {text.rpartition(" ")[0] for text in found["share_by_seed"].values()} - {""}
        bound = " or ".join(sorted(bounds)) + " " if bounds else ""
        text = f"fast is there after {bound}{found['share_mean']:.0%} of the tokens"
        place = (found["share_mean"] * whole / 1e6, goal)
        # Below the level and right of the branches nothing is drawn.
        style = {"textcoords": "axes fraction", "color": _INK, "fontsize": 10, "arrowprops": {"arrowstyle": "-"}}
        axes.annotate(text, place, (0.56, 0.07), **style)
    common = content["common"]
    size = f"{common['n_layer']} x {common['n_embd']}, {common['batch_size'] * common['context']:,} tokens a step"
    axes.set_title(
        f"{size}, seeds {', '.join(content['runs'])}, both tuned, paper with more runs", fontsize=10, color=_INK
    )
    axes.set_xlabel("million tokens read")
    axes.set_ylabel("validation loss (nats per token)")
    margin = 0.06 * (max(late) - lowest)
    axes.set(xlim=(0, 1.02 * whole / 1e6), ylim=(lowest - margin, max(late) + margin))
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=130)


def _in_millions(curve: list[tuple[int, float]]) -> tuple[list[float], list[float]]:
    return [tokens / 1e6 for tokens, _ in curve], [loss for _, loss in curve]


if __name__ == "__main__":
    chosen = json.loads(Path(sys.argv[1]).read_text()) if sys.argv[1:] else None
    for one in [chosen] if chosen else [json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))]:
        write(one)
        print(summary(one))
