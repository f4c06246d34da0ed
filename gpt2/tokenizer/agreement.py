"""Proof that merging by listed pairs and merging by joined bytes give the same tokens, for one list of merges.

Hugging Face's `tokenizers` and OpenAI's own code join two neighbours if the *pair* is listed. tiktoken joins them if
their *joined bytes* are a token, however that token was listed. Both take the lowest rank first, and the leftmost of
equals. They differ if a token's bytes can meet as another pair than the listed one. So each merge is checked:

    the bytes of merge m's token, joined by the listed pairs before m alone, end in exactly m's pair.

Why that is enough. Every listed merge joins bytes or tokens of earlier merges, so a run by listed pairs applies merges
in rising rank. Take any text and the first step at which the two runs part. Every listed pair is also a joined-bytes
pair of the same rank, so they part only where tiktoken's choice, two neighbours (x, y) whose bytes are token m, is not
m's listed pair; and then no neighbours of a rank below m are left. Look at the bytes under x and y alone. No merge so
far crossed their outer borders, for these are still there. So the merges inside came in the order in which they come
when these bytes stand alone, and all those of a rank below m are done. By the check, that left exactly m's pair. After
that, only joining this pair could have changed these bytes, and they are still two tokens. So (x, y) is m's pair.

tiktoken also takes a word that is a token whole, without merging. By the same check, merging it gives that token too.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise


class Agreement:
    """The merges that passed the check so far. Tokens are numbered: 0 to 255 the bytes, then the kept merges."""

    def __init__(self) -> None:
        self._joined: dict[tuple[int, int], int] = {}
        self._bytes: list[tuple[int, ...]] = [(byte,) for byte in range(256)]

    def add(self, left: int, right: int) -> bool:
        """Keeps the merge and gives its token the next number if it passes; says whether it did."""
        parts = self._bytes[left] + self._bytes[right]
        if join_listed(parts, self._joined) != [left, right]:
            return False
        self._joined[left, right] = len(self._bytes)
        self._bytes.append(parts)
        return True


def join_listed(parts: Sequence[int], joined: Mapping[tuple[int, int], int]) -> list[int]:
    """Plain BPE: joins the listed pair of the lowest rank, the leftmost first, until no pair is listed.

    `joined` gives each listed pair's token, whose number is its rank. Slow and obvious on purpose; for short words.
    """
    word = list(parts)
    unlisted = 1 << 62
    while len(word) > 1:
        found = [joined.get(pair, unlisted) for pair in pairwise(word)]
        lowest = min(found)
        if lowest == unlisted:
            break
        at = found.index(lowest)
        word[at : at + 2] = [lowest]
    return word


def first_disagreement(merges: Iterable[tuple[int, int]]) -> int | None:
    """Index of the first merge that fails the check, or None. Every merge must join tokens that exist before it."""
    agreement = Agreement()
    for index, (left, right) in enumerate(merges):
        if not agreement.add(left, right):
            return index
    return None
