"""How many of its tokens `fast` needs to reach the validation loss at which `paper` ends, on a small model.

    python -m benchmarks.learning --state DIR --data TEXT... [--scale small] [--only sweep,main,timing,report]
                                  [--seeds 1,2,3] [--minutes M] [--quick]

Same text, same vocabulary, same architecture, same batches in the same order, same held-out text. Both recipes are
tuned with as many short runs: a few learning rates, then changes of something else at the best rate. Since a short run
favours what is quick at first, `paper` alone is tuned again at its full length. Then for every
seed `paper` is trained to its end once, and `fast` to several shares of paper's tokens: one run with a high rate, and
from its checkpoints a branch for each share in which the rate falls. What stands in `state` is not made again, so the
experiment can be stopped at any time (Ctrl-C, --minutes) and continued.
"""

import argparse
import dataclasses
import itertools
import json
import math
import os
import signal
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.learning_runs import Finished, OutOfTime, Runs
from gpt2.training.options import TrainingOptions, read_recipe

Values = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Scale:
    """A size of the experiment. common: options of every run; steps: of paper; rates, changes: what the sweep tries;
    whole: what is tried of `paper` at its full length, with the first seed."""

    common: Values
    steps: int
    sweep_steps: int
    rates: Mapping[str, Sequence[float]]
    changes: Mapping[str, Sequence[Values]]
    whole: Sequence[Values] = ()
    seeds: Sequence[int] = (1, 2, 3)
    shares: Sequence[float] = (0.2, 0.3, 0.4, 0.5)
    timing_steps: int = 16
    # Muon's own part of a step is the same for batches of any size, so its share is timed at two.
    timing_batches: Sequence[int] = (1, 4)


SCALES = {
    # Minutes: shows that everything works, and nothing about the recipes.
    "quick": Scale(
        common={
            **{"n_layer": 2, "n_head": 2, "n_embd": 128, "context": 128, "vocab_size": 512, "batch_size": 16},
            **{"dtype": "float32", "compile": False, "validation": 0.02, "eval_tokens": 20_000},
        },
        steps=100,
        sweep_steps=20,
        rates={"paper": (1e-3, 4e-3), "fast": (3e-3, 9e-3)},
        changes={"paper": ({"min_learning_rate": 0.1},), "fast": ({"decay_share": 0.6},)},
        seeds=(1,),
        shares=(0.4, 0.6),
        timing_steps=8,
    ),
    # 12.4 million parameters, 8,192 tokens a step, 3.3 million tokens: 27 million in all, hours on two cores.
    "small": Scale(
        common={
            **{"n_layer": 6, "n_head": 6, "n_embd": 384, "context": 512, "vocab_size": 4096, "batch_size": 16},
            **{"micro_batch_size": 8, "dtype": "bfloat16", "compile": True, "validation": 0.02, "eval_tokens": 50_000},
        },
        steps=400,
        sweep_steps=80,
        rates={"paper": (5e-4, 1e-3, 2e-3, 4e-3), "fast": (1.5e-3, 3e-3, 6e-3, 12e-3)},
        changes={
            "paper": ({"beta2": 0.99}, {"min_learning_rate": 0.1}),
            "fast": ({"adamw_share": 0.4}, {"decay_share": 0.6}),
        },
        # A short run has a short warm-up, which high rates bear badly.
        whole=[{"learning_rate": rate, "warmup_steps": 60} for rate in (1e-3, 2e-3, 4e-3)],
    ),
    # The paper's smallest model for a GPU; rates around the published ones.
    "124M": Scale(
        common={
            **{"n_layer": 12, "n_head": 12, "n_embd": 768, "context": 1024, "vocab_size": 0, "batch_size": 512},
            **{"dtype": "bfloat16", "compile": True, "device": "cuda", "validation": 0.01, "eval_tokens": 1_000_000},
        },
        steps=1000,
        sweep_steps=100,
        rates={"paper": (6e-4, 1.2e-3, 2.4e-3), "fast": (1.5e-3, 3e-3, 6e-3)},
        changes={"paper": ({"beta2": 0.99},), "fast": ({"adamw_share": 0.4},)},
        seeds=(1,),
    ),
}


