"""`gpt2 generate`: completes a prompt, streaming; or many prompts as a batch; or does a task (see tasks.py)."""

import json
import sys
import warnings
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from enum import StrEnum
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from gpt2.cli import tasks
from gpt2.cli.common import (
    Compile,
    Device,
    DType,
    Json,
    Model,
    Revision,
    Threads,
    Width,
    load_model,
    read_file,
    read_text,
    without_line_end,
)
from gpt2.errors import BadOption, BadPrompt, Error, Notice
from gpt2.generation import DEFAULTS, GenerationOptions, SamplingOptions

if TYPE_CHECKING:
    from gpt2.checkpoint import LanguageModel
    from gpt2.generation import Completion, Engine, Proposer
    from gpt2.tasks import Reply, Way

_SAMPLING = DEFAULTS.sampling
T = TypeVar("T")


class Overflow(StrEnum):
    """What happens past the window."""

    slide = "slide"
    stop = "stop"
    error = "error"


_OVERFLOW = Overflow(DEFAULTS.overflow)


class Language(StrEnum):
    """What a translation is into."""

    fr = "fr"
    en = "en"


def command(
    context: typer.Context,
    prompt: Annotated[
        str, typer.Argument(help="Text to go on from; - reads standard input; empty: from nothing.", show_default=False)
    ] = "",
    prompts: Annotated[
        Path | None,
        typer.Option(
            help="A file of prompts, run as a batch: one a line (a blank one begins from nothing), or a .jsonl file "
            'with a field "prompt".',
            show_default=False,
        ),
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(
            help="Ask by the paper's zero-shot prompt and print the answer alone: summarise, translate, answer; or "
            "what a checkpoint was fine-tuned for, by its name. Sampling and length are the task's unless given.",
            show_default=False,
        ),
    ] = None,
    files: Annotated[
        list[Path] | None,
        typer.Option(
            "--file",
            help="With --task: a file to ask about; may be repeated. A text is asked about whole (translated line by "
            "line), a .jsonl, .csv, .tsv or .parquet file row by row.",
            show_default=False,
        ),
    ] = None,
    field: Annotated[
        str | None, typer.Option(help="With --file: the column of the text.", show_default="the task's field: text")
    ] = None,
    question: Annotated[
        str | None,
        typer.Option(
            help="With --task answer: what is asked about the text; or, without a text, of the model's memory.",
            show_default=False,
        ),
    ] = None,
    to: Annotated[
        Language | None, typer.Option(help="With --task translate: from the other one.", show_default="fr")
    ] = None,
    max_tokens: Annotated[int, typer.Option(help="Most tokens to generate.")] = DEFAULTS.max_tokens,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = _SAMPLING.temperature,
    top_k: Annotated[int, typer.Option(help="Keep the k likeliest tokens; 0: all.")] = _SAMPLING.top_k or 0,
    top_p: Annotated[
        float | None, typer.Option(help="Keep the likeliest tokens up to this probability.", show_default="off")
    ] = _SAMPLING.top_p,
    min_p: Annotated[
        float | None,
        typer.Option(help="Keep tokens at least this share as likely as the likeliest.", show_default="off"),
    ] = _SAMPLING.min_p,
    repetition_penalty: Annotated[
        float, typer.Option(help="Above 1: what stands in the text already is less likely.")
    ] = _SAMPLING.repetition_penalty,
    presence_penalty: Annotated[
        float, typer.Option(help="Taken off the logit of every generated token.")
    ] = _SAMPLING.presence_penalty,
    frequency_penalty: Annotated[
        float, typer.Option(help="Taken off it once per occurrence.")
    ] = _SAMPLING.frequency_penalty,
    logit_bias: Annotated[
        list[str] | None, typer.Option(help="ID=VALUE, added to a token's logit; may be repeated.", show_default=False)
    ] = None,
    stop: Annotated[
        list[str] | None,
        typer.Option(help="A text that ends the output where it begins; may be repeated.", show_default=False),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="The same seed gives the same text.", show_default="random")] = None,
    n: Annotated[int, typer.Option(min=1, help="Completions per prompt; they use seed, seed + 1, ...")] = 1,
    logprobs: Annotated[
        int | None,
        typer.Option(help="With --json: log-probabilities, and this many alternatives a token.", show_default="off"),
    ] = None,
    overflow: Annotated[
        Overflow,
        typer.Option(help="Past the window: slide (read its newest half again), stop, or error."),
    ] = _OVERFLOW,
    echo: Annotated[bool, typer.Option(help="Print the prompt before its completion.")] = True,
    model: Model = None,
    revision: Revision = None,
    device: Device = "cpu",
    dtype: Width = DType.float32,
    threads: Threads = None,
    compile: Compile = None,
    lookup: Annotated[
        bool, typer.Option("--lookup", help="Guess tokens from what followed the same words before; same text, faster.")
    ] = False,
    draft: Annotated[
        str | None,
        typer.Option(help="A small model with the same vocabulary that guesses tokens; same text.", show_default=False),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write to this file instead.", show_default=False)] = None,
    as_json: Json = False,
) -> None:
    """Complete a prompt, streaming; or many prompts as a batch."""
    if prompts is not None and prompt:
        raise BadOption("Give a prompt or --prompts, not both.")
    if logprobs is not None and not as_json:
        raise BadOption("--logprobs is printed with --json only.")
    if lookup and draft is not None:
        raise BadOption("Give --lookup or --draft, not both: a text's tokens are guessed in one way.")
    given = _given(context)
    request = None if task is None else tasks.Request(task, prompt, tuple(files or ()), field, question, to)
    if request is not None:
        request.check(given)
    elif alone := [name for name in ("files", "field", "question", "to") if name in given]:
        raise BadOption(f"--{alone[0].removesuffix('s')} is for --task.")
    # Everything that can be refused is, before a model is loaded or a file is opened.
    options = GenerationOptions(
        max_tokens=max_tokens,
        stop=stop or (),
        seed=seed,
        logprobs=logprobs,
        overflow=overflow.value,
        sampling=SamplingOptions(
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            repetition_penalty=repetition_penalty,
            presence_penalty=presence_penalty,
            frequency_penalty=frequency_penalty,
            logit_bias=_read_biases(logit_bias or []),
        ),
    )
    if request is not None:
        language_model = load_model(model, revision, device, dtype, threads)
        with _notes_last(if_well=True):
            way, rows = request.asked(language_model)
        small = None if draft is None else load_model(draft, None, device, dtype, threads)
        engine = _engine(language_model, len(rows) * n, compile, threads, lookup=lookup, draft=small)
        options = tasks.chosen(way, options, given)
        _ask(engine, way, rows, options, n, shorten="max_tokens" not in given, out=out, as_json=as_json)
        return
    texts = _read_prompts(prompts) if prompts is not None else [read_text(prompt)]
    from gpt2.generation import as_completed, pieces

    language_model = load_model(model, revision, device, dtype, threads)
    small = None if draft is None else load_model(draft, None, device, dtype, threads)
    engine = _engine(language_model, len(texts) * n, compile, threads, lookup=lookup, draft=small)
    several = prompts is not None or n > 1
    # Prompts are checked before a file is opened, and the file is opened before any work is done.
    if not as_json and not several:
        stream = pieces(engine, texts[0], options)
        with _notes_last(), _told_if_partial(out), _target(out) as file:
            try:
                file.write(texts[0] if echo else "")
                file.flush()
                for piece in stream:
                    file.write(piece)
                    file.flush()
            finally:
                file.write("\n")
        _tell_guesses(engine)
        return
    completions = as_completed(engine, texts, options, n)
    sources = [text for text in texts for _ in range(n)]

    def write(file: IO[str], done: "list[tuple[int, Completion]]") -> None:
        if as_json:
            _write_json(file, [_document(sources[row], completion) for row, completion in done], several=several)
            return
        for row, completion in done:
            prompt = sources[row] if echo else ""
            file.write(f"--- {row + 1} (seed {completion.seed})\n{prompt}{completion.text}\n")

    done = _gathered(completions, out, write)
    _tell_guesses(engine)
    _tell_failed(done)


