"""Bits per byte on held-out text, for each set of documents, with intervals, of one model or of several side by side.

    python -m benchmarks.heldout heldout.jsonl [--wikitext wiki.test.raw] --model bookworm [--model runs/NAME ...]

heldout.jsonl is what `scripts/prepare_corpus.py` writes (text, set, id). Protocol: `gpt2.evaluation.perplexity`'s, a
stride of half the window, every document by itself behind the end-of-text id, which is read and not scored. Of a long
document an excerpt from its middle is scored (`--bytes`), since an interval wants many documents more than long ones.
WikiText-2 raw is scored as one document, as the file is; its articles serve for the interval alone.

Intervals: 95 %, percentiles of 2,000 samples of the documents with replacement. Documents of one author or one series
are not independent, so the truth is somewhat wider. Beside the first model named, the others' ratio to it is told, from
the same samples. What was scored is kept in `--cache`, so that a model is scored once.
"""

import argparse
import hashlib
import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gpt2.checkpoint import LanguageModel, load
from gpt2.evaluation.intervals import Floats, resampled
from gpt2.evaluation.perplexity import token_nats
from gpt2.tokenizer import Tokenizer

WIKITEXT = "WikiText-2 raw test"
_ARTICLE = re.compile(r"^ = (?!=)(.*?) = *$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Piece:
    """What counts as one in an interval: a document, or an article of a longer one. Nats in all, and bytes."""

    set: str
    nats: float
    bytes: int


def score(model: LanguageModel, documents: Sequence[tuple[str, str]]) -> list[Piece]:
    """Documents (set, text), each by itself."""
    tokenizer = model.tokenizer
    costs = token_nats(model, ([_end(tokenizer), *tokenizer.encode(text)] for _, text in documents))
    return [
        Piece(name, float(nats.sum()), len(text.encode())) for (name, text), nats in zip(documents, costs, strict=True)
    ]


def score_by_article(model: LanguageModel, text: str, name: str) -> list[Piece]:
    """One document, taken apart at its headings after it was scored as a whole."""
    tokenizer = model.tokenizer
    ids = tokenizer.encode(text)
    [nats] = token_nats(model, [[_end(tokenizer), *ids]])
    starts = [len(text[: match.start()].encode()) for match in _ARTICLE.finditer(text)]
    edges = [0, *starts[1:], len(text.encode())]
    ends = np.cumsum([len(tokenizer.decode_bytes([token])) for token in ids])
    # A token belongs to the article in which it ends.
    owner = np.searchsorted(np.array(edges[1:]), ends, side="left")
    sums = np.bincount(owner, weights=nats, minlength=len(edges) - 1)
    return [Piece(name, float(sums[i]), edges[i + 1] - edges[i]) for i in range(len(edges) - 1)]


def table(scored: dict[str, list[Piece]]) -> list[dict[str, Any]]:
    """A line for each set and model: bits per byte, interval, and the ratio to the first model with its interval."""
    first = next(iter(scored))
    lines = []
    for name in dict.fromkeys(piece.set for piece in scored[first]):
        chosen = {model: [p for p in pieces if p.set == name] for model, pieces in scored.items()}
        base, base_samples = _bits_per_byte(chosen[first])
        for model, pieces in chosen.items():
            value, samples = _bits_per_byte(pieces)
            line: dict[str, Any] = {"set": name, "model": model, "bits_per_byte": round(value, 4)}
            line["interval"] = [round(float(v), 4) for v in np.percentile(samples, (2.5, 97.5))]
            line |= {"pieces": len(pieces), "bytes": sum(p.bytes for p in pieces)}
            if model != first:
                line["ratio"] = round(value / base, 4)
                line["ratio_interval"] = [
                    round(float(v), 4) for v in np.percentile(samples / base_samples, (2.5, 97.5))
                ]
            lines.append(line)
    return lines


def _bits_per_byte(pieces: Sequence[Piece]) -> tuple[float, Floats]:
    """Bits per byte, and those of every sample of the pieces; the same draws for every model."""
    values = np.array([(piece.nats / math.log(2), piece.bytes) for piece in pieces])
    nats, sizes = values.sum(axis=0)
    return float(nats / sizes), resampled(values)


def _end(tokenizer: Tokenizer) -> int:
    assert tokenizer.end_of_text is not None
    return tokenizer.end_of_text


def _documents(path: Path, most: int) -> Iterator[tuple[str, str]]:
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            document = json.loads(line)
            text = document["text"]
            if len(text) > most:
                start = (len(text) - most) // 2
                text = text[start : start + most]
            yield document["set"], text


def _fingerprint(model: LanguageModel) -> str:
    digest = hashlib.sha256(model.tokenizer.fingerprint().encode())
    for tensor in model.network.state_dict().values():
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("heldout", type=Path)
    parser.add_argument("--wikitext", type=Path)
    parser.add_argument("--model", action="append", required=True, help="name or folder; the first is compared with")
    parser.add_argument("--bytes", type=int, default=8_000, help="characters of a document that are scored at most")
    parser.add_argument("--cache", type=Path, default=Path("build/heldout"))
    parser.add_argument("--out", type=Path, help="where the table goes as JSON")
    options = parser.parse_args()

    documents = list(_documents(options.heldout, options.bytes))
    wikitext = options.wikitext.read_text(encoding="utf-8") if options.wikitext else ""
    texts = hashlib.sha256(json.dumps([documents, wikitext]).encode()).hexdigest()[:16]
    scored: dict[str, list[Piece]] = {}
    for name in options.model:
        model = load(name)
        kept = options.cache / f"{_fingerprint(model)}-{texts}.json"
        if not kept.is_file():
            pieces = score_by_article(model, wikitext, WIKITEXT) if wikitext else []
            pieces += score(model, documents)
            kept.parent.mkdir(parents=True, exist_ok=True)
            kept.write_text(json.dumps([[p.set, p.nats, p.bytes] for p in pieces]), encoding="utf-8")
        scored[name] = [Piece(*each) for each in json.loads(kept.read_text(encoding="utf-8"))]
    corpus = {name: [p for p in pieces if p.set != WIKITEXT] for name, pieces in scored.items()}
    everything = {name: [Piece("all of the corpus", p.nats, p.bytes) for p in each] for name, each in corpus.items()}
    lines = table(scored) + table(everything)
    protocol = f"windows with a stride of half, each document alone, at most {options.bytes:,} characters of a document"
    if options.out:
        options.out.write_text(json.dumps({"protocol": protocol, "lines": lines}, indent=1) + "\n", encoding="utf-8")
    print(protocol)
    for line in lines:
        low, high = line["interval"]
        ratio = (
            "  {:.3f} of the first [{:.3f}, {:.3f}]".format(line["ratio"], *line["ratio_interval"])
            if "ratio" in line
            else ""
        )
        print(
            f"{line['set']:24} {line['model'][-40:]:40} {line['bits_per_byte']:.4f} [{low:.4f}, {high:.4f}] "
            f"{line['pieces']:5} pieces {line['bytes']:9,} bytes{ratio}"
        )


if __name__ == "__main__":
    main()
