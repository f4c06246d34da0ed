"""`WordTokenizer`: a closed vocabulary of whole words, for what is no prose, such as the events of music.

A text is words with white space between them; each has one id, and any other word is refused. It has the face of
`Tokenizer`, so that shards, training, checkpoints and generation take either.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from functools import cached_property

import numpy as np
import numpy.typing as npt

from gpt2.errors import BadPrompt, BadTokenizer
from gpt2.tokenizer.bpe import END_OF_TEXT, Tokenizer


class WordTokenizer(Tokenizer):
    """Words and their ids, which never change.

    A word's bytes are a space and its spelling, as GPT-2's words have them: the tokens of a text joined are its words
    with one space before each. `encode` of that gives the same ids.
    """

    def __init__(self, words: Sequence[str], special_tokens: Mapping[str, int] | None = None) -> None:
        """words: in the order of their ids, from 0. special_tokens: by default `<|endoftext|>` alone, behind them.

        Raises BadTokenizer for a word that is empty, holds white space, or is there twice, and for ids with gaps.
        """
        special = {END_OF_TEXT: len(words)} if special_tokens is None else dict(special_tokens)
        self._words = tuple(words)
        for word in (*self._words, *special):
            if not isinstance(word, str) or not word or re.search(r"\s", word):
                raise BadTokenizer(f"{word!r:.60} is no word: it is empty, or holds white space.")
        if len({*self._words, *special}) < len(self._words) + len(special):
            raise BadTokenizer("A word of the vocabulary is there twice.")
        if sorted(special.values()) != list(range(len(words), len(words) + len(special))):
            raise BadTokenizer("The control tokens' ids must follow those of the words, with no gap.")
        super().__init__(np.zeros((0, 2), dtype=np.int32), np.arange(len(words), dtype=np.int32), special)

    @property
    def words(self) -> tuple[str, ...]:
        """The words, in the order of their ids."""
        return self._words

    def offsets(self, text: str) -> list[tuple[int, int]]:
        """For each word: its first character, and one past its last."""
        self._encode(text)
        return [match.span() for match in re.finditer(r"\S+", text)]

    def __reduce__(self) -> tuple[type["WordTokenizer"], tuple[object, ...]]:
        return WordTokenizer, (self._words, dict(self._special_tokens))

    @cached_property
    def _fingerprint(self) -> str:
        digest = hashlib.sha256(f"{len(self._words)} words\n".encode())
        for name, index in (*((word, index) for index, word in enumerate(self._words)), *self._special_tokens.items()):
            digest.update(f"{index} {len(name.encode())} {name}\n".encode())
        return digest.hexdigest()

    @cached_property
    def _place_bytes(self) -> list[bytes]:
        return [f" {word}".encode() for word in self._words]

    @cached_property
    def _index(self) -> dict[str, int]:
        return {word: index for index, word in enumerate(self._words)}

    def _encode(self, text: str) -> list[int]:
        try:
            return [self._index[word] for word in text.split()]
        except KeyError as error:
            some = ", ".join(self._words[:: max(1, len(self._words) // 4)][:4])
            raise BadPrompt(
                f"{error.args[0]!r:.60} is no word of this model's vocabulary, whose {len(self._words)} words are such "
                f"as {some}."
            ) from None

    def _encode_places(self, text: str) -> npt.NDArray[np.uint32]:
        return np.array(self._encode(text), dtype=np.uint32)
