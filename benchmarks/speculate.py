"""Decode tokens/s with prompt look-up and with a draft model beside plain decoding: an engine each, in turn in one run.

python -m benchmarks.speculate [--model bookworm] [--draft bookworm-draft] [--dtype float32] [--repeats 5]

One JSON line for each text and way of drawing: tokens/s, times plain, and how much of what was proposed was accepted.
"right" is a proposer that knows the answer: the ceiling, which shows what reading several tokens at once costs here.
The texts: prose, a table and a list of functions; the latter two repeat themselves.
"""

import argparse
import json
import platform
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch

from benchmarks.common import alternate
from gpt2.checkpoint import LanguageModel, load
from gpt2.errors import Unavailable
from gpt2.generation import Engine, GenerationOptions, SamplingOptions, Statistics
from gpt2.generation.speculate import DraftModel, PromptLookup, Proposer, Text

PROSE = (
    "It was late in the evening when the coach came to the inn. The rain had not ceased since noon, and the travellers "
    "were glad of the fire. An old gentleman, who had not spoken on the road, drew his chair to the hearth and said "
)
TABLE = "".join(
    f"| {name} | {kind} | {price} shillings |\n"
    for name, kind, price in zip(
        ("apple", "oak", "rose", "pear", "elm", "lily", "plum", "ash", "daisy", "cherry", "beech", "tulip"),
        ("fruit", "tree", "flower") * 4,
        (2, 7, 3) * 4,
        strict=True,
    )
)
CODE = "".join(
    f"def {name}(value):\n    result = value * {factor}\n    return result\n\n"
    for factor, name in enumerate(("double", "treble", "quadruple", "quintuple", "sextuple", "septuple"), 2)
)
TEXTS = {"prose": PROSE, "table": TABLE, "code": CODE}
# Temperature and seeds.
DRAWS = {"greedy": (0.0, (1,)), "temperature 0.8, top_k 40": (0.8, (1, 2, 3, 4))}


class Right:
    """Knows the answer."""

    def __init__(self) -> None:
        self.answers: dict[object, list[int]] = {}

    def propose(self, texts: Sequence[Text], most: int) -> list[list[int]]:
        return [self.answers[text.seed][text.number : text.number + min(most, 8)] for text in texts]

    def forget(self, key: int) -> None:
        pass


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="bookworm")
    parser.add_argument("--draft", default="bookworm-draft")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()

    model, right = load(options.model, dtype=options.dtype), Right()
    proposers: dict[str, Proposer | None] = {"plain": None, "lookup": PromptLookup(), "right": right}
    try:
        proposers["draft"] = DraftModel(load(options.draft, dtype=options.dtype), 1, target=model)
    except Unavailable as error:
        print(f"left out: the draft model. {error}", file=sys.stderr)
    engines = {name: Engine(model, slots=1, proposer=proposer) for name, proposer in proposers.items()}
    for text, prompt in TEXTS.items():
        ids = model.tokenizer.encode(prompt)
        for draw, (temperature, seeds) in DRAWS.items():
            wanted = wants(model, options.tokens, temperature, seeds)
            right.answers = {each.seed: write(engines["plain"], ids, [each])[0] for each in wanted}
            answers = list(right.answers.values())
            same = all([write(engine, ids, wanted) == answers for engine in engines.values()])
            before = {name: replace(engine.statistics) for name, engine in engines.items()}
            seconds = alternate(
                {name: partial(write, engine, ids, wanted) for name, engine in engines.items()}, options.repeats
            )
            line = {
                "work": f"speculate, {options.model}, {options.dtype}, batch 1, {text} ({len(ids)} tokens), {draw}",
                "tokens_per_second": {
                    name: round(options.tokens * len(seeds) / value, 1) for name, value in seconds.items()
                },
                "times_plain": {name: round(seconds["plain"] / value, 2) for name, value in seconds.items()},
                "acceptance": {
                    name: acceptance(before[name], engine.statistics)
                    for name, engine in engines.items()
                    if name != "plain"
                },
                "same_ids": same,
                "runner": engines["plain"].runner.name,
                "machine": platform.processor() or platform.machine(),
                "threads": torch.get_num_threads(),
            }
            print(json.dumps(line), flush=True)


def wants(model: LanguageModel, tokens: int, temperature: float, seeds: Sequence[int]) -> list[GenerationOptions]:
    """What is asked for, once for each seed; no end of text, so that all write equally much."""
    end = model.tokenizer.end_of_text
    sampling = SamplingOptions(temperature, logit_bias={} if end is None else {end: float("-inf")})
    return [GenerationOptions(tokens, seed=seed, sampling=sampling) for seed in seeds]


def write(engine: Engine, ids: list[int], wanted: Sequence[GenerationOptions]) -> list[list[int]]:
    """The output ids of each request, one request after the other."""
    outputs = []
    for options in wanted:
        request = engine.submit(ids, options)
        while engine.step():
            pass
        outputs.append(request.output)
    return outputs


def acceptance(before: Statistics, after: Statistics) -> dict[str, float]:
    """The shares of what was proposed that was drawn, and of what was drawn that had been proposed."""
    proposed, accepted = after.proposed - before.proposed, after.accepted - before.accepted
    return {
        "of_proposed": round(accepted / max(1, proposed), 3),
        "of_generated": round(accepted / (after.generated - before.generated), 3),
    }


if __name__ == "__main__":
    main()
