"""Where sentences end, by rules: "the first three sentences" of the paper's summaries are counted with it.

The paper does not say how it counted. No library, since those that are good at it fetch data when they are first used.
"""

import re

NAME = "gpt2-complete sentences 1"

# Marks, quotation marks or brackets that close behind them, and then white space or the text's end.
_END = re.compile(r"(?:[.!?…]+)(?:[\"'’”)\]]|\s?»)*(?=\s|$)")
# A full stop behind these ends no sentence.
_ABBREVIATIONS = re.compile(
    r"(mr|mrs|ms|dr|st|prof|gen|lt|col|sgt|capt|cpl|rev|hon|sen|rep|gov|vs|vol|fig|approx|jan|feb|aug|sept|oct|nov|dec"
    r"|mme|mlle|(?:[a-z]\.)+[a-z])",
    re.IGNORECASE,
)
_LAST_WORD = re.compile(r"(\S+?)\.$")


def sentences(text: str) -> list[str]:
    """The sentences of a text, without the white space between them; a line's end ends one too.

    A mark (. ! ? …) ends a sentence if white space follows, unless what comes then begins with a small letter, or the
    full stop belongs to an abbreviation or an initial. A mark that stands alone, as in tokenised text, always ends one.
    """
    return [sentence for line in text.splitlines() for sentence in _of_line(line)]


def first_sentences(text: str, count: int) -> str:
    """The first sentences of a text, as many as there are, one a line."""
    return "\n".join(sentences(text)[:count])


def _of_line(line: str) -> list[str]:
    found, start = [], 0
    for match in _END.finditer(line):
        if not _ends(line, match.start(), match.end()):
            continue
        found.append(line[start : match.end()].strip())
        start = match.end()
    found.append(line[start:].strip())
    return [sentence for sentence in found if sentence]


def _ends(line: str, mark: int, end: int) -> bool:
    if mark == 0 or line[mark - 1].isspace():
        return True
    if line[end:].lstrip()[:1].islower():
        return False
    word = _LAST_WORD.search(line[: mark + 1])
    if word is None or line[mark] != "." or end > mark + 1:
        return True
    letters = word[1].lstrip("\"'‘“([«")
    initial = len(letters) == 1 and letters.isalpha() and letters.isupper()
    return not (_ABBREVIATIONS.fullmatch(letters) or (initial and letters != "I"))
