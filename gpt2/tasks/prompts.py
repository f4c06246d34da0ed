"""How a model is asked: the paper's zero-shot prompts, or the template of a fine-tuned checkpoint, each as a `Way`.

The paper ("Language Models are Unsupervised Multitask Learners", sections 3.5 to 3.8) gives the form of its prompts and
not their every character; what is ours is said beside it. Nothing here runs a model.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from gpt2.errors import BadOption
from gpt2.generation import GenerationOptions, SamplingOptions
from gpt2.tasks.sentences import first_sentences
from gpt2.tasks.template import Task, Template

TASKS = ("summarise", "translate", "answer")
LANGUAGES = ("fr", "en")
# The field of a prompt that holds what it is about, in all that are not a checkpoint's own.
TEXT, QUESTION = "text", "question"

GREEDY = SamplingOptions(temperature=0.0)
SUMMARY_SENTENCES = 3
# The paper: top-k random sampling with k = 2, 100 tokens.
SUMMARY = GenerationOptions(max_tokens=100, overflow="stop", sampling=SamplingOptions(temperature=1.0, top_k=2))
# The lengths are ours: nearly all of WMT14's sentences and all of the data sets' short answers are shorter.
TRANSLATION = GenerationOptions(max_tokens=200, stop="\n", overflow="stop", sampling=GREEDY)
ANSWER = GenerationOptions(max_tokens=32, stop="\n", overflow="stop", sampling=GREEDY)

# The paper seeds the context with example pairs and does not say which, nor how many. These are our own.
PAIRS_NAME = "gpt2-complete pairs 1"
SENTENCE_PAIRS = (
    ("The weather is fine today.", "Il fait beau aujourd'hui."),
    (
        "The minister said on Monday that the new law would come into force next year.",
        "Le ministre a déclaré lundi que la nouvelle loi entrerait en vigueur l'année prochaine.",
    ),
    ("How many people live in this town?", "Combien de personnes vivent dans cette ville ?"),
    (
        "Two men were hurt in the accident, and one of them is still in hospital.",
        "Deux hommes ont été blessés dans l'accident, et l'un d'eux est toujours à l'hôpital.",
    ),
    ("I do not know what he wanted to tell us.", "Je ne sais pas ce qu'il voulait nous dire."),
)
QUESTION_PAIRS = (
    ("who painted the starry night", "Vincent van Gogh"),
    ("when did apollo 11 land on the moon", "July 20, 1969"),
    ("what is the chemical symbol for gold", "Au"),
    ("where is the city of timbuktu located", "Mali"),
    ("how many strings does a violin have", "four"),
)


@dataclass(frozen=True, slots=True)
class Way:
    """How a model is asked for something: the words, how it writes, and what of that is the answer.

    template: the prompt, with fields; its target is not used. options: the task's defaults. extract: from what the
    model wrote to the answer. text: the field that is cut at its end where the window is too small; None where any may
    be. figure: what the paper found, and with how many parameters; empty for a checkpoint's own task. by_line: each
    line of a text is asked about by itself. task: the checkpoint's own, where it is that.
    """

    name: str
    template: Template
    options: GenerationOptions
    extract: Callable[[str], str]
    text: str | None = TEXT
    figure: str = ""
    by_line: bool = False
    task: Task | None = None

    @property
    def own(self) -> bool:
        """Whether this is what a checkpoint was fine-tuned for."""
        return self.task is not None

    @property
    def labels(self) -> Sequence[str]:
        """All that an answer can be; none where it is free."""
        return self.task.labels if self.task is not None else ()

    def window(self, model: int) -> int:
        """Tokens for a prompt and its answer, in a model with a window of `model` tokens."""
        return self.task.window(model) if self.task is not None else model


def literal(text: str) -> str:
    """The text as a template that has no fields."""
    return text.replace("{", "{{").replace("}", "}}")


def first_line(text: str) -> str:
    """What stands before the first line's end, without white space at either side."""
    return text.split("\n", 1)[0].strip()


def first_sentence(text: str) -> str:
    """The first sentence of the first line."""
    return first_sentences(first_line(text), 1)


def summarise() -> Way:
    """Section 3.6: "TL;DR:" after the article (on a line of its own: ours), the first three sentences."""
    return Way(
        "summarise",
        Template("{text}\nTL;DR: {summary}"),
        SUMMARY,
        lambda raw: first_sentences(raw, SUMMARY_SENTENCES).replace("\n", " "),
        figure="ROUGE (mean of 1, 2 and L) of 21.40, where three random sentences of the article have 20.98",
    )


def translate(to: str, pairs: Sequence[tuple[str, str]] = SENTENCE_PAIRS) -> Way:
    """Section 3.7: pairs "english sentence = french sentence" (a line each: ours), then "english sentence =".

    to: "fr" or "en"; pairs: (English, French). Raises BadOption for another language.
    """
    if to not in LANGUAGES:
        raise BadOption(f"to is {to!r}, but the paper's pairs are English and French: it must be 'fr' or 'en'.")
    ordered = pairs if to == "fr" else [(french, english) for english, french in pairs]
    context = "".join(f"{source} = {target}\n" for source, target in ordered)
    bleu, direction = ("5", "English to French") if to == "fr" else ("11.5", "French to English")
    return Way(
        "translate",
        Template(literal(context) + "{text} = {translation}"),
        TRANSLATION,
        first_sentence,
        figure=f"{bleu} BLEU from {direction}",
        by_line=True,
    )


def answer_about() -> Way:
    """Section 3.5: the document, then the question, and a final "A:" (with "Q:", a line each)."""
    return Way(
        "answer",
        Template("{text}\nQ: {question}\nA: {answer}"),
        ANSWER,
        first_line,
        figure="55 F1 about a document, in a conversation about it",
    )


def answer_alone(pairs: Sequence[tuple[str, str]] = QUESTION_PAIRS) -> Way:
    """Section 3.8: example pairs of question and answer, then the question; nothing to look it up in."""
    context = "".join(f"Q: {asked(question)}\nA: {answer}\n" for question, answer in pairs)
    return Way(
        "answer",
        Template(literal(context) + "Q: {question}\nA: {answer}"),
        ANSWER,
        first_line,
        text=None,
        figure="4.1 % of questions answered right, and with its smallest model no more than 1.0 %",
    )


def asked(question: str) -> str:
    """The question with a question mark: Natural Questions has none."""
    question = question.strip()
    return question if question.endswith("?") else f"{question}?"


def own(task: Task) -> Way:
    """What a fine-tuned checkpoint was taught: its template and stops, greedy, its answers' length."""
    fields = [name for name in task.template.prompt_fields if name != QUESTION]
    options = GenerationOptions(max_tokens=task.max_tokens, stop=task.stop, overflow="stop", sampling=GREEDY)
    text = fields[0] if len(fields) == 1 else None
    return Way(task.name, task.template, options, str.strip, text, task=task)
