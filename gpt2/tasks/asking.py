"""Asking: finds the way that a name means for a model, makes prompts that fit its window, and cuts answers out.

Everything is written by the engine that generates everywhere, all prompts of a call side by side.
"""

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from gpt2.errors import BadOption, BadPrompt, ContextOverflow, Notice
from gpt2.generation import Completion, GenerationOptions, as_completed
from gpt2.tasks import prompts
from gpt2.tasks.labels import held_to
from gpt2.tasks.prompts import QUESTION, TASKS, Way
from gpt2.tasks.sentences import sentences
from gpt2.tasks.template import DoesNotFit, read_task

if TYPE_CHECKING:
    from gpt2.checkpoint import LanguageModel
    from gpt2.generation import Engine
    from gpt2.tokenizer import Tokenizer

# The model of the paper's figures.
_PAPERS = 1_557_611_200
# Below this share of its size a model is told to be small.
_SMALL = 0.25


@dataclass(frozen=True, slots=True)
class Reply:
    """What a model was asked, all that it wrote, and the answer in it.

    cut: tokens of the text that the window had no room for; they were left out at its end. completion: `raw` with its
    ids, its seed and why it ended.
    """

    prompt: str
    raw: str
    text: str
    cut: int
    completion: Completion


def ask(
    model: "LanguageModel",
    task: str,
    text: "str | Mapping[str, str] | Sequence[str | Mapping[str, str]] | None" = None,
    *,
    question: str | None = None,
    to: str | None = None,
    max_tokens: int | None = None,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int | None = None,
) -> Reply | list[Reply]:
    """Asks a model to do something: "summarise", "translate", "answer", or what it was fine-tuned for, by its name.

    text: what it is about, or several of them, which run as a batch. A checkpoint's own task may have several fields;
        then a mapping from their names to texts. None for "answer" from the model's memory alone.
    question: for "answer". to: for "translate", "fr" (from English, the default) or "en" (from French).
    max_tokens, temperature, top_k, top_p: the task's own (the paper's) unless given; top_k 0 is off.

    Returns one Reply, or a list of them for a sequence of texts.

    Raises BadOption for a task that there is not, BadPrompt for an empty text or question, ContextOverflow where the
    prompt's own words leave no room. Warns (Notice) about a text that was cut, once for a model that is far below the
    size of the paper's figures, and of a checkpoint's own task.
    Source: Radford et al. 2019, sections 3.5 to 3.8.
    """
    several = not isinstance(text, str | Mapping) and text is not None
    if several and not isinstance(text, Iterable):
        raise BadPrompt(f"The text for the task {task} is {text!r:.60}; it must be text, or a list of texts.")
    texts: Sequence[str | Mapping[str, str] | None] = text if several else [text]  # type: ignore[assignment, list-item]
    way = find(model, task, to=to, question=question, about=text is not None)
    if several and not texts:
        return []
    rows = [fields(way, each, question) for each in texts]
    sampling = way.options.sampling
    if temperature is not None:
        sampling = replace(sampling, temperature=temperature)
    if top_k is not None:
        sampling = replace(sampling, top_k=top_k)
    if top_p is not None:
        sampling = replace(sampling, top_p=top_p)
    options = replace(way.options, sampling=sampling, seed=seed)
    if max_tokens is not None:
        options = replace(options, max_tokens=max_tokens)
    found = dict(replies(model, way, rows, options, shorten=max_tokens is None))
    return [found[number] for number in range(len(rows))] if several else found[0]


def find(
    model: "LanguageModel", task: str, *, to: str | None = None, question: str | None = None, about: bool = True
) -> Way:
    """The way that a task's name means for this model: its own by that name, or else the paper's.

    about: whether there is a text. Raises BadOption for a name that means nothing, listing those that do, and for
    `question` and `to` where they have no meaning. Warns (Notice), once for a model.
    """
    own = read_task(model.path) if model.path is not None else None
    name = "" if own is None else own.name or "finetuned"
    if own is not None and task == name:
        if to is not None:
            raise BadOption(
                f"to is for the paper's prompts; this checkpoint's own {name} goes one way, so leave it out."
            )
        if question is not None and QUESTION not in own.template.prompt_fields:
            raise BadOption(f"This checkpoint's task {name} has no field {{{QUESTION}}}; leave the question out.")
        _say_once(model, f"own {name}", f"{model.source} was fine-tuned for {name!r}: it is asked by its own template.")
        return prompts.own(own)
    if task not in TASKS:
        more = f", and this checkpoint's own, {name}" if own is not None else ""
        raise BadOption(f"There is no task {task!r}; there are {', '.join(TASKS)}{more}.")
    if to is not None and task != "translate":
        raise BadOption(f"to is for the task translate, not for {task}.")
    if (question is not None) and task != "answer":
        raise BadOption(f"A question is for the task answer, not for {task}.")
    if task == "summarise":
        way = prompts.summarise()
    elif task == "translate":
        way = prompts.translate("fr" if to is None else to)
    else:
        way = prompts.answer_about() if about else prompts.answer_alone()
    parameters = model.config.parameters
    if parameters < _SMALL * _PAPERS:
        _say_once(
            model,
            way.figure,
            f"{model.source} has {parameters / 1e6:,.1f} million parameters. The paper reports, untrained for the task "
            f"and with {_PAPERS / 1e6:,.0f} million, {way.figure}. Expect the form of an answer here, not a right one.",
        )
    return way


