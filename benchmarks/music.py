"""A model of music beside the simplest ones: nats an event on held-out pieces, and pieces of each in figures.

    python -m benchmarks.music --shards DIR --model pianola [--pieces 32] [--seconds 30] [--out FOLDER]

DIR is what `gpt2 music prepare` wrote. Each model's loss is over every event of the held-out pieces, each piece behind
<|endoftext|>, which is read and not scored; the network's by a stride of half its window. The unigram and the bigram
are counted on the shards to train on. The bigram is smoothed by the unigram (Dirichlet, strength 16).

Pieces of each are drawn from nothing under the same grammar, at the same length, and measured beside cuts of that
length out of 200 pieces of the training set and the held-out pieces. FOLDER gets `music.json` and two pictures.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from gpt2.checkpoint import load
from gpt2.evaluation.perplexity import token_nats
from gpt2.music import generate
from gpt2.music.events import END, to_notes
from gpt2.music.figures import compare, mean_of, measure, table
from gpt2.music.grammar import EventGrammar
from gpt2.music.notes import TICKS_A_SECOND, Notes
from gpt2.music.roll import write_png
from gpt2.shards import open_shards

V = END + 1
_STRENGTH = 16.0
_TRAINED = 200  # pieces of the training set that are measured
# Music Transformer, relative attention, on Piano-e-Competition (Huang et al. 2018): other pieces and other hands.
PUBLISHED = 1.835

Probabilities = Callable[[Sequence[int]], npt.NDArray[np.float64]]


def pieces_of(folder: Path, split: str) -> list[list[int]]:
    """The documents of a split, without <|endoftext|>."""
    shards = open_shards(folder, split)
    ids = shards.read(0, len(shards))
    return [part[1:].tolist() for part in np.split(ids, np.flatnonzero(ids == END))[1:]]


def counted(folder: Path) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """The unigram (V,), and the bigram (V, V): of what follows each event."""
    shards = open_shards(folder, "train")
    ids = shards.read(0, len(shards)).astype(np.int64)
    single = np.bincount(ids, minlength=V) + 1.0
    unigram = single / single.sum()
    pairs = np.bincount(ids[:-1] * V + ids[1:], minlength=V * V).reshape(V, V) + _STRENGTH * unigram
    return unigram, pairs / pairs.sum(axis=1, keepdims=True)


def play(probabilities: Probabilities, ticks: int, seed: int) -> Notes:
    """A piece from nothing, drawn event by event under the grammar."""
    rng = np.random.default_rng(seed)
    grammar, output = EventGrammar([END], ticks, may_end=False), list[int]()
    while True:
        chances = probabilities(output) * grammar.allowed(output)
        event = int(rng.choice(V, p=chances / chances.sum()))
        if event == END:
            return to_notes(output)
        output.append(event)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--shards", type=Path, required=True)
    parser.add_argument("--model", default="pianola")
    parser.add_argument("--pieces", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/music"))
    arguments = parser.parse_args()
    ticks = round(arguments.seconds * TICKS_A_SECOND)

    held = pieces_of(arguments.shards, "validation")
    unigram, bigram = counted(arguments.shards)
    model = load(arguments.model)
    rows = [[END, *piece] for piece in held]
    scored = np.concatenate(list(token_nats(model, rows)))
    before, after = np.concatenate([row[:-1] for row in rows]), np.concatenate(held)
    losses = {
        "unigram": float(-np.log(unigram[after]).mean()),
        "bigram": float(-np.log(bigram[before, after]).mean()),
        arguments.model: float(scored.mean()),
    }

    # The first documents to train on are the pieces in their own keys.
    trained = pieces_of(arguments.shards, "train")[:_TRAINED]
    seeds = range(1, arguments.pieces + 1)
    pieces = generate(model, seconds=arguments.seconds, seed=1, n=max(2, arguments.pieces))
    made = [piece.notes for piece in pieces]
    sets = {
        "training pieces": [_middle(to_notes(piece), ticks) for piece in trained],
        "held-out pieces": [_middle(to_notes(piece), ticks) for piece in held],
        arguments.model: made,
        "bigram": [play(lambda output: bigram[output[-1] if output else END], ticks, seed) for seed in seeds],
        "unigram": [play(lambda _: unigram, ticks, seed) for seed in seeds],
    }
    figures = {name: [measure(notes) for notes in pieces if len(notes)] for name, pieces in sets.items()}
    means = {name: mean_of(pieces) for name, pieces in figures.items()}
    arguments.out.mkdir(parents=True, exist_ok=True)
    report = {
        "nats_an_event": losses,
        "published": {"Music Transformer, Piano-e-Competition": PUBLISHED},
        "held_out_events": len(after),
        "pieces": {name: len(pieces) for name, pieces in sets.items()},
        "table": table(means),
    }
    (arguments.out / "music.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    compare(figures).savefig(arguments.out / "figures.png", dpi=130)
    write_png(made[0], arguments.out / "roll.png", title=f"{arguments.model}, seed 1")
    print("\n".join(f"{name:<16} {loss:.3f} nats an event" for name, loss in losses.items()))
    print(f"(Music Transformer on Piano-e-Competition, published: {PUBLISHED})")
    print(table(means))


def _middle(notes: Notes, ticks: int) -> Notes:
    """As many ticks from the middle of a piece."""
    start = max(0, (int(notes.ends.max()) - ticks) // 2)
    return notes.between(start, start + ticks)


if __name__ == "__main__":
    main()
