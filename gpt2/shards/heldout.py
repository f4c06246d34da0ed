"""Which documents are held out for validation: one rule, for a corpus that is built and for text that is trained on.

The SHA-256 of a document's text alone decides, so the same ones stay out for good, whatever stands beside them. Each
user has one exception. Training from text (`training/documents.py`) and music (`music/dataset.py`, where a piece's
notes are its text) cut a single document in two, and when the rule holds out all they hold out the lowest alone. A
corpus (`corpus/fates.py`) then holds out none, and says so.
"""

import hashlib

import numpy as np
import numpy.typing as npt


def digest(text: bytes) -> tuple[int, int]:
    """The first 16 bytes of a text's SHA-256 as two numbers, the more significant first."""
    raw = hashlib.sha256(text).digest()
    return int.from_bytes(raw[:8], "big"), int.from_bytes(raw[8:16], "big")


def held_out(hashes: npt.NDArray[np.uint64], share: float, leave_some: bool = False) -> npt.NDArray[np.bool_]:
    """Which documents are held out, (documents,) bool. hashes: the first number of each `digest`, (documents,) uint64.

    Of few documents chance may hold out none: then it is the one with the lowest hash, and its copies. leave_some: the
    same where it holds out all.
    """
    held = np.asarray(hashes.astype(np.float64) / 2.0**64 < share)
    if len(hashes) and ((share and not held.any()) or (leave_some and held.all())):
        held = np.asarray(hashes == hashes.min())
    return held
