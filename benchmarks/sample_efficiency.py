"""How much a pre-trained start is worth: titles from documents, learnt from 1 %, 10 % and 100 % of the pairs.

    python -m benchmarks.sample_efficiency --state DIR --data JSONL... [--init MODEL] [--minutes M] [--quick]

After "Sample Efficient Text Summarization Using a Single Pre-Trained Transformer" (Khandelwal et al., 2019), on pairs
of (document, title) from documents in lines of JSON with the fields `text` and `title`. The title is taken out of the
document's beginning; where the field is a file's path, the document's first line is its title. Every run is the same
but for its start (the model, or its shape with random weights), its share of the pairs and its seed, which draws the
share, too. Held out, for all runs alike, is every tenth document by the hash of its text. Each run stops when its
validation has not become better for a while; its best checkpoint answers the held-out documents greedily.

A model that was trained on these very documents has read the titles: then this measures a start that knows the texts.
What stands in `state` is not made again, so the experiment can be stopped (Ctrl-C, --minutes) and continued.
"""

import argparse
import json
import re
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gpt2.checkpoint import load, write_directory
from gpt2.cli.progress import Progress
from gpt2.corpus.streams import open_stream
from gpt2.finetuning import FinetuneOptions, finetune, go_on
from gpt2.finetuning.run import SCORES
from gpt2.model import GPT2
from gpt2.shards import digest, held_out
from gpt2.training.options import TrainingOptions, read_recipe

TEMPLATE = "{text}\nTL;DR: {title}"
SHARES = (0.01, 0.1, 1.0)
STARTS = ("pretrained", "random")
METRICS = {
    "target_loss": "loss, nats a title's token",
    "rouge1": "ROUGE-1, F1 %",
    "rouge2": "ROUGE-2, F1 %",
    "rougeL": "ROUGE-L, F1 %",
}


@dataclass(frozen=True, slots=True)
class Scale:
    """A size of the experiment. pairs: how many of all are used (0: all); scored: held-out titles that are written."""

    pairs: int
    seeds: Sequence[int]
    scored: int
    options: dict[str, Any]


FULL = Scale(
    0,
    (1, 2, 3),
    200,
    # A document's first page tells its title; so short, eighteen runs took two hours of two busy cores.
    {"context": 256, "steps": 800, "batch_size": 16, "eval_every": 25, "patience": 4, "learning_rate": 3e-4},
)
QUICK = Scale(
    300,
    (1,),
    8,
    {"context": 96, "steps": 12, "batch_size": 4, "eval_every": 4, "patience": 2, "learning_rate": 3e-4},
)


def pair(document: dict[str, Any]) -> dict[str, str] | None:
    """A document without its title, and the title; None where there is no telling it, or no text beside."""
    lines = [line.strip() for line in str(document.get("text", "")).split("\n")]
    lines = lines[next((place for place, line in enumerate(lines) if line), 0) :]
    title = str(document.get("title") or "").strip()
    if re.fullmatch(r"[^ ]+/[^ ]+\.(md|rst|txt)", title):
        header = next((line for line in lines[:6] if line.startswith("Title: ")), None)
        title = header.removeprefix("Title: ") if header else lines[0] if lines else ""
        lines = [line for line in lines if line != header]
    while lines and (not lines[0] or _words(lines[0]) == _words(title)):
        lines = lines[1:]
    text = "\n".join(lines).strip()
    if not 3 <= len(title) <= 150 or not title[0].isalnum() or re.match(r"[A-Z]+: \d", title) or len(text) < 300:
        return None
    return {"text": text, "title": title}


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def pairs(files: Sequence[Path]) -> Iterator[dict[str, str]]:
    for file in files:
        with open_stream(file) as stream:
            for line in stream:
                if found := pair(json.loads(line)):
                    yield found


