"""Two canned inputs, what a model says to them, and how far a runner is from that.

The inputs are token ids that look random: a short one, and one that fills the window. The figures are log-probabilities
of a few tokens at a few places. For the shipped model they are stored in the package, made on a CPU in float32 by
`scripts/make_doctor_figures.py`; for any other model they are made on the spot in the same way.
"""

import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from gpt2.config import GPT2Config
from gpt2.errors import Error
from gpt2.runners.measure import some_ids
from gpt2.runners.runner import Feed, Runner

_SHORT = 12
_TOP = 5
_FIXED = 3

Input = Literal["short", "full"]

# How far a log-probability may be from its figure. In float32, in nats; in narrower widths, as a share of the spread
# (standard deviation) of all figures, because models differ in it. About three times what plain PyTorch showed with
# the shipped model, with random weights of 768 wide and with tiny ones: 0.014 to 0.024, 0.022 to 0.032, 0.25 to 0.40.
# What a broken backend does is far beyond.
FLOAT32_BOUND = 1e-3
SHARES: Mapping[str, float] = {"bfloat16": 0.07, "int8": 0.1, "int4": 1.0}
# Logits that are themselves bfloat16 lie on a grid of 2^-8 of their size, and OpenAI's are in the hundreds.
_BFLOAT16_GRID = 2.0**-8


@dataclass(frozen=True, slots=True)
class Place:
    """One position of an input, and natural log-probabilities of some tokens to come next: the likeliest, and others.

    largest: the largest absolute value of a logit there.
    """

    input: Input
    position: int
    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    largest: float


@dataclass(frozen=True, slots=True)
class Difference:
    """The largest distance from the figures, in nats (infinite for NaN), and where it was."""

    nats: float
    where: str


def inputs(config: GPT2Config) -> dict[Input, list[int]]:
    """The canned inputs for a model of this shape."""
    short, window = min(_SHORT, config.n_positions), config.n_positions
    ids = some_ids(config, short + window)
    return {"short": ids[:short], "full": ids[short:]}


def figures(runner: Runner) -> list[Place]:
    """What this runner says at the places that are looked at; every input is read whole, in slot 0.

    Raises Error if that is not finite.
    """
    found = []
    for name, ids in inputs(runner.config).items():
        runner.rewind(0, 0)
        logits_NV = runner.read([Feed(0, ids, len(ids))])
        runner.rewind(0, 0)
        for position in _positions(name, len(ids)):
            logprob_V = _log_softmax(logits_NV[position])
            if not bool(logprob_V.isfinite().all()):
                raise Error(
                    f"In float32 on the CPU, this model's logits hold NaN or infinity (input {name!r}, position "
                    f"{position}): its weights are damaged."
                )
            top = logprob_V.topk(min(_TOP, len(logprob_V))).indices.tolist()
            fixed = [len(logprob_V) * part // _FIXED for part in range(_FIXED)]
            chosen = list(dict.fromkeys([*top, *fixed]))
            values = tuple(round(float(logprob_V[id]), 6) for id in chosen)
            largest = round(float(logits_NV[position].abs().max()), 3)
            found.append(Place(name, position, tuple(chosen), values, largest))
    return found


def allowed(dtype: str, places: Sequence[Place]) -> float:
    """How far, in nats, a runner of this width may be from these figures."""
    if dtype == "float32":
        return FLOAT32_BOUND
    bound = SHARES[dtype] * statistics.pstdev(value for place in places for value in place.logprobs)
    return bound + (_BFLOAT16_GRID * max(place.largest for place in places) if dtype == "bfloat16" else 0.0)


def difference(runner: Runner, places: Sequence[Place]) -> Difference:
    """How far a runner with two slots is from the figures, over every way to read a text.

    Whole, in one piece; and token by token, the short input from its start and the long one at its end, side by side.
    """
    worst = Difference(0.0, "")
    by_position = {(place.input, place.position): place for place in places}
    for how, name, first, logits_NV in _readings(runner):
        for row in range(len(logits_NV)):
            place = by_position.get((name, first + row))
            if place is None:
                continue
            logprobs = _log_softmax(logits_NV[row])[list(place.ids)].tolist()
            for found, expected in zip(logprobs, place.logprobs, strict=True):
                # NaN is never near anything.
                distance = abs(found - expected) if abs(found - expected) < float("inf") else float("inf")
                if distance > worst.nats:
                    worst = Difference(distance, f"position {place.position} of the {name} input, {how}")
    return worst


def _readings(runner: Runner) -> Iterator[tuple[str, Input, int, Tensor]]:
    """How it was read, which input, its first position with logits, and the logits (N, V)."""
    texts = inputs(runner.config)
    short, full = texts["short"], texts["full"]
    for slot in (0, 1):
        runner.rewind(slot, 0)
    yield "read whole", "full", 0, runner.read([Feed(0, full, len(full))])
    yield "read whole", "short", 0, runner.read([Feed(1, short, len(short))])
    start = len(full) - len(short)
    runner.rewind(0, start)
    runner.rewind(1, 0)
    for step in range(len(short)):
        logits_2V = runner.read([Feed(0, [full[start + step]]), Feed(1, [short[step]])])
        yield "token by token", "full", start + step, logits_2V[:1]
        yield "token by token", "short", step, logits_2V[1:]
    for slot in (0, 1):
        runner.rewind(slot, 0)


def write_figures(path: Path, places: Sequence[Place], about: Mapping[str, object]) -> None:
    """Stores figures as JSON, with what they are figures of."""
    rows = ",\n  ".join(json.dumps(asdict(place)) for place in places)
    head = "".join(f" {json.dumps(key)}: {json.dumps(value)},\n" for key, value in about.items())
    path.write_text(f'{{\n{head} "places": [\n  {rows}\n ]\n}}\n', encoding="utf-8")


def read_figures(path: Path) -> list[Place]:
    """Figures that `write_figures` stored."""
    return [
        Place(row["input"], row["position"], tuple(row["ids"]), tuple(row["logprobs"]), row["largest"])
        for row in json.loads(path.read_text(encoding="utf-8"))["places"]
    ]


def _positions(name: Input, length: int) -> list[int]:
    """All of the short input; of the long one those around powers of two, and its end."""
    if name == "short":
        return list(range(length))
    doubling = {2**power - back for power in range(length.bit_length()) for back in (0, 1)}
    return sorted({place for place in doubling if place < length} | set(range(max(0, length - _SHORT), length)))


def _log_softmax(logits_V: Tensor) -> Tensor:
    # In float64 on the CPU, so that only the logits themselves are under test.
    return torch.log_softmax(logits_V.detach().cpu().double(), dim=0)
