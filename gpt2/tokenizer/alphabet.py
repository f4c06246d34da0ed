"""GPT-2's alphabet: the order of the 256 bytes in the vocabulary, and the character that stands for each in files.

Vocabulary files are text, so OpenAI gave every byte a visible character: bytes that are printable in Latin-1 stand for
themselves, and the others take the characters from U+0100 upwards, in order (a space is `Ġ`, a newline `Ċ`). The
first 256 ids are the bytes in the order of these characters. This file knows nothing of merges.
"""

_PRINTABLE = (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))
_OTHERS = tuple(sorted(set(range(256)) - set(_PRINTABLE)))

BYTES = bytes(_PRINTABLE + _OTHERS)
"""The byte of each of the first 256 ids."""

CHARACTERS = "".join(map(chr, _PRINTABLE)) + "".join(chr(0x100 + index) for index in range(len(_OTHERS)))
"""The character that stands for it in vocabulary files."""
