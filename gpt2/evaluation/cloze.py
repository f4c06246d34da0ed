"""Choosing among candidates by their probability: the Children's Book Test and the Winograd schemas.

Both by the paper's rule: a candidate is put in its place, and the one wins with which the text that follows, and
where it says so the candidate itself, is likeliest (sums of log-probabilities, not divided by anything; of equals the
first). How the words were prepared is written out in each protocol.
"""

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from gpt2.errors import BadData, Unavailable
from gpt2.evaluation.detokenise import detokeniser
from gpt2.evaluation.rows import ACCURACY, Cell, Job, Missing, Row, accuracy, item
from gpt2.evaluation.sets import Found

if TYPE_CHECKING:
    from gpt2.generation.score import Item

T = TypeVar("T")
_BLANK = "XXXXX"


@dataclass(frozen=True, slots=True)
class Question:
    """A text with a blank: what stands before and after it, the candidates, and the right one's number."""

    before: str
    after: str
    candidates: tuple[str, ...]
    answer: int


def likeliest(scores: Sequence[float]) -> int:
    """The number of the highest; of equals the first."""
    return max(range(len(scores)), key=lambda number: (scores[number], -number))


# --- The Children's Book Test ---


def books(found: Found) -> list[tuple[list[str], str, tuple[str, ...], int]]:
    """The questions of a CBT file: twenty sentences, the sentence with the blank, candidates, the answer's number.

    Reads the published file (numbered lines; the last has tabs) and the hub's table. Raises BadData, naming the
    question, for what is neither.
    """
    raw: list[tuple[list[str], str, str, tuple[str, ...]]]
    if found.is_table or found.name.endswith((".jsonl", ".json")):
        raw = _records(
            found, lambda each: (list(each["sentences"]), each["question"], each["answer"], tuple(each["options"]))
        )
    else:
        raw = []
        for block in re.split(r"\n\s*\n", found.text().strip()):
            lines = [line.split(" ", 1)[1] if " " in line else "" for line in block.split("\n")]
            parts = lines[-1].split("\t")
            if len(parts) < 3:
                raise BadData(f"{found.where}, question {len(raw) + 1}: its last line has no answer and candidates.")
            raw.append((lines[:-1], parts[0], parts[1], tuple(parts[-1].split("|"))))
    questions = []
    for number, (sentences, sentence, answer, candidates) in enumerate(raw, 1):
        if answer not in candidates or sentence.count(_BLANK) != 1:
            raise BadData(f"{found.where}, question {number}: no blank {_BLANK}, or the answer is no candidate.")
        questions.append((sentences, sentence, candidates, candidates.index(answer)))
    return questions


def _records(found: Found, read: Callable[[Mapping[str, Any]], T]) -> list[T]:
    """What `read` makes of a table's records. Raises BadData for a table without any, or one of another shape."""
    made: list[T] = []
    for number, record in enumerate(found.records(), 1):
        try:
            made.append(read(record))
        except (KeyError, TypeError, ValueError, AttributeError):
            there = ", ".join(record) or "none"
            raise BadData(f"{found.where}, record {number}: it is no question; its fields are {there}.") from None
    if not made:
        raise BadData(f"{found.where} holds no questions.")
    return made


def _book_question(
    sentences: list[str], sentence: str, candidates: tuple[str, ...], answer: int, detokenised: bool
) -> Question:
    text = "\n".join([*sentences, sentence])
    if detokenised:
        text = detokeniser("cbt").fitted(text).forward(text)
    before, after = text.replace("\n", " ").rsplit(_BLANK, 1)
    return Question(before, after, candidates, answer)


def choice_items(job: Job, question: Question, *, rest: bool) -> tuple[list["Item"], bool]:
    """One item per candidate, all behind the same context, and whether that had to be cut to fit the window.

    rest: whether what follows the candidate counts too.
    """
    # The space before a candidate is part of its first token.
    context, space = (question.before[:-1], " ") if question.before.endswith(" ") else (question.before, "")
    ids = job.encode(context)
    continuations = [job.encode(space + each + (question.after if rest else "")) for each in question.candidates]
    room = min(job.window, job.window + 1 - max(map(len, continuations)))
    return [item(ids[-room:] if room > 0 else [], each, job.window) for each in continuations], room < len(ids)


def _cbt(source: str, column: str) -> Row:
    def cells(job: Job) -> Iterator[Cell | Missing]:
        try:
            raw = books(job.read(source))[: job.limit]
        except (Unavailable, BadData) as error:
            yield Missing(column, str(error))
            return
        for detokenised, rest in ((True, True), (True, False), (False, True), (False, False)):
            what = "choice and rest" if rest else "choice alone"
            reading = f"{what}, {'de-tokenised' if detokenised else 'as it lies'}"
            questions = [_book_question(*each, detokenised) for each in raw]
            prepared = [choice_items(job, question, rest=rest) for question in questions]
            scores = iter(job.score([each for items, _ in prepared for each in items], reading))
            right = [
                likeliest([next(scores).total for _ in question.candidates]) == question.answer
                for question in questions
            ]
            counted = "the candidate and the rest of its sentence" if rest else "the candidate alone"
            text = (
                "de-tokenised by our rules 'cbt' (inverted exactly)" if detokenised else "the tokenised text as it lies"
            )
            protocol = (
                f"{len(questions):,} questions of {len(raw[0][2])} candidates, {text}, sentences joined by spaces; the "
                f"candidate for which log P({counted} | the sentences before it) is highest; "
                f"{sum(cut for _, cut in prepared)} contexts cut at their beginning to fit {job.window} tokens"
            )
            value, spread = accuracy(right)
            yield Cell(ACCURACY, reading, protocol, value, spread, len(right), column)

    return Row(column.lower(), column, cells, (column,))


