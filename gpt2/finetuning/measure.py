"""What a fine-tuned model answers, and how good that is: examples to look at, ROUGE, BLEU, accuracy among labels.

Answers are greedy, from the engine that generates everywhere, and one of the labels where a task has some. rouge-score
and sacrebleu score them, by their own protocols. Accuracy is the share of rows whose label is the likeliest of all
labels, each scored whole with its end of text, so that labels of several tokens, or with the same first one, are
compared fairly.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gpt2.errors import ContextOverflow, Unavailable
from gpt2.finetuning.rows import Row
from gpt2.tasks.labels import held_to
from gpt2.tasks.template import DoesNotFit, Task

if TYPE_CHECKING:
    from gpt2.checkpoint import LanguageModel


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model was asked, what it should say, and what it said."""

    prompt: str
    target: str
    text: str


def check_scores(names: Sequence[str]) -> None:
    """Raises Unavailable for a score whose library is not here."""
    from importlib.util import find_spec

    for name in names:
        package, module = {"rouge": ("rouge-score", "rouge_score"), "bleu": ("sacrebleu", "sacrebleu")}[name]
        if find_spec(module) is None:
            raise Unavailable(f"--score {name} needs {package}: install the extra `finetune` (see README).")


def answers(model: "LanguageModel", task: Task, rows: Sequence[Row]) -> list[Answer]:
    """Greedy answers to the rows' prompts, which are cut so that the longest answer has room."""
    from gpt2.generation import GenerationOptions, SamplingOptions, complete

    prompts = [prompt_ids(model, task, row, task.max_tokens) for row in rows]
    options = GenerationOptions(task.max_tokens, task.stop, 1, None, "stop", SamplingOptions(temperature=0.0))
    given = complete(model, prompts, held_to(task.labels, options, model.tokenizer))
    return [
        Answer(model.tokenizer.decode(ids), task.template.target(row).strip(), completion.text.strip())
        for ids, row, completion in zip(prompts, rows, given, strict=True)
    ]


def prompt_ids(model: "LanguageModel", task: Task, row: Mapping[str, str], behind: int) -> list[int]:
    """A row's prompt, cut at the end of its longest field so that as many tokens fit behind it.

    Raises ContextOverflow where the template's own words are too many for that.
    """
    room = task.window(model.config.n_positions) - behind
    try:
        return task.template.prompt_ids(row, model.tokenizer, room)[0]
    except DoesNotFit:
        raise ContextOverflow(
            f"The template's own words and {behind} tokens of an answer do not fit into {room + behind} tokens; "
            "shorten the template, or leave out --examples, --score and --classify."
        ) from None


def rouge(found: Sequence[Answer]) -> dict[str, float]:
    """Mean F1 of ROUGE-1, 2 and L, in percent, by rouge-score with stemming."""
    from rouge_score.rouge_scorer import RougeScorer

    kinds = ("rouge1", "rouge2", "rougeL")
    scorer = RougeScorer(list(kinds), use_stemmer=True)
    scores = [scorer.score(answer.target, answer.text) for answer in found]
    return {kind: 100 * sum(score[kind].fmeasure for score in scores) / max(1, len(scores)) for kind in kinds}


def bleu(found: Sequence[Answer]) -> dict[str, Any]:
    """Corpus BLEU by sacrebleu, with its signature."""
    from sacrebleu.metrics.bleu import BLEU

    metric = BLEU()
    score = metric.corpus_score([answer.text for answer in found], [[answer.target for answer in found]])
    return {"bleu": float(score.score), "bleu_signature": str(metric.get_signature())}


def accuracy(model: "LanguageModel", task: Task, rows: Sequence[Row]) -> float:
    """Share of the rows whose own label is the likeliest of `task.labels`."""
    from gpt2.generation import Item
    from gpt2.generation.score import score

    end = model.tokenizer.end_of_text
    assert end is not None, "checked where data are opened"
    endings = [[*model.tokenizer.encode(label), end] for label in task.labels]
    # The last id of an ending is not read.
    prompts = [prompt_ids(model, task, row, max(map(len, endings)) - 1) for row in rows]
    items = [Item(prompt, ending) for prompt in prompts for ending in endings]
    totals = [each.total for each in score(model, items)]
    right = 0
    for number, row in enumerate(rows):
        mine = totals[number * len(endings) : (number + 1) * len(endings)]
        right += task.labels[mine.index(max(mine))] == task.template.target(row)
    return right / len(rows)


def measured(model: "LanguageModel", task: Task, rows: Sequence[Row], scores: Sequence[str]) -> dict[str, Any]:
    """The scores that are asked for, and accuracy where the task has labels, over these rows."""
    found: dict[str, Any] = {}
    if not rows:
        return found
    if task.labels:
        found["accuracy"] = accuracy(model, task, rows)
        # What is reached by always giving the commonest label of these rows.
        found["commonest_label"] = Counter(map(task.template.target, rows)).most_common(1)[0][1] / len(rows)
    if scores:
        given = answers(model, task, rows)
        found |= rouge(given) if "rouge" in scores else {}
        found |= bleu(given) if "bleu" in scores else {}
    return found and {"rows": len(rows), **found}


def shared_beginnings(labels: Sequence[Sequence[int]]) -> int:
    """How many labels begin with the same token as another."""
    firsts = [label[0] for label in labels if label]
    return sum(firsts.count(first) > 1 for first in firsts)
