"""The passages of a text that cost a model most, as people can read them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gpt2.evaluation.intervals import Floats

# A passage grows from its costliest token over neighbours that cost at least this share of it, to at most so many.
_SHARE, _MOST_TOKENS = 0.5, 12
# Bytes of text shown before and behind.
_BEFORE, _BEHIND = 120, 40


@dataclass(frozen=True, slots=True)
class Passage:
    """A stretch of text, and what stands before and behind it. document: its name. nats: cost of its tokens."""

    document: str
    before: str
    text: str
    behind: str
    nats: float
    tokens: int


def hardest_of(document: str, data: bytes, lengths: npt.NDArray[np.int32], costs: Floats, count: int) -> list[Passage]:
    """The `count` passages of a document that cost most, the worst first; they do not overlap.

    data: the document's UTF-8. lengths, costs: of each of its tokens the bytes and the nats, of equal length.
    """
    ends = np.cumsum(lengths)
    taken = np.zeros(len(costs), dtype=bool)
    found: list[Passage] = []
    # Where passages grow over several of the costliest tokens, some more are needed to begin from.
    for peak in np.argsort(-costs, kind="stable")[: count * _MOST_TOKENS].tolist():
        if taken[peak]:
            continue
        first, last = _grown(costs, taken, peak)
        taken[first : last + 1] = True
        begin, end = int(ends[first] - lengths[first]), int(ends[last])
        begin, end = _border(data, begin, -1), _border(data, end, 1)
        shown = _border(data, max(0, begin - _BEFORE), 1), _border(data, min(len(data), end + _BEHIND), -1)
        parts = data[shown[0] : begin], data[begin:end], data[end : shown[1]]
        before, text, behind = (part.decode(errors="replace") for part in parts)
        nats = float(costs[first : last + 1].sum())
        found.append(Passage(document, before, text, behind, nats, last - first + 1))
    return sorted(found, key=lambda passage: -passage.nats)[:count]


def _grown(costs: Floats, taken: npt.NDArray[np.bool_], peak: int) -> tuple[int, int]:
    """First and last token of the passage around a costly one."""
    first = last = peak

    def joins(place: int) -> bool:
        return (
            0 <= place < len(costs)
            and not taken[place]
            and bool(costs[place] >= _SHARE * costs[peak])
            and last - first + 1 < _MOST_TOKENS
        )

    while joins(first - 1):
        first -= 1
    while joins(last + 1):
        last += 1
    return first, last


def _border(data: Sequence[int], place: int, step: int) -> int:
    """The nearest border between characters at or after this place (step 1), or at or before it (-1)."""
    while 0 < place < len(data) and data[place] & 0xC0 == 0x80:
        place += step
    return place
