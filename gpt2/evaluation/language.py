"""The table's language modelling: WikiText-2 and -103, Penn Treebank, enwik8, text8, One Billion Word.

A text is read behind end of text, in windows as long as the model's, each `stride` tokens further on, and every token
is scored once, with all that is in its window before it. The loss is summed in nats over the text as it was scored
and divided by the number of units of the text as it was *published*: words and line ends, bytes or characters
("losses scaled to the original token count"). Where the paper is silent there are several readings.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING

from gpt2.errors import BadData, Unavailable
from gpt2.evaluation.detokenise import Detokeniser, detokeniser
from gpt2.evaluation.perplexity import windows
from gpt2.evaluation.rows import (
    BITS_PER_BYTE,
    BITS_PER_CHARACTER,
    PERPLEXITY,
    Cell,
    Job,
    Missing,
    Row,
    bits,
    perplexity,
)
from gpt2.evaluation.sets import Found

if TYPE_CHECKING:
    from gpt2.generation.score import Item

# The usual test parts of enwik8 and text8: their last 5 million.
_LAST = 5_000_000
# What the published files have: words and line ends, or bytes.
_PUBLISHED: Mapping[str, int] = MappingProxyType(
    {
        "wikitext-raw": 245_569,
        "wikitext-2": 245_569,
        "wikitext-103": 245_569,
        "ptb": 82_430,
        "enwik8": 100_000_000,
        "text8": 100_000_000,
    }
)


@dataclass(frozen=True, slots=True)
class Passage:
    """A text to score and what its loss is divided by.

    pieces: read one by one, each behind end of text. units: how many units the published text has; 0 for the
    model's own tokens. how: all that in words. overlap: whether windows overlap as the job has it, or not at all.
    end_scored: whether each piece's end is scored, as end of text.
    """

    pieces: Sequence[str]
    units: int
    how: str
    overlap: bool = True
    end_scored: bool = False


def words_and_lines(text: str) -> int:
    """The original token count of a tokenised set: words between white space, and one end for every line."""
    return len(text.split()) + text.count("\n") + (not text.endswith("\n") and bool(text))


def tail(data: bytes, length: int = _LAST) -> bytes:
    """The last `length` bytes of a file, begun at a character: UTF-8's continuation bytes at the start are left out."""
    part = data[-length:]
    return part[next((place for place in range(min(4, len(part))) if part[place] & 0xC0 != 0x80), 0) :]


def table_text(found: Found, field: str) -> str:
    """The text of a tokenised set: the file's, or, of the hub's tables, its rows as lines with their white space."""
    if not found.is_table:
        return found.text()
    lines = found.texts(field)
    return "".join(line if line.endswith("\n") else f" {line.strip()} \n" if line.strip() else " \n" for line in lines)


def de_tokenised(text: str, name: str) -> Passage:
    """The paper's reading: through an invertible de-tokeniser, per word and line end of the tokenised text."""
    tool: Detokeniser = detokeniser(name).fitted(text)
    written = tool.forward(text)
    if tool.inverse(written) != text:
        raise BadData(f"The de-tokeniser {name} does not get this text back; is it that set's tokenised text?")
    count = words_and_lines(text)
    how = (
        f"de-tokenised by our rules '{name}' (inverted exactly, with {len(tool.exceptions)} words listed as whole), "
        f"loss divided by the {count:,} words and line ends of the tokenised text"
    )
    return Passage([written.strip("\n")], count, how)


def as_it_lies(text: str) -> Passage:
    """The text with its spaces and marks as published, per word and line end."""
    count = words_and_lines(text)
    how = f"the tokenised text as it lies, loss divided by its {count:,} words and line ends"
    return Passage([text], count, how)


def per_token(text: str) -> Passage:
    """The text as published, per token of the model: the reading that a model's own vocabulary decides."""
    how = "the tokenised text as it lies, loss divided by the number of the model's own tokens"
    return Passage([text], 0, how)


