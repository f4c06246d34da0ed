"""Stop strings, matched over text that arrives in pieces; what could still become one is held back.

The match that is complete first wins; of several that are complete at the same character, the longest. So the text
ends as soon as it contains any stop string, and where it ends does not depend on how it was cut into pieces. Nothing
here knows of tokens.
"""

from collections.abc import Sequence

from gpt2.errors import BadOption


class StopMatcher:
    """Passes text on until a stop string appears; the stop string and what follows it never come out.

    Raises BadOption for an empty stop string, which would match before any text.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        if not all(stops):
            raise BadOption("A stop string is empty; it would end every text before it begins.")
        self._stops = tuple(stops)
        self._longest = max(map(len, self._stops), default=0)
        self._held = ""
        self._matched = False

    def push(self, text: str) -> tuple[str, bool]:
        """The text that can be shown now, and whether a stop string has appeared; after that, nothing comes out."""
        if self._matched:
            return "", True
        text = self._held + text
        # (end, start): the earliest end, and of equal ends the earliest start, which is the longest stop string.
        matches = [(start + len(stop), start) for stop in self._stops if (start := text.find(stop)) >= 0]
        if matches:
            self._matched, self._held = True, ""
            return text[: min(matches)[1]], True
        kept = self._unfinished(text)
        self._held = text[len(text) - kept :]
        return text[: len(text) - kept], False

    def flush(self) -> str:
        """What was held back, once it is known that no more text comes."""
        held, self._held = self._held, ""
        return held

    def _unfinished(self, text: str) -> int:
        """Length of the longest end of `text` that begins a stop string."""
        for length in range(min(self._longest - 1, len(text)), 0, -1):
            end = text[-length:]
            if any(stop.startswith(end) for stop in self._stops):
                return length
        return 0
