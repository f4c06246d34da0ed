"""How much of held-out text stands in the text that a model is trained on, word for word.

    python scripts/overlap.py heldout.jsonl other.txt --against train.jsonl [--out overlap.json]

Words and n-grams are those of `gpt2 eval --overlap` (gpt2/evaluation/overlap.py): runs of letters and digits, in small
letters, so that case, punctuation, line ends and ways of quoting do not hide a copy. For every set of the held-out
documents (their field `set`; a text file is a set of its own) it tells which share of their 8-grams and of their
13-grams, counted as often as they occur, also occurs anywhere in the training text, and how many documents are copies:
a single training document holds a fifth or more of their 13-grams.

Memory is bounded by the held-out text: its n-grams' 64-bit hashes are kept, and the training text is read once, a
document at a time.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gpt2.evaluation.overlap import Hashes, Wanted, gram_hashes, word_hashes

LENGTHS = (8, 13)
COPY = 0.2


class Held:
    """The n-grams of one length of all held-out documents: which of them were met, and whose they are."""

    def __init__(self, length: int, words: list[Hashes]) -> None:
        self.length = length
        self.documents = [gram_hashes(each, length) for each in words]
        every = np.concatenate(self.documents)
        self.wanted = Wanted(every)
        owners = np.repeat(np.arange(len(self.documents)), [len(each) for each in self.documents])
        # The first document that has an n-gram owns it: enough to find copies.
        self.owner = owners[np.unique(every, return_index=True)[1]]

    def look(self, words: Hashes) -> npt.NDArray[np.int64]:
        """Marks what a training document holds of them; returns how many distinct ones it shares with each owner."""
        places = np.unique(self.wanted.look(gram_hashes(words, self.length)))
        return np.bincount(self.owner[places], minlength=len(self.documents))

    def shares(self) -> npt.NDArray[np.float64]:
        """Of each document's n-grams, the share that was met; 0 for a document without any."""
        return np.array([self.wanted.found(each).mean() if len(each) else 0.0 for each in self.documents])

    def counts(self) -> npt.NDArray[np.int64]:
        """N-grams of each document."""
        return np.array([len(each) for each in self.documents])


def words(text: str) -> Hashes:
    """The words of a text as hashes, in order."""
    return np.concatenate([np.zeros(0, dtype=np.uint64), *word_hashes(text)])


def read(path: Path) -> Iterator[dict[str, Any]]:
    """Documents of a .jsonl file, or a text file as one document."""
    if path.suffix != ".jsonl":
        yield {"text": path.read_text(encoding="utf-8"), "set": path.name, "title": path.name, "id": path.name}
        return
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("held", type=Path, nargs="+", help="held-out documents: .jsonl, or text files")
    parser.add_argument(
        "--against", type=Path, nargs="+", required=True, help="what is trained on: .jsonl or text files"
    )
    parser.add_argument("--out", type=Path, help="where the figures go as JSON")
    options = parser.parse_args()

    about: list[dict[str, Any]] = []
    hashed: list[Hashes] = []
    for path in options.held:
        for document in read(path):
            hashed.append(words(document["text"]))
            about.append({key: document.get(key) for key in ("set", "title", "part", "id")})
    held = {length: Held(length, hashed) for length in LENGTHS}
    sizes = held[LENGTHS[-1]].counts()
    copies: dict[str, dict[str, Any]] = {}
    read_documents = read_words = 0
    for path in options.against:
        for document in read(path):
            text = words(document["text"])
            read_documents, read_words = read_documents + 1, read_words + len(text)
            for length in LENGTHS:
                shared = held[length].look(text)
            for number in np.flatnonzero(shared >= np.maximum(1, COPY * sizes)):
                share = float(shared[number] / sizes[number])
                entry = about[number] | {
                    "of": document.get("title"),
                    "of_part": document.get("part"),
                    "share": round(share, 3),
                }
                old = copies.get(about[number]["id"])
                if old is None or old["share"] < entry["share"]:
                    copies[about[number]["id"]] = entry
            if read_documents % 1000 == 0:
                print(f"{read_documents:,} documents, {read_words:,} words", file=sys.stderr)

    result = {
        "words": "runs of letters and digits, lower-cased; n-grams counted as often as they occur",
        "copy": f"one training document holds {COPY:.0%} or more of the document's {LENGTHS[-1]}-grams",
        "training": {"documents": read_documents, "words": read_words},
        "sets": _by_set(about, held, copies),
        "copies": copies,
    }
    if options.out:
        options.out.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(json.dumps(result["sets"], indent=1))
    print(f"{len(copies)} copies")


def _by_set(about: list[dict[str, Any]], held: dict[int, Held], copies: dict[str, Any]) -> dict[str, dict[str, Any]]:
    sets: dict[str, dict[str, Any]] = {}
    names = np.array([each["set"] for each in about])
    clean = np.array([each["id"] not in copies for each in about])
    for name in dict.fromkeys(names):
        here = names == name
        row: dict[str, Any] = {"documents": int(here.sum()), "copies": int((here & ~clean).sum())}
        for length, each in held.items():
            counts = each.counts()
            shares = each.shares()
            row[f"{length}-grams"] = int(counts[here].sum())
            for key, which in ((f"{length}-grams met", here), (f"{length}-grams met, without copies", here & clean)):
                total = counts[which].sum()
                row[key] = round(float((counts * shares)[which].sum() / total), 5) if total else None
            row[f"median document, {length}-grams met"] = round(float(np.median(shares[here])), 5)
        sets[str(name)] = row
    return sets


if __name__ == "__main__":
    main()