def _ask(
    engine: "Engine",
    way: "Way",
    rows: list[tuple[str, dict[str, str]]],
    options: GenerationOptions,
    n: int,
    *,
    shorten: bool,
    out: Path | None,
    as_json: bool,
) -> None:
    """Asks a task of every row and prints the answers."""
    from gpt2.tasks import replies

    several = len(rows) > 1 or n > 1
    names = [name for name, _ in rows for _ in range(n)]

    def write(file: IO[str], done: "list[tuple[int, Reply]]") -> None:
        if as_json:
            _write_json(file, tasks.documents(way, names, done, _document), several=several)
        else:
            tasks.write(file, names, done)

    done = _gathered(replies(engine, way, [row for _, row in rows], options, n, shorten=shorten), out, write)
    _tell_guesses(engine)
    _tell_failed([(row, reply.completion) for row, reply in done])


def _given(context: typer.Context) -> Collection[str]:
    """Names of the parameters that stand on the command line."""
    sources = ((name, context.get_parameter_source(name)) for name in context.params)
    return {name for name, source in sources if source is not None and source.name == "COMMANDLINE"}


def _gathered(
    results: Iterator[tuple[int, T]], out: Path | None, write: Callable[[IO[str], list[tuple[int, T]]], None]
) -> list[tuple[int, T]]:
    """Writes results in the order of their numbers; after Ctrl-C, those that had finished."""
    answers: dict[int, T] = {}
    with _told_if_partial(out), _target(out) as file:
        try:
            answers.update(results)
        finally:
            done = sorted(answers.items(), key=lambda each: each[0])
            write(file, done)
    return done