def line_by_line(passage: Passage) -> Passage:
    """The same text with every line behind an end of text of its own; the loss of line ends is that token's."""
    lines = [line for piece in passage.pieces if piece for line in piece.split("\n")]
    how = f"{passage.how}; every line alone behind end of text, and its end scored as end of text"
    return Passage(lines, passage.units, how, end_scored=True)


def pages(text: str) -> Passage:
    """WikiText as lm-evaluation-harness reads it: an article at a time, no overlap, per word between white space."""
    articles = re.split(r"(?m)^(?= = [^=\n]+ = $)", text)
    tool = detokeniser("wikitext").fitted(text)
    written = [tool.forward(article).strip() for article in articles if article.strip()]
    count = sum(len(re.split(r"\s+", article)) for article in articles if article.strip())
    how = (
        "each article alone, its last window reaching back for all the context that fits, de-tokenised by our rules "
        f"'wikitext' (the harness has rules of its own), loss divided by the {count:,} pieces between white space, "
        "line ends not counted"
    )
    return Passage(written, count, how, overlap=False)


def in_turn(ids: Sequence[int], window: int) -> list["Item"]:
    """Windows one behind the other as lm-evaluation-harness has them: the last reaches back, to be as long as they."""
    items = list(windows(ids, window, window))
    if len(items) > 1:
        last = items[-1].continuation
        items[-1] = replace(items[-1], context=ids[len(ids) - 1 - window : len(ids) - len(last)])
    return items


