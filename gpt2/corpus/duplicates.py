"""Exact and near duplicates: which documents of a corpus say what an earlier one has said.

Exact: the same SHA-256 of the text. Near: MinHash. A text is the set of its runs of three words, in lower case and
without punctuation; two texts are compared by the share of these that they have in common (Jaccard), estimated from
128 minima. Candidates are those that agree in one of 32 bands of four minima; a candidate counts only if the estimate
from all 128 reaches the threshold, which plain banding does not ask. Of a group the first document stays.

The minima come from rensa; the grouping is sorting, in NumPy. Nothing here reads a source or knows a token.
"""

from collections.abc import Callable, Iterable, Sequence
from zlib import crc32

import numpy as np
import numpy.typing as npt

from gpt2.errors import Unavailable
from gpt2.shards.heldout import digest as digest  # and callers find it here

WORDS = 3  # in a run
BANDS, ROWS = 32, 4
HASHES = BANDS * ROWS
_SEED = 1

UInt64s = npt.NDArray[np.uint64]
UInt32s = npt.NDArray[np.uint32]
Signatures = Callable[[npt.NDArray[np.int64]], UInt32s]

# ASCII: letters to lower case, what is neither letter nor digit to a space. Other bytes are parts of words.
_FOLD = bytes(ord(chr(b).lower()) if chr(b).isalnum() or b >= 128 else 32 for b in range(128)) + bytes(range(128, 256))
# Where words are longer than this on average, the script has no spaces and characters take the words' place.
_MOST_BYTES_PER_WORD = 32


def check_near() -> None:
    """Raises Unavailable if the library that computes signatures is not installed."""
    try:
        import rensa  # noqa: F401
    except ImportError:
        raise Unavailable(
            "Near-duplicate removal needs rensa: install the extra `corpus` (see README), or use --no-near."
        ) from None


def shingles(text: bytes) -> UInt64s:
    """The hashes of a text's runs of three words, (runs,) uint64 and at least one; `text` is UTF-8."""
    words = text.translate(_FOLD).split()
    if len(text) <= _MOST_BYTES_PER_WORD * len(words):
        hashes = np.fromiter(map(crc32, words), np.uint64, len(words))
    else:
        hashes = np.frombuffer(text.decode(errors="replace").encode("utf-32-le"), np.uint32).astype(np.uint64)
    if len(hashes) < WORDS:
        return np.array([digest(b" ".join(words) or text)[0]], np.uint64)
    runs = len(hashes) - WORDS + 1
    mixed = np.zeros(runs, np.uint64)
    for place in range(WORDS):
        mixed = (mixed ^ hashes[place : place + runs]) * np.uint64(0x9E3779B97F4A7C15)
        mixed ^= mixed >> np.uint64(29)
    return mixed


def signatures(texts: Sequence[bytes]) -> UInt32s:
    """The minima of each text, (texts, 128) uint32: the same on every machine. Raises Unavailable without rensa."""
    check_near()
    from rensa import RMinHash

    runs = [shingles(text) for text in texts]
    offsets = np.zeros(len(runs) + 1, np.uint64)
    np.cumsum([len(one) for one in runs], out=offsets[1:])
    matrix = RMinHash.digest_matrix_from_flat_token_hashes(np.concatenate(runs), offsets, HASHES, _SEED)
    return np.array(matrix.to_rows(), np.uint32)


def bands(minima: UInt32s) -> UInt64s:
    """One number for each band of each text: (texts, 128) uint32 to (32, texts) uint64."""
    halves = minima.reshape(len(minima), BANDS, ROWS // 2, 2).astype(np.uint64)
    pairs = (halves[..., 0] << np.uint64(32)) | halves[..., 1]
    mixed = np.zeros(pairs.shape[:2], np.uint64)
    for place in range(pairs.shape[2]):
        mixed = (mixed ^ pairs[..., place]) * np.uint64(0xBF58476D1CE4E5B9)
        mixed ^= mixed >> np.uint64(31)
    return np.ascontiguousarray(mixed.T)


def exact(hashes: UInt64s) -> npt.NDArray[np.bool_]:
    """Which documents have the text of an earlier one: (documents, 2) uint64 to (documents,) bool."""
    order = np.lexsort((hashes[:, 1], hashes[:, 0]))
    later = order[1:][(hashes[order[1:]] == hashes[order[:-1]]).all(axis=1)]
    found = np.zeros(len(hashes), np.bool_)
    found[later] = True
    return found


def near(
    documents: int,
    read_bands: Iterable[UInt64s],
    read_signatures: Signatures,
    threshold: float,
) -> npt.NDArray[np.bool_]:
    """Which documents are near duplicates of an earlier one: (documents,) bool.

    read_bands: for each band the numbers of all documents, (documents,) uint64.
    read_signatures: the minima of the documents at some indices, (indices,) int64 to (indices, 128) uint32.

    In memory at once: about 35 bytes a document, and 16 for each pair found.
    """
    # The number of the earliest document that each is known to be like.
    first = np.arange(documents)
    for numbers in read_bands:
        order = np.argsort(numbers, kind="stable")
        again = np.zeros(documents, np.bool_)
        again[1:] = numbers[order[1:]] == numbers[order[:-1]]
        places = np.flatnonzero(again)
        heads = np.maximum.accumulate(np.where(again, 0, np.arange(documents)))[places]
        # Each is compared with the one before it in its group and with the group's first.
        pairs = np.unique(
            np.concatenate(
                [np.stack([order[places - 1], order[places]], 1), np.stack([order[heads], order[places]], 1)]
            ),
            axis=0,
        )
        pairs = pairs[first[pairs[:, 0]] != first[pairs[:, 1]]]
        alike = np.concatenate(
            [_alike(pairs[at : at + 4096], read_signatures, threshold) for at in range(0, len(pairs), 4096)]
            or [np.zeros(0, np.bool_)]
        )
        _join(first, pairs[alike])
    return np.asarray(first != np.arange(documents))


def _alike(pairs: npt.NDArray[np.int64], read: Signatures, threshold: float) -> npt.NDArray[np.bool_]:
    equal = (read(pairs[:, 0]) == read(pairs[:, 1])).mean(axis=1)
    return np.asarray(equal >= threshold)


def _join(first: npt.NDArray[np.int64], pairs: npt.NDArray[np.int64]) -> None:
    """Makes groups that a pair connects one, whose name is its earliest document."""
    while len(pairs):
        ends = first[pairs]
        lowest = ends.min(axis=1)
        if (ends == lowest[:, None]).all():
            return
        # Names alone are renamed: a member that went over by itself would leave its group behind.
        np.minimum.at(first, ends[:, 0], lowest)
        np.minimum.at(first, ends[:, 1], lowest)
        # Follow names to their own names, until every document names a document that names itself.
        while (first != (higher := first[first])).any():
            first[:] = higher