def _write_json(file: IO[str], documents: list[dict[str, Any]], *, several: bool) -> None:
    if several or documents:
        file.write(json.dumps(documents if several else documents[0], ensure_ascii=False) + "\n")


def _tell_failed(done: "list[tuple[int, Completion]]") -> None:
    failed = [(row, completion.error) for row, completion in done if completion.error is not None]
    if failed:
        row, error = failed[0]
        raise Error(f"{len(failed)} of {len(done)} texts failed; number {row + 1}: {error}")


def _engine(
    model: "LanguageModel",
    texts: int,
    compile: bool | None,
    threads: int | None,
    *,
    lookup: bool,
    draft: "LanguageModel | None",
) -> "Engine":
    """An engine for so many texts, as the flags have it."""
    from gpt2.generation import DraftModel, Engine, PromptLookup
    from gpt2.runners import choose

    slots = min(texts, choose.fitting_slots(model.config, model.dtype, choose.device_of(model)))
    proposer: Proposer | None = PromptLookup() if lookup else None
    if draft is not None:
        proposer = DraftModel(draft, slots, target=model)
    return Engine(model, runner=choose.runner(model, slots, compile=compile, threads=threads), proposer=proposer)


def _tell_guesses(engine: "Engine") -> None:
    counts = engine.statistics
    if counts.proposed:
        share = counts.accepted / counts.proposed
        print(f"gpt2: note: {counts.accepted} of {counts.proposed} guessed tokens held ({share:.0%})", file=sys.stderr)


@contextmanager
def _notes_last(*, if_well: bool = False) -> Iterator[None]:
    """Notices are told behind what they come from: text that streams is not to be broken in the middle of a line.

    if_well: and only if nothing was wrong, since a mistake is one line.
    """
    caught: list[warnings.WarningMessage] = []
    well = False
    try:
        with warnings.catch_warnings(record=True) as caught:
            yield
        well = True
    finally:
        caught = caught if well or not if_well else []
        for note in caught:
            warnings.warn_explicit(note.message, note.category, note.filename, note.lineno)


@contextmanager
def _told_if_partial(out: Path | None) -> Iterator[None]:
    """After Ctrl-C, says that the file is not whole."""
    try:
        yield
    except KeyboardInterrupt:
        if out is not None:
            warnings.warn(f"{out} is not whole: it ends where Ctrl-C came.", Notice, stacklevel=2)
        raise


def _target(out: Path | None) -> AbstractContextManager[IO[str]]:
    """The file to write, or standard output, which stays open."""
    return nullcontext(sys.stdout) if out is None else out.open("w", encoding="utf-8")


def _read_prompts(path: Path) -> list[str]:
    text = read_file(path)
    if path.suffix != ".jsonl":
        prompts = [line.removesuffix("\r") for line in without_line_end(text).split("\n")] if text else []
    else:
        prompts = []
        for number, line in enumerate(text.split("\n"), 1):
            if not line.strip():
                continue
            try:
                prompts.append(json.loads(line)["prompt"])
            except (ValueError, KeyError, TypeError):
                raise BadPrompt(f'{path}, line {number}: expected a JSON object with a field "prompt".') from None
            if not isinstance(prompts[-1], str):
                raise BadPrompt(f'{path}, line {number}: the field "prompt" is {prompts[-1]!r}, not text.')
    if not prompts:
        raise BadPrompt(f"{path} holds no prompts.")
    return prompts


def _read_biases(items: list[str]) -> dict[int, float]:
    biases = {}
    for item in items:
        id, _, value = item.partition("=")
        try:
            biases[int(id)] = float(value)
        except ValueError:
            raise BadOption(
                f"--logit-bias is {item!r}, but it must be a token id, =, and a number: 50256=-100."
            ) from None
    return biases


def _document(prompt: str, completion: "Completion") -> dict[str, Any]:
    logprobs = completion.logprobs
    return {
        "prompt": prompt,
        "text": completion.text,
        "ids": completion.ids,
        "finish_reason": completion.finish_reason,
        "logprobs": None
        if logprobs is None
        else [
            {
                "token": each.token,
                "id": each.id,
                "logprob": each.logprob,
                "top": [{"token": token, "id": id, "logprob": value} for token, id, value in each.top],
            }
            for each in logprobs
        ],
        "seed": completion.seed,
    }