def write_rows(path: Path, rows: Sequence[dict[str, str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def prepare(state: Path, files: Sequence[Path], scale: Scale, init: str) -> dict[str, Any]:
    """Writes the pairs of every seed and share, once; returns what can be said of them. Ends the program where the
    folder's pairs and runs are of other data, of another start or of another size."""
    about = state / "pairs.json"
    of = {"data": sorted(file.name for file in files), "init": init, "pairs": scale.pairs}
    if about.is_file():
        found: dict[str, Any] = json.loads(about.read_text(encoding="utf-8"))
        if found.setdefault("of", of) != of:
            sys.exit(f"{state} holds the experiment on {found['of']}, not on {of}; name another folder.")
        return found
    unique = {digest(row["text"].encode("utf-8", "surrogatepass"))[0]: row for row in pairs(files)}
    chosen = sorted(unique.items())[: scale.pairs or None]
    hashes = np.array([number for number, _ in chosen], dtype=np.uint64)
    # By other digits than the order above: a quick run takes the lowest hashes.
    out = held_out(hashes * np.uint64(0x9E3779B97F4A7C15), 0.1)
    training = [row for (_, row), is_out in zip(chosen, out, strict=True) if not is_out]
    held = [row for (_, row), is_out in zip(chosen, out, strict=True) if is_out]
    write_rows(state / "held.jsonl", held)
    for seed in scale.seeds:
        order = np.random.default_rng(seed).permutation(len(training))
        for share in SHARES:
            count = max(2, round(share * len(training)))
            write_rows(state / f"train-{seed}-{share:g}.jsonl", [training[place] for place in order[:count]])
    inside = sum(" ".join(_words(row["title"])) in " ".join(_words(row["text"][:2000])) for row in held)
    found = {
        "of": of,
        "training": len(training),
        "held": len(held),
        "titles_said_in_the_text": round(inside / len(held), 3),
    }
    about.write_text(json.dumps(found) + "\n", encoding="utf-8")
    return found


def start_of(state: Path, init: str, start: str, seed: int) -> str:
    """The model that a run begins with."""
    if start == "pretrained":
        return init
    path = state / f"random-{seed}"
    if not path.is_dir():
        model = load(init)
        write_directory(GPT2(model.config).initialise(seed), model.tokenizer, path)
    return str(path)


def make(state: Path, init: str, scale: Scale, start: str, share: float, seed: int) -> dict[str, Any]:
    """The scores of one run, made, continued or read."""
    run = state / "runs" / f"{start}-{share:g}-{seed}"
    if not (run / SCORES).is_file():
        with Progress() as reporter:
            if (run / "recipe.toml").is_file():
                outcome = go_on(run, reporter)
            else:
                own = {"init": start_of(state, init, start, seed), "seed": seed, "warmup_steps": -1, "validation": 0.0}
                values = read_recipe("finetune") | {"micro_batch_size": 0, "sample_every": 0, "trackers": "none"} | own
                tuning = FinetuneOptions(
                    name="title",
                    template=TEMPLATE,
                    held_out=str((state / "held.jsonl").absolute()),
                    score="rouge",
                    scored=scale.scored,
                    examples=2,
                )
                data = [state / f"train-{seed}-{share:g}.jsonl"]
                options = TrainingOptions.from_mapping(values | scale.options, "sample_efficiency")
                outcome = finetune(options, tuning, data, run, reporter)
        if outcome.result.interrupted:
            raise KeyboardInterrupt
    scores: dict[str, Any] = json.loads((run / SCORES).read_text(encoding="utf-8"))
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    scores["target_loss"] = min(line["validation_loss"] for line in lines if "validation_loss" in line)
    scores["steps"] = max(line["step"] for line in lines)
    return {"start": start, "share": share, "seed": seed} | scores


def draw(rows: Sequence[dict[str, Any]], training: int, path: Path) -> None:
    """Every score against the number of pairs: means of the seeds, and lines from the lowest to the highest."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 3.4), layout="constrained")
    for axes, (metric, title) in zip(figure.subplots(1, len(METRICS)), METRICS.items(), strict=True):
        for start, colour in zip(STARTS, ("tab:blue", "tab:orange"), strict=True):
            points = []
            for share in SHARES:
                values = [row[metric] for row in rows if (row["start"], row["share"]) == (start, share)]
                if values:
                    points.append((share * training, statistics.mean(values), min(values), max(values)))
            if points:
                sizes, means, lows, highs = zip(*points, strict=True)
                axes.plot(sizes, means, marker="o", color=colour, label=f"{start} start")
                axes.vlines(sizes, lows, highs, color=colour)
        axes.set(xscale="log", xlabel="pairs learnt from", title=title)
        sizes = [share * training for share in SHARES]
        axes.set_xticks(sizes, [f"{size:,.0f}" for size in sizes])
        axes.minorticks_off()
        axes.set_ylim(bottom=0)
        axes.grid(axis="y", alpha=0.3)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    figure.axes[0].legend(frameon=False, loc="lower left")
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--state", type=Path, required=True, help="folder of the experiment")
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="documents: .jsonl, also .gz and .zst")
    parser.add_argument("--init", default="bookworm", help="the pre-trained start, by name or folder")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no run after so long")
    parser.add_argument("--quick", action="store_true", help="few pairs and steps: shows that everything works")
    arguments = parser.parse_args()
    until = time.monotonic() + 60 * arguments.minutes
    state, scale = arguments.state, QUICK if arguments.quick else FULL
    state.mkdir(parents=True, exist_ok=True)
    about = prepare(state, arguments.data, scale, arguments.init)
    rows = []
    for seed in scale.seeds:
        for share in SHARES:
            for start in STARTS:
                if time.monotonic() > until:
                    sys.exit("The time is up; the same command goes on.")
                rows.append(make(state, arguments.init, scale, start, share, seed))
                print(json.dumps(rows[-1]), flush=True)
    result = {"init": arguments.init, "quick": arguments.quick, "pairs": about, "options": scale.options, "rows": rows}
    (state / "result.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    draw(rows, about["training"], state / "sample_efficiency.png")


if __name__ == "__main__":
    main()
