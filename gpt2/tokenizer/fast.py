"""`FastEncoder`: the same ids as `Tokenizer.encode`, many times faster, by the library fastokens (the extra `fast`).

For corpora: documents in, arrays of ids out, with no Python number on the way. It decodes nothing and knows no control
tokens: their names in a text are ordinary text. The law `tokens` holds for it too (tests/laws/test_law_tokens.py).
fastokens was chosen among the fast ones because it gave no wrong id and its memory stays flat (docs/log.md).
"""

import json
import os
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from gpt2.errors import BadOption, BadPrompt, Unavailable
from gpt2.tokenizer.alphabet import CHARACTERS
from gpt2.tokenizer.bpe import Tokenizer
from gpt2.tokenizer.words import WordTokenizer

# What programs that cut text by other rules, or merge in another order, get wrong first.
_ODD = (
    "We'll see it's he'd I'M 'S 'Ll ’s ſ'ſ 'tis don't'nt   'x",
    " \n\n  a \t b\r\n\x85\xa0c\u2003\u3000 d   ",
    "1½Ⅷ²٣１23 a1b2 $9.99 e\u0301 n\u0303 \u200b\u200d\ufeff",
    "色は匂へど 散りぬるを，１２３。키스의 Ξεσκεπάζω דג סקרן ऋषियों เป็นมนุษย์ 👩‍👩‍👧‍👦🏳️‍🌈",
    "<|endoftext|>\x00\x01\x7f --==<<>>///***___ \U0010ffff",
    "supercalifragilisticexpialidocious" + "ab" * 300 + " " * 300 + "x" + "\n" * 100,
)


class FastEncoder:
    """Encodes documents as `tokenizer` does. Its memory does not grow with what it has read.

    threads: how many one call may use. The library reads this once a process, so the first encoder decides.

    Raises Unavailable if fastokens is not installed, or if its release gives other ids for this vocabulary (a few
    hundred odd words are compared each time); BadOption for fewer than one thread, or a vocabulary of words.
    """

    def __init__(self, tokenizer: Tokenizer, threads: int = 1) -> None:
        if threads < 1:
            raise BadOption(f"threads is {threads}, but it must be at least 1.")
        if isinstance(tokenizer, WordTokenizer):
            raise BadOption("A vocabulary of words has nothing to merge; its own encode is as fast as can be.")
        os.environ.setdefault("FASTOKENS_BPE_THREADS", str(threads))
        try:
            import fastokens
        except ImportError:
            raise Unavailable("Fast tokenising needs fastokens: install the extra `fast` (see README).") from None
        self._tokenizer, self._threads = tokenizer, threads
        # As tiktoken, it is given places for ids; see bpe.py.
        self._ids = None if np.array_equal(tokenizer.ids, np.arange(len(tokenizer.ids))) else tokenizer.ids
        try:
            self._fast: Any = fastokens.Tokenizer.from_json_str(_plain_json(tokenizer))
        except ValueError as error:
            raise Unavailable(
                f"The installed fastokens does not take this vocabulary ({error}); use tiktoken."
            ) from None
        for text, ids in zip(_ODD, self.encode_batch(_ODD), strict=True):
            if ids.tolist() != tokenizer.encode(text):
                raise Unavailable(
                    f"The installed fastokens gives other ids than tiktoken for {text[:20]!r}; install the release "
                    "that the extra `fast` names, or do without it."
                )

    def encode_batch(self, documents: Sequence[str]) -> list[npt.NDArray[np.uint32]]:
        """`Tokenizer.encode` of each document: (tokens,) uint32 each, views of one piece of memory.

        Raises BadPrompt for a lone surrogate.
        """
        if isinstance(documents, str):
            raise BadPrompt("encode_batch takes a list of texts, and got one text; put it in a list.")
        try:
            ids, ends = self._fast.encode_batch_flat(list(documents))
        except (UnicodeEncodeError, TypeError):
            for document in documents:
                self._tokenizer.encode(document)  # says which character, or what is no text
            raise
        flat = np.frombuffer(ids, dtype="<u4")
        if self._ids is not None:
            flat = self._ids.astype(np.uint32)[flat]
        borders = np.frombuffer(ends, dtype="<u8").tolist()
        return [flat[start:end] for start, end in pairwise(borders)]

    def __reduce__(self) -> tuple[type["FastEncoder"], tuple[Tokenizer, int]]:
        return FastEncoder, (self._tokenizer, self._threads)


def _plain_json(tokenizer: Tokenizer) -> str:
    """`tokenizer.json` without control tokens, so that none is looked for in text; places stand for ids."""
    tokens = list(CHARACTERS)
    merges = []
    for left, right in tokenizer.merges.tolist():
        merges.append([tokens[left], tokens[right]])
        tokens.append(tokens[left] + tokens[right])
    vocab = {token: place for place, token in enumerate(tokens)}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": True}
    return json.dumps({"pre_tokenizer": byte_level, "model": {"type": "BPE", "vocab": vocab, "merges": merges}})
