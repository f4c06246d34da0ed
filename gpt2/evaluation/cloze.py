"""Choosing among candidates by their probability: the Children's Book Test and the Winograd schemas.

Both by the paper's rule: a candidate is put in its place, and the one wins with which the text that follows, and
where it says so the candidate itself, is likeliest (sums of log-probabilities, not divided by anything; of equals the
first). How the words were prepared is written out in each protocol.
"""

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
# Sentences, the last one, the answer, the candidates.
_Raw = tuple[list[str], str, str, tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class Question:
    """A text with a blank: what stands before and after it, the candidates, and the right one's number.

    A word that is left out twice has another blank in `after`, to be filled with the same.
    """

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
    raw = _records(found, _of_record) if found.is_table else list(_published(found))
    questions = []
    for place, (sentences, sentence, answer, options) in enumerate(raw, 1):
        candidates = tuple(filter(None, options))
        if _BLANK not in sentence:
            raise BadData(f"{found.where}, question {place}: no blank {_BLANK} in its last sentence.")
        if answer not in candidates:
            raise BadData(f"{found.where}, question {place}: the answer {answer!r} is no candidate.")
        questions.append((sentences, sentence, candidates, candidates.index(answer)))
    return questions


def _of_record(record: Mapping[str, Any]) -> _Raw:
    return list(record["sentences"]), record["question"], record["answer"], tuple(record["options"])


def _published(found: Found) -> Iterator[_Raw]:
    """The questions of the published file, whose last line, with the answer and the candidates, ends each."""
    lines: list[str] = []
    count = 0
    for line in found.text().split("\n"):
        number, _, text = line.partition(" ")
        if lines and (number == "1" or not line.strip()):
            break
        if not line.strip():
            continue
        parts = text.split("\t")
        if len(parts) < 3:
            lines.append(text)
            continue
        yield lines, parts[0], parts[1], tuple(parts[-1].split("|"))
        lines, count = [], count + 1
    if lines or not count:
        raise BadData(f"{found.where}, question {count + 1}: its last line has no answer and candidates.")


def _records(found: Found, read: Callable[[Mapping[str, Any]], T]) -> list[T]:
    """What `read` makes of a table's records. Raises BadData for a table without any, or one of another shape."""
    made: list[T] = []
    for number, record in enumerate(found.records(), 1):
        try:
            made.append(read(record))
        except (KeyError, TypeError, ValueError, AttributeError, IndexError):
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
    before, *after = text.replace("\n", " ").rsplit(_BLANK, sentence.count(_BLANK))
    return Question(before, _BLANK.join(after), candidates, answer)


def choice_items(job: Job, question: Question, *, rest: bool) -> tuple[list["Item"], bool]:
    """One item per candidate, all behind the same context, and whether that had to be cut to fit the window.

    rest: whether what follows the candidate counts too.
    """
    # The space before a candidate is part of its first token.
    context, space = (question.before[:-1], " ") if question.before.endswith(" ") else (question.before, "")
    ids = job.encode(context)
    continuations = [
        job.encode(space + each + (question.after.replace(_BLANK, each) if rest else ""))
        for each in question.candidates
    ]
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
    return [_schema(before, pronoun, after, answers, answer) for before, pronoun, after, answers, answer in _xml(found)]


def _xml(found: Found) -> Iterator[tuple[str, str, str, list[str], int]]:
    """Of each schema what stands before the pronoun, the pronoun, what follows it, the answers and the right one."""
    try:
        root = ElementTree.fromstring(found.data)
    except ElementTree.ParseError as error:
        raise BadData(f"{found.where} is no XML: {error}.") from None
    number = 0
    for number, schema in enumerate(root.iter("schema"), 1):
        texts = [schema.findtext(f"text/{name}") for name in ("txt1", "pron", "txt2")]
        answers = [each.text or "" for each in schema.findall("answers/answer")]
        letter = (schema.findtext("correctAnswer") or "").strip()[:1]
        before, pronoun, after = (text or "" for text in texts)
        if letter not in ("A", "B") or len(answers) != 2 or not all(map(str.strip, [pronoun, *answers])):
            raise BadData(f"{found.where}, schema {number}: it lacks a pronoun, two answers or the right one's letter.")
        yield before, pronoun, after, answers, "AB".index(letter)
    if not number:
        raise BadData(f"{found.where} holds no schemas.")


def _hub_schema(record: Mapping[str, Any]) -> Question:
    """A record of the hub's table. Raises KeyError, TypeError or ValueError for what is none."""
    text, pronoun, place, answers, answer = _fields(record)
    return _schema(text[:place], pronoun, text[place + len(pronoun) :], answers, answer)


def _fields(record: Mapping[str, Any]) -> tuple[str, str, int, list[str], int]:
    text, pronoun, place = record["text"], record["pronoun"], int(record["pronoun_loc"])
    answers, answer = list(record["options"]), int(record["label"])
    is_placed = place >= 0 and bool(pronoun) and text.startswith(pronoun, place)
    if not is_placed or len(answers) != 2 or not all(map(str.strip, answers)) or answer not in (0, 1):
        raise ValueError
    return text, pronoun, place, answers, answer


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


# What the task wsc273 of lm-evaluation-harness 0.4.13 gives 's, and what it writes small.
_HARNESS_OWNERS = ("my", "his", "her", "our", "their")
_HARNESS_SMALL = ("A", "An", "The", "She", "He", "It", "They", "My", "His", "Her", "Their")


@dataclass(frozen=True, slots=True)
class HarnessQuestion:
    """A schema as that task asks it: two contexts, what follows either, and the right one's number."""

    contexts: tuple[str, str]
    after: str
    answer: int


def harness_schemas(found: Found) -> list[HarnessQuestion]:
    """WSC273 to the letter of the task wsc273: the first 273 schemas. Raises BadData for what is no such collection.

    Its two spaces before what follows, its capitals and its owners are kept as they are, whatever one thinks of them.
    """
    if found.is_table:
        return _records(found, lambda record: _harness_schema(*_fields(record)))[:273]
    questions = []
    for *parts, answers, answer in _xml(found):
        # As the hub's script makes a record of a schema.
        before, pronoun, after = (" ".join(part.split()) for part in parts)
        text = " ".join([before, pronoun, after]).strip()
        place = len(before) + 1 if before else 0
        questions.append(_harness_schema(text, pronoun, place, [" ".join(each.split()) for each in answers], answer))
    return questions[:273]


def _harness_schema(text: str, pronoun: str, place: int, answers: Sequence[str], answer: int) -> HarnessQuestion:
    # Places were counted in the text before this.
    text = text.replace("  ", " ")
    begins = text[place - 2] == "."

    def spelt(words: str) -> str:
        words += "'s" * (pronoun.lower() in _HARNESS_OWNERS)
        first = words.split()[0]
        return words.replace(first, first.lower()) if first in _HARNESS_SMALL and not begins else words

    first, second = (text[:place] + spelt(each) for each in answers)
    return HarnessQuestion((first, second), f" {text[place + len(pronoun) :]}", answer)


def _harness_items(job: Job, question: HarnessQuestion) -> Iterator["Item"]:
    for context in question.contexts:
        # Both are encoded as one text, and spaces at the context's end are the continuation's.
        ids = job.encode(context.rstrip())
        yield item(ids, job.encode(context + question.after)[len(ids) :], job.window)


def _winograd(job: Job) -> Iterator[Cell | Missing]:
    try:
        found = job.read("winograd")
        questions, asked = schemas(found), harness_schemas(found)[: job.limit]
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
            how = (
                "log P(the whole sentence | end of text) with the candidate for its pronoun"
                if full
                else "log P(what follows the pronoun | what precedes it and the candidate)"
            )
            protocol = f"{len(chosen)} sentences; the candidate for which {how} is higher; denominator: sentences"
            right = _right(job, items, [each.answer for each in chosen], f"{reading}, {name}")
            value, spread = accuracy(right)
            column = "Winograd" if name == "WSC273" else None
            yield Cell(ACCURACY, f"{reading}, {name}", protocol, value, spread, len(right), column)
    reading = "harness: partial, WSC273"
    items = [each for question in asked for each in _harness_items(job, question)]
    right = _right(job, items, [each.answer for each in asked], reading)
    protocol = (
        f"{len(asked)} sentences; partial scoring to the letter of lm-evaluation-harness' task wsc273: its own rules "
        "for capitals and 's, and two spaces before what follows; denominator: sentences"
    )
    value, spread = accuracy(right)
    yield Cell(ACCURACY, reading, protocol, value, spread, len(right), None, "wsc273")


def _right(job: Job, items: "list[Item]", answers: Sequence[int], reading: str) -> list[bool]:
    """Whether of each two items in turn the likelier is the right one."""
    totals = [score.total for score in job.score(items, reading)]
    return [likeliest(totals[2 * number : 2 * number + 2]) == answer for number, answer in enumerate(answers)]


CBT_ROWS = (_cbt("cbt-cn", "CBT-CN"), _cbt("cbt-ne", "CBT-NE"))
WINOGRAD_ROW = Row("winograd", "Winograd", _winograd, ("Winograd",))
