"""Questions with short answers: Natural Questions from the model's memory, and CoQA's conversations about a text.

Both as the paper says (sections 3.5 and 3.8): greedy, behind a prompt, held against people's answers by exact match or
by shared words. What the paper leaves open is written out in each protocol. The prompts are those of `tasks/`, so that
`gpt2 generate --task answer` asks in the very same words.
"""

import json
import math
import re
import string
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from gpt2.errors import BadData, Unavailable
from gpt2.evaluation.rows import Cell, Job, Missing, Row, Written, accuracy, average, item
from gpt2.evaluation.sets import Found
from gpt2.tasks.prompts import (
    ANSWER,
    PAIRS_NAME,
    QUESTION_PAIRS,
    Way,
    answer_about,
    answer_alone,
    asked,
    first_line,
    literal,
)
from gpt2.tasks.template import Template

EXACT_MATCH, F1 = "exact match %", "F1 %"
CONFIDENT = "exact match %, most confident 1 %"
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")
# lm-evaluation-harness, nq_open 4.0: these go before case and punctuation do; its most tokens where a task says none.
_HARNESS_ARTICLES = re.compile(r"\b(?:The |the |An |A |The |a |an )")
_HARNESS_TOKENS = 256


# --- Comparing answers ---


def normal(text: str) -> str:
    """SQuAD's normalisation, which is CoQA's: small letters, no ASCII punctuation, no articles, single spaces."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact(text: str, wanted: Sequence[str]) -> bool:
    """Whether the answer is one of those wanted, all normalised."""
    return normal(text) in map(normal, wanted)


def f1(text: str, wanted: str) -> float:
    """The harmonic mean of precision and recall of normalised words; two empty answers agree."""
    ours, theirs = normal(text).split(), normal(wanted).split()
    if not ours or not theirs:
        return float(ours == theirs)
    same = (Counter(ours) & Counter(theirs)).total()
    return 2 * same / (len(ours) + len(theirs))


def best_f1(text: str, wanted: Sequence[str]) -> float:
    """F1 with the human answer that is nearest."""
    return max(f1(text, each) for each in wanted)


def left_out_f1(text: str, wanted: Sequence[str]) -> float:
    """CoQA's own: the best F1 with each human answer left out in turn, averaged, so that people can be scored alike."""
    if len(wanted) < 2:
        return best_f1(text, wanted)
    return sum(best_f1(text, [*wanted[:n], *wanted[n + 1 :]]) for n in range(len(wanted))) / len(wanted)


def _harness_exact(text: str, wanted: Sequence[str]) -> bool:
    def same(each: str) -> str:
        return _HARNESS_ARTICLES.sub("", each).lower().translate(_PUNCTUATION)

    return same(text.strip()) in map(same, wanted)


# --- Natural Questions ---


@dataclass(frozen=True, slots=True)
class Asked:
    """A question and all answers that count as right."""

    question: str
    answers: tuple[str, ...]


def questions(found: Found) -> list[Asked]:
    """The questions of an NQ-open file (JSON lines or parquet with `question` and `answer`). Raises BadData."""
    asked = []
    for number, (question, answer) in enumerate(zip(found.texts("question"), found.column("answer"), strict=True), 1):
        answers = (answer,) if isinstance(answer, str) else tuple(answer) if isinstance(answer, list) else ()
        if not question.strip() or not answers or not all(isinstance(each, str) for each in answers):
            raise BadData(f"{found.where}, record {number}: it has no question, or no answer.")
        asked.append(Asked(question, answers))
    if not asked:
        raise BadData(f"{found.where} holds no questions.")
    return asked


def _confidences(job: Job, written: Written, what: str) -> list[list[float]]:
    """For each answer log P of all its tokens up to its line's end, and the mean of it over them."""
    lines = [_first_line_ids(job, ids) for ids in written.ids]
    kept = [number for number, ids in enumerate(lines) if ids]
    items = [item(written.prompts[number], lines[number], job.window) for number in kept]
    totals = dict(zip(kept, (each.total for each in job.score(items, what)), strict=True))
    return [
        [totals[number], totals[number] / len(ids)] if ids else [-math.inf, -math.inf]
        for number, ids in enumerate(lines)
    ]