def fields(way: Way, text: str | Mapping[str, str] | None, question: str | None = None) -> dict[str, str]:
    """The fields of a prompt, checked. Raises BadPrompt for one that is missing or empty."""
    if isinstance(text, Mapping):
        values = dict(text)
    elif text is None:
        values = {}
    elif way.text is None:
        wanted = way.template.prompt_fields
        named = f"{', '.join(wanted)}; give them by name" if wanted else "none; leave it out"
        raise BadPrompt(f"The task {way.name} does not take one text: its prompt has the fields {named}.")
    else:
        values = {way.text: text}
    if question is not None:
        values[QUESTION] = question
    for name in way.template.prompt_fields:
        value = values.get(name)
        if value is None:
            raise BadPrompt(f"The task {way.name} needs a {name}, and none was given.")
        if not isinstance(value, str):
            raise BadPrompt(f"The {name} for the task {way.name} is {value!r:.60}; it must be text.")
        if not value.strip():
            raise BadPrompt(f"The {name} for the task {way.name} is empty.")
        if not way.own:
            values[name] = " ".join(value.split()) if way.by_line else value.rstrip()
            values[name] = prompts.asked(value) if name == QUESTION else values[name]
    return values


def fitted(way: Way, values: Mapping[str, str], tokenizer: "Tokenizer", room: int) -> tuple[list[int], int]:
    """A prompt's ids, at most `room`, and how many tokens of its text were left out for that, at the text's end.

    Raises ContextOverflow where the prompt's own words do not fit.
    """
    template = way.template
    try:
        ids, cut = template.prompt_ids(values, tokenizer, room)
    except DoesNotFit:
        ids, cut = [], True
    if not ids and cut:
        raise ContextOverflow(
            f"The words of the task {way.name} alone do not fit into the {max(room, 0)} tokens that the window leaves "
            "for a prompt; ask for fewer tokens, or take a model with a longer window."
        )
    if not cut:
        return ids, 0
    longest = max(template.prompt_fields, key=lambda name: len(values[name]))
    if not way.own and longest != way.text:
        raise ContextOverflow(f"The {longest} for the task {way.name} is too long for the model's window; shorten it.")
    return ids, len(tokenizer.encode(template.prompt(values))) - len(ids)


def replies(
    reader: "LanguageModel | Engine",
    way: Way,
    rows: Sequence[Mapping[str, str]],
    options: GenerationOptions,
    n: int = 1,
    *,
    shorten: bool = True,
) -> Iterator[tuple[int, Reply]]:
    """The replies to rows of fields, `n` each and side by side, numbered so, in the order in which they finish.

    shorten: in a window that is small beside the answer's length, that is cut to half of it. Prompts are checked at
    once, and texts cut; what was cut is told (Notice).
    """
    window = way.window(reader.config.n_positions)
    if shorten and options.max_tokens > window // 2:
        options = replace(options, max_tokens=max(1, window // 2))
    options = held_to(way.labels, options, reader.tokenizer)
    if options.max_tokens >= window:
        raise ContextOverflow(
            f"max_tokens is {options.max_tokens:,}, and there are {window:,} tokens for prompt and answer together; "
            "ask for fewer."
        )
    asked = [fitted(way, row, reader.tokenizer, window - options.max_tokens) for row in rows]
    if way.by_line and (long := sum(len(sentences(row[prompts.TEXT])) > 1 for row in rows)):
        warnings.warn(
            f"{long} of {len(rows)} texts have several sentences; one is asked for, so give them a line each.",
            Notice,
            stacklevel=3,
        )
    _say_cut([cut for _, cut in asked], window, options.max_tokens)
    completions = as_completed(reader, [ids for ids, _ in asked], options, n)

    def found() -> Iterator[tuple[int, Reply]]:
        for number, completion in completions:
            ids, cut = asked[number // n]
            prompt = reader.tokenizer.decode(ids)
            yield number, Reply(prompt, completion.text, way.extract(completion.text), cut, completion)

    return found()


def _say_cut(cuts: Sequence[int], window: int, answer: int) -> None:
    many = [cut for cut in cuts if cut]
    if not many:
        return
    what = "The text is" if len(cuts) == 1 else f"{len(many)} of {len(cuts)} texts are"
    warnings.warn(
        f"{what} longer than the {window:,} tokens for prompt and answer allow, with {answer:,} for the answer: "
        f"{sum(many):,} tokens were left out at the end.",
        Notice,
        stacklevel=4,
    )


def _say_once(model: "LanguageModel", key: str, text: str) -> None:
    if key not in model.memo:
        model.memo[key] = True
        warnings.warn(text, Notice, stacklevel=4)