def measured(
    job: Job, passage: Passage, metric: str, reading: str, paper: str | None = None, harness: str | None = None
) -> Cell:
    """A cell for a passage. The interval is over its windows (or lines), each with its share of the denominator."""
    end = job.model.tokenizer.end_of_text
    start = [] if end is None else [end]
    behind = start if passage.end_scored else []
    stride = (job.stride or max(1, job.window // 2)) if passage.overlap else job.window
    pieces = ([*start, *job.encode(piece), *behind] for piece in passage.pieces)
    items = [
        item
        for ids in pieces
        for item in (windows(ids, job.window, stride) if passage.overlap else in_turn(ids, job.window))
    ]
    tokens = sum(len(each.continuation) for each in items)
    if not tokens:
        raise BadData("The set is empty: its file has no text.")
    units = passage.units or tokens
    chosen = items[: job.limit]
    scores = job.score(chosen, reading)
    parts = [(-s.total, len(each.continuation) * units / tokens) for s, each in zip(scores, chosen, strict=True)]
    value, spread = (perplexity if metric == PERPLEXITY else bits)(parts)
    cut = "" if len(chosen) == len(items) else f"; only the first {len(chosen):,} of {len(items):,} windows"
    first = "end of text first" if start else "no end of text in this vocabulary, so the first token is not scored"
    protocol = (
        f"{passage.how} ({tokens / units:.4f} tokens for each); {first}, windows of {job.window} tokens, "
        f"stride {stride}, every token scored once{cut}"
    )
    return Cell(metric, reading, protocol, value, spread, len(chosen), paper, harness)


def unlike_published(found: Found, name: str) -> str:
    """A clause that tells of a file with another size than the published one's; empty where there is nothing to tell.

    A part of a set, or a page that says that it was not found, has a perplexity too.
    """
    if (wanted := _PUBLISHED.get(name)) is None:
        return ""
    by_bytes = name in ("enwik8", "text8")
    here = len(found.data) if by_bytes else words_and_lines(table_text(found, "sentence" if name == "ptb" else "text"))
    # text8 comes with a line end behind it, too.
    if here == wanted or (name == "text8" and here == wanted + 1):
        return ""
    units = "bytes" if by_bytes else "words and line ends"
    return f"; NOT THE PUBLISHED FILE: {here:,} {units} where that has {wanted:,}"


Reading = tuple[str, str, Callable[[Found], Passage]]


def _row(metric: str, column: str, *readings: Reading) -> Callable[[Job], Iterator[Cell | Missing]]:
    """A row of readings: (name, source, passage of the found file), all held against one column of the paper."""

    def cells(job: Job) -> Iterator[Cell | Missing]:
        for name, source, passage in readings:
            held, harness = (None, "wikitext") if passage is _pages else (column, None)
            try:
                found = job.read(source)
                cell = measured(job, job.sets.made(name, passage, found), metric, name, held, harness)
                unlike = job.sets.made("unlike", partial(unlike_published, name=source), found)
                yield replace(cell, protocol=cell.protocol + unlike)
            except (Unavailable, BadData) as error:
                yield Missing(name, str(error))

    return cells


def _wikitext(column: str, tokens: str) -> Callable[[Job], Iterator[Cell | Missing]]:
    """Both columns have the same test text; which treatment gave which figure, the paper does not say."""
    return _row(
        PERPLEXITY,
        column,
        ("raw, de-tokenised, per word", "wikitext-raw", lambda found: de_tokenised(_text(found), "wikitext")),
        ("raw, as it lies, per word", "wikitext-raw", lambda found: as_it_lies(_text(found))),
        ("raw, as it lies, per token", "wikitext-raw", lambda found: per_token(_text(found))),
        ("<unk>, de-tokenised, per word", tokens, lambda found: de_tokenised(_text(found), "wikitext")),
        ("harness: article by article", "wikitext-raw", _pages),
    )


def _text(found: Found) -> str:
    return table_text(found, "text")


def _pages(found: Found) -> Passage:
    return pages(_text(found))


def _enwik8(found: Found) -> Passage:
    data = tail(found.data)
    how = f"the last {len(data):,} bytes as they lie (markup and all), loss divided by bytes"
    try:
        return Passage([data.decode()], len(data), how)
    except UnicodeDecodeError:
        raise BadData(f"{found.where} is no UTF-8 text, so it is not enwik8.") from None


def _text8(found: Found) -> Passage:
    data = tail(found.data)
    if re.fullmatch(rb"[a-z \n]*", data) is None:
        raise BadData(f"{found.where} holds more than the letters a to z and spaces, so it is not text8.")
    text = data.decode().rstrip("\n")
    how = f"the last {len(text):,} characters as they lie (text8 has no de-tokeniser), loss divided by characters"
    return Passage([text], len(text), how)


ROWS = (
    Row("wikitext2", "WikiText-2", _wikitext("WikiText-2", "wikitext-2"), ("WikiText-2",), "wikitext"),
    Row(
        "ptb",
        "PTB",
        _row(
            PERPLEXITY,
            "PTB",
            ("de-tokenised, per word", "ptb", lambda found: de_tokenised(table_text(found, "sentence"), "ptb")),
            ("as it lies, per word", "ptb", lambda found: as_it_lies(table_text(found, "sentence"))),
        ),
        ("PTB",),
    ),
    Row("enwik8", "enwik8", _row(BITS_PER_BYTE, "enwik8", ("last 5 MB", "enwik8", _enwik8)), ("enwik8",)),
    Row("text8", "text8", _row(BITS_PER_CHARACTER, "text8", ("last 5 M", "text8", _text8)), ("text8",)),
    Row("wikitext103", "WikiText-103", _wikitext("WikiText-103", "wikitext-103"), ("WikiText-103",), "wikitext"),
    Row(
        "1bw",
        "1BW",
        _row(
            PERPLEXITY,
            "1BW",
            ("de-tokenised, one text", "1bw", lambda found: de_tokenised(found.text(), "1bw")),
            ("de-tokenised, line by line", "1bw", lambda found: line_by_line(de_tokenised(found.text(), "1bw"))),
            ("as it lies, one text", "1bw", lambda found: as_it_lies(found.text())),
        ),
        ("1BW",),
    ),
)
"""In the paper's order; LAMBADA and the Children's Book Test stand before them there."""