# --- The Winograd schemas ---

# Pronouns that stand for an owner; "her" is one in all ten schemas that have it.
_OWNERS = frozenset({"his", "her", "their", "its", "my", "our", "your"})
# First words of a candidate that have no capital inside a sentence.
_SMALL = _OWNERS | {"the", "a", "an", "this", "that", "these", "those", "some"}


def schemas(found: Found) -> list[Question]:
    """The Winograd schemas as questions, in the collection's order; the first 273 are WSC273.

    Candidates get a small letter inside a sentence unless they are names, a capital at its beginning, and 's where
    the pronoun stands for an owner. Raises BadData for what is no such collection.
    """
    if found.is_table:
        return _records(found, _hub_schema)
    try:
        root = ElementTree.fromstring(found.data)
    except ElementTree.ParseError as error:
        raise BadData(f"{found.where} is no XML: {error}.") from None
    questions = []
    for number, schema in enumerate(root.iter("schema"), 1):
        texts = [schema.findtext(f"text/{name}") for name in ("txt1", "pron", "txt2")]
        answers = [each.text or "" for each in schema.findall("answers/answer")]
        letter = (schema.findtext("correctAnswer") or "").strip()[:1]
        before, pronoun, after = (text or "" for text in texts)
        if letter not in ("A", "B") or len(answers) != 2 or not pronoun.strip():
            raise BadData(f"{found.where}, schema {number}: it lacks a pronoun, two answers or the right one's letter.")
        questions.append(_schema(before, pronoun, after, answers, "AB".index(letter)))
    if not questions:
        raise BadData(f"{found.where} holds no schemas.")
    return questions


def _hub_schema(record: Mapping[str, Any]) -> Question:
    """A record of the hub's table. Raises KeyError, TypeError or ValueError for what is none."""
    text, pronoun, place = record["text"], record["pronoun"], int(record["pronoun_loc"])
    answers, answer = list(record["options"]), int(record["label"])
    if not text.startswith(pronoun, place) or len(answers) != 2 or answer not in (0, 1):
        raise ValueError
    return _schema(text[:place], pronoun, text[place + len(pronoun) :], answers, answer)


def _schema(before: str, pronoun: str, after: str, answers: Sequence[str], answer: int) -> Question:
    before, pronoun, after = (" ".join(text.split()) for text in (before, pronoun, after))
    inside = bool(before) and before[-1] not in ".!?"
    candidates = tuple(_candidate(" ".join(each.split()), pronoun, inside=inside) for each in answers)
    space = " " if after[:1].isalnum() or after[:1] in ('"', "(") else ""
    return Question(f"{before} " if before else "", f"{space}{after}", candidates, answer)


def _candidate(words: str, pronoun: str, *, inside: bool) -> str:
    first = words.split(" ", 1)[0]
    if not inside:
        words = words[:1].upper() + words[1:]
    elif first.lower() in _SMALL:
        words = words[:1].lower() + words[1:]
    if pronoun.lower() in _OWNERS and not words.endswith(("'s", "'")):
        words += "'" if words.endswith("s") else "'s"
    return words


def _winograd_items(job: Job, question: Question, candidate: str, *, full: bool) -> "Item":
    text = question.before + candidate
    if full:
        end = job.model.tokenizer.end_of_text
        return item([] if end is None else [end], job.encode(text + question.after), job.window)
    return item(job.encode(text), job.encode(question.after), job.window)


def _winograd(job: Job) -> Iterator[Cell | Missing]:
    try:
        questions = schemas(job.read("winograd"))
    except (Unavailable, BadData) as error:
        yield Missing("Winograd", str(error))
        return
    for full in (False, True):
        reading = "full" if full else "partial"
        for name, part in (("WSC273", questions[:273]), ("285 schemas", questions)):
            chosen = part[: job.limit]
            items = [
                _winograd_items(job, question, candidate, full=full)
                for question in chosen
                for candidate in question.candidates
            ]
            scores = iter(job.score(items, f"{reading}, {name}"))
            right = [likeliest([next(scores).total for _ in each.candidates]) == each.answer for each in chosen]
            how = (
                "log P(the whole sentence | end of text) with the candidate for its pronoun"
                if full
                else "log P(what follows the pronoun | what precedes it and the candidate)"
            )
            protocol = f"{len(chosen)} sentences; the candidate for which {how} is higher; denominator: sentences"
            value, spread = accuracy(right)
            is_harness = name == "WSC273" and not full
            yield Cell(
                ACCURACY,
                f"{reading}, {name}",
                protocol,
                value,
                spread,
                len(right),
                "Winograd" if name == "WSC273" else None,
                "wsc273" if is_harness else None,
            )


CBT_ROWS = (_cbt("cbt-cn", "CBT-CN"), _cbt("cbt-ne", "CBT-NE"))
WINOGRAD_ROW = Row("winograd", "Winograd", _winograd, ("Winograd",))