def options_of(recipe: str, scale: Scale, steps: int, **changes: Any) -> TrainingOptions:
    """A recipe at this scale, with changes. Its warm-up is a twentieth of the run, and it measures twenty times."""
    every = max(1, steps // 20)
    length = {"steps": steps, "warmup_steps": every, "eval_every": every, "save_every": every, "sample_every": 0}
    values = {**read_recipe(recipe), **scale.common, **length, "keep": 1, "threads": min(2, os.cpu_count() or 1)}
    return TrainingOptions.from_mapping(values | changes, f"the experiment's {recipe}")


def sweep(recipe: str, scale: Scale, runs: Runs) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The best changes to a recipe that a fixed number of short runs finds, and all that were tried."""
    tried: list[dict[str, Any]] = []

    def attempt(changes: dict[str, Any]) -> float:
        name = f"sweep-{recipe}-" + _named(changes)
        made = runs.make(name, options_of(recipe, scale, scale.sweep_steps, eval_every=0, **changes))
        runs.drop_checkpoints(name)
        tried.append({**changes, "validation": made.validation})
        return made.validation

    losses = {rate: attempt({"learning_rate": rate}) for rate in scale.rates[recipe]}
    rate = min(losses, key=lambda each: losses[each])
    best: dict[str, Any] = {"learning_rate": rate}
    # Each change by itself at the best rate; those that help are taken together.
    for change in scale.changes[recipe]:
        if attempt({"learning_rate": rate, **change}) < losses[rate]:
            best |= change
    return best, tried


def tune_whole(scale: Scale, best: Values, runs: Runs) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The best of `paper`'s changes when all are tried at its full length, those of the sweep among them."""
    tried = []
    for changes in ({}, *scale.whole):
        made = train_paper(scale.seeds[0], scale, {**best, **changes}, runs)
        tried.append({**best, **changes, "validation": made.validation})
    least = min(tried, key=lambda each: each["validation"])
    return {name: value for name, value in least.items() if name != "validation"}, tried


def train_paper(seed: int, scale: Scale, best: Values, runs: Runs) -> Finished:
    """The run whose last loss is to be reached."""
    name = f"paper-{seed}-" + _named(best)
    made = runs.make(name, options_of("paper", scale, scale.steps, seed=seed, **best))
    runs.drop_checkpoints(name)
    return made


def train_fast(seed: int, scale: Scale, best: Values, runs: Runs) -> dict[float, Finished]:
    """`fast` to every share of paper's tokens: the longest run, and branches from where the shorter ones decay."""
    longest = max(scale.shares)
    steps = {share: round(share * scale.steps) for share in scale.shares}
    options = options_of("fast", scale, steps[longest], seed=seed, **best)
    begins = {share: steps[share] - max(1, round(options.decay_share * steps[share])) for share in scale.shares}
    # Checkpoints at every place where a branch leaves; measured there too, since what improves is saved.
    every = math.gcd(*begins.values())
    if every < scale.steps // 100:
        raise SystemExit(f"Branches at steps {begins} have no useful common distance; change steps or decay_share.")
    options = replace(options, save_every=every, eval_every=every, keep=0)
    done = {longest: runs.make(f"fast-{seed}", options)}
    for share in sorted(set(scale.shares) - {longest}, reverse=True):
        name = f"fast-{seed}-{share:g}"
        if not (runs.state / "runs" / name / "result.json").is_file():
            runs.branch(name, f"fast-{seed}", begins[share])
        done[share] = runs.make(name, replace(options, steps=steps[share]))
        runs.drop_checkpoints(name)
    runs.drop_checkpoints(f"fast-{seed}")
    return done


def time_both(scale: Scale, best: Mapping[str, Values], runs: Runs, turns: int = 3) -> dict[str, dict[str, float]]:
    """Median seconds of a step of either recipe, in turns, on a little of the text, by the tokens of a step."""
    data = runs.data
    if data[0].suffix == ".jsonl":
        # One text, so that little of it is held out and scored at the end.
        text = runs.state / "timing.txt"
        with data[0].open(encoding="utf-8") as lines:
            text.write_text("\n".join(json.loads(line)["text"] for line in itertools.islice(lines, 40))[:600_000])
        data = [text]
    found: dict[str, dict[str, float]] = {}
    for times in scale.timing_batches:
        steps = max(4, scale.timing_steps // times)
        seconds: dict[str, list[float]] = {"paper": [], "fast": []}
        for turn in range(turns):
            for recipe in seconds:
                options = options_of(recipe, scale, steps, **best[recipe])
                options = replace(options, batch_size=times * options.batch_size, eval_every=0, save_every=0)
                tokens = options.batch_size * options.context
                name = f"timing-{tokens}-{recipe}-{turn}"
                runs.make(name, options, data)
                speeds = [line["tokens_per_second"] for line in runs.metrics(name) if "tokens_per_second" in line]
                # The first steps compile and warm up.
                seconds[recipe] += [tokens / speed for speed in speeds[len(speeds) // 4 :]]
                runs.drop_checkpoints(name)
        found[str(tokens)] = {recipe: statistics.median(values) for recipe, values in seconds.items()}
    return found


def main() -> None:
    from benchmarks.learning_report import summary, write

    parser = argparse.ArgumentParser()
    parser.add_argument("--state", type=Path, required=True, help="folder of the experiment; what is in it is kept")
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="what `gpt2 train` reads")
    parser.add_argument("--scale", choices=SCALES, default="small")
    parser.add_argument("--quick", action="store_true", help="the same as --scale quick")
    parser.add_argument("--only", default="sweep,main,timing,report", help="parts, by comma")
    parser.add_argument("--seeds", help="by comma (default: the scale's)")
    parser.add_argument("--minutes", type=float, help="stop after so long, to be continued")
    parser.add_argument("--trainer", type=Path, default=Path(), help="folder whose gpt2 package trains (default: here)")
    parser.add_argument("--nice", type=int, default=0)
    arguments = parser.parse_args()

    name = "quick" if arguments.quick else arguments.scale
    scale = SCALES[name]
    until = time.monotonic() + 60 * arguments.minutes if arguments.minutes else float("inf")
    data = [path.absolute() for path in arguments.data]
    runs = Runs(arguments.state.absolute(), data, arguments.trainer.absolute(), arguments.nice, until)
    seeds = [int(seed) for seed in arguments.seeds.split(",")] if arguments.seeds else list(scale.seeds)
    only = arguments.only.split(",")
    # A request to end is heard like Ctrl-C: the run under way saves and goes on next time.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        found = _experiment(scale, runs, seeds, only)
    except (OutOfTime, KeyboardInterrupt):
        print("Stopped; the same command goes on.")
        return
    if "report" in only:
        content = {"scale": name, **dataclasses.asdict(scale), **found}
        if name == "quick":
            # It says nothing about the recipes, so it is not kept among what was found out.
            write(content, runs.state, runs.state)
        else:
            write(content)
        print(summary(content))


def _experiment(scale: Scale, runs: Runs, seeds: Sequence[int], only: Sequence[str]) -> dict[str, Any]:
    kept = runs.state / "found.json"
    found: dict[str, Any] = json.loads(kept.read_text(encoding="utf-8")) if kept.is_file() else {}

    def keep() -> None:
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")

    if "sweep" in only:
        for recipe in ("paper", "fast"):
            best, tried = sweep(recipe, scale, runs)
            found.setdefault("sweep", {})[recipe] = {"best": best, "tried": tried}
            keep()
    best = {recipe: found.get("sweep", {}).get(recipe, {}).get("best", {}) for recipe in ("paper", "fast")}
    if "timing" in only:
        found["seconds_per_step"] = time_both(scale, best, runs)
        keep()
    if "main" in only:
        best["paper"], tried = tune_whole(scale, best["paper"], runs)
        found["whole"] = {"best": best["paper"], "tried": tried}
        keep()
        for seed in seeds:
            made = found.setdefault("runs", {}).setdefault(str(seed), {})
            made["paper"] = dataclasses.asdict(train_paper(seed, scale, best["paper"], runs))
            keep()
            fast = train_fast(seed, scale, best["fast"], runs)
            made["fast"] = {f"{share:g}": dataclasses.asdict(result) for share, result in fast.items()}
            keep()
    return found


def _named(changes: Values) -> str:
    return "-".join(f"{key}-{value:g}" for key, value in changes.items())


if __name__ == "__main__":
    main()
