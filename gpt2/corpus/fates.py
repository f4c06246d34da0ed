"""What becomes of every document once all are read: kept to train on, held out, or dropped as a duplicate.

Needs all documents at once, but of each only its hash, its length and its signature, never its text.
"""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from gpt2.corpus import duplicates
from gpt2.corpus.options import CorpusOptions
from gpt2.corpus.parts import Parts
from gpt2.corpus.report import EXACT_STEP, NEAR_STEP, Tally
from gpt2.errors import Notice
from gpt2.shards import held_out

TRAIN, VALIDATION, EXACT, NEAR = range(4)
SPLITS: dict[int, Literal["train", "validation"]] = {TRAIN: "train", VALIDATION: "validation"}
Fates = npt.NDArray[np.uint8]

# Text of one task of the tokens stage: small enough to share out, large enough for few files.
_STRETCH_BYTES = (16 * 2**20, 160 * 2**20)
_STRETCHES = 64
# Fates that are read at once.
_FATES = 2**20


@dataclass(frozen=True, slots=True)
class Stretch:
    """Documents of one fate, of which one task makes shards: those that have it among the numbers `start` to `end` of
    all, so that a task looks at no others. bytes: of their text."""

    fate: int
    start: int
    end: int
    bytes: int


def decide(parts: Parts, options: CorpusOptions) -> Fates:
    """The fate of every document, (documents,) uint8. Of duplicates the first in the order of the sources stays."""
    hashes = parts.hashes()
    fates = np.full(len(parts), TRAIN, np.uint8)
    if options.exact:
        fates[duplicates.exact(hashes)] = EXACT
    if options.near:
        kept = np.flatnonzero(fates == TRAIN)
        again = duplicates.near(
            len(kept), parts.bands(kept), lambda indices: parts.signatures(kept[indices]), options.threshold
        )
        fates[kept[again]] = NEAR
    kept = np.flatnonzero(fates == TRAIN)
    fates[kept[_held_out(hashes[kept, 0], options.validation)]] = VALIDATION
    return fates


def count_dropped(parts: Parts, fates: Fates) -> Tally:
    """Duplicates by set."""
    tally = Tally()
    for part, start, end in parts.spans():
        records, names = part.records(), part.counts()["sets"]
        for fate, step in ((EXACT, EXACT_STEP), (NEAR, NEAR_STEP)):
            dropped: npt.NDArray[Any] = records[fates[start:end] == fate]
            for number in np.unique(dropped["set"]).tolist():
                sizes = dropped["bytes"][dropped["set"] == number]
                tally.add(names[number], step, int(sizes.sum()), documents=len(sizes))
    return tally


def share_out(parts: Parts, fates: Fates) -> Iterator[Stretch]:
    """Cuts the kept documents into tasks by their bytes. The number of workers has no say in it."""
    sizes = np.concatenate([part.records()["bytes"].astype(np.int64) for part, _, _ in parts.spans()])
    least, most = _STRETCH_BYTES
    room = min(most, max(least, int(sizes[np.isin(fates, list(SPLITS))].sum()) // _STRETCHES))
    for fate in SPLITS:
        places = np.flatnonzero(fates == fate)
        ends = np.cumsum(sizes[places])
        start = 0
        while start < len(ends):
            before = int(ends[start - 1]) if start else 0
            # At least one document, however long.
            end = max(start + 1, int(np.searchsorted(ends, before + room, "right")))
            yield Stretch(fate, int(places[start]), int(places[end - 1]) + 1, int(ends[end - 1]) - before)
            start = end


def numbers(path: Path, stretch: Stretch) -> npt.NDArray[np.int64]:
    """The numbers of a stretch's documents, rising, by the file of all fates, a byte each; however many it holds, what
    is in memory is a little of it, and what is returned."""
    found = []
    for start in range(stretch.start, stretch.end, _FATES):
        fates = np.fromfile(path, np.uint8, min(_FATES, stretch.end - start), offset=start)
        found.append(start + np.flatnonzero(fates == stretch.fate))
    return np.concatenate(found)


def _held_out(hashes: duplicates.UInt64s, share: float) -> npt.NDArray[np.bool_]:
    """Which documents are held out: as `held_out` says, but none if that were all, because a corpus is to train on."""
    held = held_out(hashes, share)
    if held.all():
        if share:
            warnings.warn(
                "Nothing is held out for validation: only one document is left, or the share is too large.",
                Notice,
                stacklevel=2,
            )
        held = np.zeros_like(held)
    return held