def _first_line_ids(job: Job, ids: Sequence[int]) -> list[int]:
    tokens = (job.model.tokenizer.token_bytes(id) for id in ids)
    end = next((number + 1 for number, token in enumerate(tokens) if b"\n" in token), len(ids))
    return list(ids[:end])


def _natural_questions(job: Job) -> Iterator[Cell | Missing]:
    try:
        found = questions(job.read("nq-open"))[: job.limit]
    except (Unavailable, BadData) as error:
        yield Missing("Natural Questions", str(error))
        return
    yield from _seeded(job, found, QUESTION_PAIRS, "our pairs", f'our own pairs ("{PAIRS_NAME}")')
    try:
        training = questions(job.read("nq-open-train"))
        pairs = [(each.question, each.answers[0]) for each in training[: len(QUESTION_PAIRS)]]
        yield from _seeded(job, found, pairs, "training's pairs", "the first pairs of NQ-open's training file")
    except (Unavailable, BadData) as error:
        yield Missing("training's pairs", str(error))
    yield _nq_harness(job, found)


def _seeded(
    job: Job, found: Sequence[Asked], pairs: Sequence[tuple[str, str]], reading: str, named: str
) -> Iterator[Cell]:
    way = answer_alone(pairs)
    written = job.ask([(way, {"question": asked(each.question)}) for each in found], reading)
    right = [exact(way.extract(text), each.answers) for text, each in zip(written.texts, found, strict=True)]
    protocol = (
        f"{len(found):,} questions of NQ-open's dev split (the paper's dev set was the older, larger form), behind "
        f'{len(pairs)} lines "Q: ...?", "A: ...": {named}, since the paper does not name its own; greedy, the first '
        f"line of at most {written.most} tokens; right if it is one of the answers, normalised as SQuAD's"
    )
    yield Cell(
        EXACT_MATCH,
        reading,
        f"{protocol}; denominator: all questions",
        *accuracy(right),
        len(right),
        "Natural Questions exact match",
    )
    confidences = _confidences(job, written, f"{reading}, confidence")
    most = max(1, round(len(right) / 100))
    for place, kind in enumerate(("whole answer", "per token")):
        order = sorted(range(len(right)), key=lambda number: -confidences[number][place])[:most]
        by = "log P(answer and its line's end)" + (", divided by its tokens" if place else "")
        yield Cell(
            CONFIDENT,
            f"{reading}, {kind}",
            f"{protocol}; of these only the {most} of the highest {by}; denominator: those",
            *accuracy([right[number] for number in order]),
            most,
            "Natural Questions, most confident 1 %",
        )


def _nq_harness(job: Job, found: Sequence[Asked]) -> Cell:
    prompts = [f"Answer these questions:\n\nQ: {each.question}?\nA:" for each in found]
    options = replace(ANSWER, max_tokens=_HARNESS_TOKENS, stop=("\n", ".", ","))
    written = job.ask_as_harness(prompts, options, "harness")
    texts = [re.split(r"[\n.,]", text, maxsplit=1)[0] for text in written.texts]
    right = [_harness_exact(text, each.answers) for text, each in zip(texts, found, strict=True)]
    protocol = (
        f"{len(found):,} questions as lm-evaluation-harness asks them (nq_open 4.0, no example pairs): greedy, at most "
        f"{written.most} tokens, up to a line's end, full stop or comma; denominator: all questions"
    )
    return Cell(EXACT_MATCH, "harness", protocol, *accuracy(right), len(right), None, "nq_open")


# --- CoQA ---


@dataclass(frozen=True, slots=True)
class Turn:
    """A question in a conversation about a text, what was said before, and people's answers, the first one CoQA's."""

    story: str
    before: tuple[tuple[str, str], ...]
    question: str
    answers: tuple[str, ...]


def turns(found: Found) -> list[Turn]:
    """The turns of a CoQA file: the published JSON, or the hub's tables. Raises BadData, naming the story."""
    return list(_turns(found))


