"""`IncrementalDecoder`: tokens in, whole characters out. It knows nothing of stop strings or of the model."""

import codecs

from gpt2.tokenizer.bpe import Tokenizer


class IncrementalDecoder:
    """Decodes token by token, holding back the bytes of a character that is not complete yet.

    What `push` returned, joined, and then `finish`, equals `tokenizer.decode` of the whole, U+FFFD included.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        # CPython's own. It marks bad bytes as bytes.decode does, wherever the pieces are cut (tested over all of them).
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, id: int) -> str:
        """The text that this token completes, or "" within a character. Raises BadPrompt for an unknown id."""
        return self._utf8.decode(self._tokenizer.token_bytes(id))

    def push_bytes(self, data: bytes) -> str:
        """As `push`, for bytes."""
        return self._utf8.decode(data)

    def finish(self) -> str:
        """U+FFFD for a character that was never completed, else "". The decoder is then as new."""
        text = self._utf8.decode(b"", final=True)
        self._utf8.reset()
        return text
