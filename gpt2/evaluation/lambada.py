"""LAMBADA in every reading: the last word or its last token, with a stop-word filter or without, on either text.

The task is to predict a passage's last word. The paper scores OpenAI's variant of the text (with its line ends and
case) and takes a list of stop words, never published, out of the predictions. Which unit it predicted is not said; the
figures that others reached with the last *token* are nearest to it. All readings are printed. A context is read as it
lies, with no end of text before it, as lm-evaluation-harness does.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from gpt2.errors import BadData, Unavailable
from gpt2.evaluation.rows import ACCURACY, PERPLEXITY, Cell, Job, Missing, Row, accuracy, item, perplexity
from gpt2.evaluation.sets import Found

if TYPE_CHECKING:
    from gpt2.tokenizer import Tokenizer

# Words that carry grammar and no matter: our own list, since the paper's was not published.
STOP_WORDS_NAME = "gpt2-complete function words 1"
_STOP_WORDS = """
a an the this that these those each every either neither some any no all both half such what which whose whatever
whichever several many much more most few fewer fewest little less least enough other another own same
i me my mine myself we us our ours ourselves you your yours yourself yourselves he him his himself she her hers herself
it its itself they them their theirs themselves one oneself who whom whoever anyone anybody anything someone somebody
something everyone everybody everything nobody nothing none
about above across after against along amid among around as at before behind below beneath beside besides between
beyond but by despite down during except for from in inside into like near of off on onto out outside over past per
since than through throughout till to toward towards under underneath unlike until up upon versus via with within
without
and or nor so yet if because although though unless while whereas whether when whenever where wherever why how however
am is are was were be been being do does did doing done have has had having can could may might must shall should will
would ought
not never just only even also too very quite rather still already almost always ever often once then there here now
again
"""


@cache
def stop_words() -> frozenset[str]:
    """The list, in lower case."""
    return frozenset(_STOP_WORDS.split())


def banned_ids(tokenizer: "Tokenizer") -> frozenset[int]:
    """The tokens that spell a stop word whole: behind a space, in lower case or with a capital."""
    spelt = (f" {form}" for word in stop_words() for form in (word, word.capitalize()))
    return frozenset(ids[0] for text in spelt if len(ids := tokenizer.encode(text)) == 1)


@dataclass(frozen=True, slots=True)
class Passage:
    """A passage as ids: what is read, and the last word with the space before it."""

    context: list[int]
    target: list[int]


def split(text: str) -> tuple[str, str]:
    """What comes before the last word, and the last word with its space. Raises BadData where there is no such word."""
    before, space, word = text.rstrip().rpartition(" ")
    if not space or not before.strip() or not word:
        raise BadData(f"The passage {text[:60]!r} has no last word behind others.")
    return before, f" {word}"


def _texts(found: Found) -> list[str]:
    if found.is_table:
        return found.texts("text")
    return [line for line in found.text().split("\n") if line.strip()]


def _passages(job: Job, found: Found) -> list[Passage]:
    window = job.window
    passages: list[Passage] = []
    for text in _texts(found)[: job.limit]:
        before, word = split(text)
        target = job.encode(word)
        passages.append(Passage(list(item(job.encode(before), target, window).context), target))
    if not passages:
        raise BadData(f"{found.where} holds no passages.")
    return passages


def _cells(job: Job, found: Found, text: str, harness: bool) -> Iterator[Cell]:
    """All readings of one text."""
    passages = _passages(job, found)
    window, count = job.window, len(passages)
    base = f"{text}, {count:,} passages, context as it lies with no end of text before it"
    task = "lambada_openai" if harness else None
    suffix = "" if harness else ", original text"
    words = job.score([item(each.context, each.target, window) for each in passages], f"last word{suffix}")
    tokens = job.score(
        [item(each.context + each.target[:-1], each.target[-1:], window) for each in passages], f"last token{suffix}"
    )

    def cell(metric: str, reading: str, how: str, outcome: tuple[float, tuple[float, float] | None]) -> Cell:
        column = "LAMBADA perplexity" if metric == PERPLEXITY else "LAMBADA accuracy"
        # Of OpenAI's text, and unfiltered by words, this is what the harness computes.
        same = task if reading in ("last word", "last word, greedy") else None
        return Cell(metric, f"{reading}{suffix}", f"{base}; {how}", *outcome, count, column, same)

    yield cell(
        PERPLEXITY,
        "last word",
        "exp of the mean over passages of -log P(all tokens of the last word); denominator: words",
        perplexity([(-score.total, 1.0) for score in words]),
    )
    yield cell(
        PERPLEXITY,
        "last token",
        "exp of the mean over passages of -log P(last token of the last word); denominator: passages",
        perplexity([(-score.total, 1.0) for score in tokens]),
    )
    yield cell(
        PERPLEXITY,
        "last word, per token",
        "exp of the sum of -log P(last word) over the number of the last words' tokens",
        perplexity([(-score.total, len(each.target)) for score, each in zip(words, passages, strict=True)]),
    )
    yield cell(
        ACCURACY,
        "last word, greedy",
        "right if every token of the last word is the likeliest at its place",
        accuracy([score.greedy for score in words]),
    )
    yield cell(
        ACCURACY,
        "last token, greedy",
        "right if the last token of the last word is the likeliest, the word's others being given",
        accuracy([score.greedy for score in tokens]),
    )
    banned = banned_ids(job.model.tokenizer)
    listed = [job.model.tokenizer.decode(each.target).strip().lower() in stop_words() for each in passages]
    filtered = (
        f"tokens that spell one of the {len(stop_words())} words of our list '{STOP_WORDS_NAME}' whole "
        f"({len(banned)} tokens) may not be predicted ({sum(listed)} last words are on the list, and always wrong)"
    )
    longer = [number for number, each in enumerate(passages) if len(each.target) > 1]
    rest = job.score(
        [item(each.context + each.target[:1], each.target[1:], window) for each in map(passages.__getitem__, longer)],
        f"rest of the word{suffix}",
    )
    follows = dict(zip(longer, (score.greedy for score in rest), strict=True))
    first = job.first_choices([each.context for each in passages], banned, f"first token, filtered{suffix}")
    yield cell(
        ACCURACY,
        "last word, stop-word filter",
        f"right if every token of the last word is the likeliest at its place; as its first token, {filtered}; a word "
        "that only begins with such a token counts if it is predicted without the filter",
        accuracy(
            [
                # What is predicted unfiltered, and not on the list, stays predicted.
                (score.greedy and not on_list) or (choice == each.target[0] and follows.get(number, True))
                for number, (choice, each, score, on_list) in enumerate(
                    zip(first, passages, words, listed, strict=True)
                )
            ]
        ),
    )
    before = [(each.context + each.target[:-1])[-window:] for each in passages]
    last = job.first_choices(before, banned, f"last token, filtered{suffix}")
    yield cell(
        ACCURACY,
        "last token, stop-word filter",
        f"right if the last token of the last word is the likeliest, the word's others being given; {filtered}",
        accuracy([choice == each.target[-1] for choice, each in zip(last, passages, strict=True)]),
    )


def cells(job: Job) -> Iterator[Cell | Missing]:
    """LAMBADA's cells: OpenAI's text first, then the original."""
    texts = (("lambada-openai", "OpenAI's variant of the text", True), ("lambada-original", "the original text", False))
    for source, text, harness in texts:
        try:
            yield from _cells(job, job.read(source), text, harness)
        except (Unavailable, BadData) as error:
            yield Missing(text, str(error))


ROW = Row("lambada", "LAMBADA", cells, ("LAMBADA perplexity", "LAMBADA accuracy"))