def _turns(found: Found) -> Iterator[Turn]:
    if found.is_table:
        stories: list[dict[str, Any]] = found.records()
    else:
        try:
            stories = json.loads(found.text())["data"]
        except (ValueError, KeyError, TypeError) as error:
            raise BadData(f"{found.where} is no CoQA file: it has no JSON with a list `data` ({error}).") from None
    for number, story in enumerate(stories, 1):
        try:
            asked, answered = _texts(story["questions"]), _texts(story["answers"])
            others = [_texts(each) for each in (story.get("additional_answers") or {}).values() if each]
            lists = [asked, answered, *others]
            if not all(len(each) == len(asked) for each in lists):
                raise ValueError("questions and answers are not as many")
            [text] = _texts([story["story"]])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise BadData(f"{found.where}, story {number}: no text with questions and answers ({error}).") from None
        for place, question in enumerate(asked):
            before = tuple(zip(asked[:place], answered[:place], strict=True))
            yield Turn(text, before, question, (answered[place], *(each[place] for each in others)))


def _texts(values: Any) -> list[str]:
    """Texts that come as they are, as objects with `input_text`, or as an object of lists. Raises TypeError."""
    if isinstance(values, Mapping):
        values = values["input_text"]
    texts = [each["input_text"] if isinstance(each, Mapping) else each for each in values]
    if not all(isinstance(text, str) for text in texts):
        raise TypeError("not all of them are texts")
    return texts


def _coqa(job: Job) -> Iterator[Cell | Missing]:
    try:
        found = list(islice(turns(job.read("coqa")), job.limit))
        if not found:
            raise BadData("The CoQA file holds no questions.")
    except (Unavailable, BadData) as error:
        yield Missing("CoQA", str(error))
        return
    written = job.ask([_asked_in(turn) for turn in found], "answers")
    texts = [first_line(text) for text in written.texts]
    people = max(len(each.answers) for each in found)
    protocol = (
        f'{len(found):,} turns; the text, the conversation so far with people\'s answers ("Q: ...", "A: ...", a line '
        f'each), the question, "A:"; greedy, the first line of at most {written.most} tokens; {written.cut} texts cut '
        f"at their end to fit {job.window} tokens; F1 of words, normalised by CoQA's rules, with up to {people} human "
        "answers"
    )
    for reading, how, measure in (
        ("CoQA's own", "the best of all but one, averaged over which is left out", left_out_f1),
        ("best human answer", "the best of all", best_f1),
    ):
        values = [100 * measure(text, each.answers) for text, each in zip(texts, found, strict=True)]
        text = f"{protocol}: {how}; denominator: turns"
        yield Cell(F1, reading, text, *average(values), len(values), "CoQA F1")
    yield _coqa_harness(job, found)


def _asked_in(turn: Turn) -> tuple[Way, dict[str, str]]:
    """How a turn is asked. The conversation is among the template's own words, so that it is never cut."""
    said = "".join(f"Q: {question}\nA: {answer}\n" for question, answer in turn.before)
    template = Template("{text}\n" + literal(f"{said}Q: {turn.question}\nA:") + "{|} {answer}")
    return replace(answer_about(), template=template), {"text": turn.story}


def _coqa_harness(job: Job, found: Sequence[Turn]) -> Cell:
    prompts = []
    for turn in found:
        said = "".join(f"Q: {question}\n\nA: {answer}\n\n" for question, answer in turn.before)
        prompts.append(f"{turn.story}\n\n{said}Q: {turn.question}\n\nA:")
    options = replace(ANSWER, max_tokens=_HARNESS_TOKENS, stop=("\nQ:",))
    written = job.ask_as_harness(prompts, options, "harness")
    values = []
    for text, turn in zip(written.texts, found, strict=True):
        # Answers that differ in case alone are one.
        different = list({each.lower(): each for each in reversed(turn.answers)}.values())[::-1]
        answer = first_line(text.split("\nQ:", 1)[0].strip())
        values.append(100 * left_out_f1(answer, different))
    protocol = (
        f"{len(found):,} turns as lm-evaluation-harness asks them (coqa 3.0): blank lines between turns, greedy, the "
        f"first line of at most {written.most} tokens; {written.cut} prompts cut at their beginning to fit "
        f"{job.window} tokens; F1 as CoQA's own, over different human answers; denominator: turns"
    )
    return Cell(F1, "harness", protocol, *average(values), len(values), None, "coqa")


ROWS = (
    Row(
        "natural-questions",
        "Natural Questions",
        _natural_questions,
        ("Natural Questions exact match", "Natural Questions, most confident 1 %"),
    ),
    Row("coqa", "CoQA", _coqa, ("CoQA F1",)),
)
