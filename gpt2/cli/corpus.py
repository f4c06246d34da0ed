"""`gpt2 corpus`: `build` makes a folder of token shards from documents, `check` reads one through."""

import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from gpt2.cli.common import Json, console, print_json
from gpt2.cli.progress import duration
from gpt2.training.words import counted

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import TaskID

# Without a terminal a build says how far it is: seconds between its lines.
_SILENCE = 30.0

app = typer.Typer(
    help="Build a corpus: documents, clean and without duplicates, as token shards.", no_args_is_help=True
)


@app.callback()
def _group() -> None:
    pass


@app.command("build")
def build(
    sources: Annotated[
        list[str],
        typer.Argument(
            help="Folders, files or globs of .txt, .md, .jsonl, .parquet, .html, .warc (also .gz, .zst), or owner/name "
            "of a data set on the hub, which is streamed.",
            show_default=False,
        ),
    ],
    out: Annotated[Path, typer.Option(help="Corpus folder to make, or to go on with.", show_default=False)],
    text_field: Annotated[str, typer.Option(help="Field of the text in .jsonl, .parquet and data sets.")] = "text",
    url_field: Annotated[str, typer.Option(help="Field of the address in them.")] = "url",
    separator: Annotated[
        str | None, typer.Option(help="Text at which text files are cut into documents.", show_default=False)
    ] = None,
    invalid: Annotated[
        Literal["replace", "refuse"],
        typer.Option(help="Bytes that are no UTF-8: replaced by U+FFFD and counted, or an error."),
    ] = "replace",
    broken: Annotated[
        Literal["skip", "refuse"],
        typer.Option(help="Lines and files that cannot be read: left out and counted, or an error."),
    ] = "skip",
    extractor: Annotated[
        Literal["cascade", "resiliparse", "trafilatura"], typer.Option(help="What takes the text out of pages.")
    ] = "cascade",
    links: Annotated[
        Path | None,
        typer.Option(
            help="Keep only pages that this list (.jsonl) links to. A page in a file of its own has the address that "
            "its head says is its own (canonical, og:url).",
            show_default=False,
        ),
    ] = None,
    min_score: Annotated[float, typer.Option(help="Least score of a link that counts.")] = 3,
    wikipedia: Annotated[
        bool, typer.Option(help="Keep pages of Wikipedia, known by their addresses; the paper removed them.")
    ] = True,
    min_characters: Annotated[int, typer.Option(min=0, help="Least characters of a document.")] = 1,
    max_characters: Annotated[
        int | None, typer.Option(min=1, help="Most characters of a document.", show_default=False)
    ] = None,
    language: Annotated[
        str | None, typer.Option(help="Keep documents in this language alone, such as en.", show_default=False)
    ] = None,
    quality: Annotated[
        Literal["none", "gopher", "fineweb"], typer.Option(help="Rules of quality that a document must keep.")
    ] = "none",
    exact: Annotated[bool, typer.Option(help="Drop documents whose text was met before.")] = True,
    near: Annotated[bool, typer.Option(help="Drop documents that are nearly one met before (MinHash).")] = True,
    threshold: Annotated[
        float, typer.Option(help="Share of runs of three words in common from which on two are nearly the same.")
    ] = 0.5,
    validation: Annotated[float, typer.Option(help="Share of documents held out, by the hash of their text.")] = 0.005,
    tokenizer: Annotated[str, typer.Option(help="gpt2, or a folder with a vocabulary.")] = "gpt2",
    vocab_size: Annotated[
        int | None,
        typer.Option(help="Learn a vocabulary of this size from the training documents.", show_default=False),
    ] = None,
    fast: Annotated[
        bool, typer.Option("--fast", help="Tokenise by the faster exact library of the extra fast.")
    ] = False,
    engine: Annotated[
        Literal["local", "ray"],
        typer.Option(help="Processes of this machine, or Ray: here, or on the cluster of RAY_ADDRESS."),
    ] = "local",
    workers: Annotated[int | None, typer.Option(min=1, help="Processes.", show_default="one for each core")] = None,
    as_json: Json = False,
) -> None:
    """Build a corpus: documents in, token shards out, which `gpt2 train` reads.

    Text is taken out of pages, filters and duplicates are counted and dropped, some documents are held out by hash, the
    rest becomes tokens. A build that was stopped goes on where it was when the same command is given again. The number
    of workers and the engine change nothing in the files. What came in, was dropped and went out is in corpus.md.
    """
    from gpt2 import corpus
    from gpt2.corpus.filters import FilterOptions

    options = corpus.CorpusOptions(
        read=corpus.ReadOptions(text_field, url_field, separator, invalid, broken),
        extractor=extractor,
        filters=FilterOptions(
            links=links,
            min_score=min_score,
            wikipedia=wikipedia,
            min_characters=min_characters,
            max_characters=max_characters,
            language=language,
            quality=quality,
        ),
        exact=exact,
        near=near,
        threshold=threshold,
        validation=validation,
        tokenizer=tokenizer,
        vocab_size=vocab_size,
    )
    with _stoppable(), _Watcher() as watcher:
        report = corpus.build(sources, out, options, engine=engine, workers=workers, fast=fast, watcher=watcher)
    if as_json:
        print_json({"corpus": str(out), **report})
    else:
        _show(report)
        print(f"Train on it: gpt2 train {out}")


def _show(report: Mapping[str, Any]) -> None:
    """The report: tables of a terminal's width there, and elsewhere what corpus.md has."""
    from gpt2.corpus.report import as_text, tables

    out = console()
    if not out.is_terminal:
        print(as_text(report))
        return
    from rich.table import Table
    from rich.text import Text

    for table in tables(report):
        drawn = Table(title=table.title or None, title_justify="left", title_style="bold", box=None, header_style="dim")
        for place, name in enumerate(table.head):
            numbers = [row[place] for row in table.body]
            right = all(number.strip("~")[:1].isdigit() for number in numbers if number)
            drawn.add_column(name, justify="right" if right else "left", overflow="fold")
        for row in table.body:
            drawn.add_row(*map(Text, row))
        out.print(drawn)
        for note in table.notes:
            out.print(Text(note.replace("`", ""), style="dim"))
        out.print()


@app.command("check")
def check(
    folder: Annotated[Path, typer.Argument(help="Corpus folder.", show_default=False)],
    as_json: Json = False,
) -> None:
    """Read every block of a corpus and compare it with its checksum; say what is in it. Exit code 1: damaged."""
    from gpt2 import corpus

    found = corpus.check(folder)
    if as_json:
        print_json({name: value for name, value in found.items() if name != "report"})
    else:
        tokenizer = found["tokenizer"]
        print(f"{folder}: vocabulary of {tokenizer['vocab_size']:,} tokens, {tokenizer['fingerprint'][:12]}")
        for name, split in found["splits"].items():
            print(
                f"{name}: {counted(split['documents'], 'document')}, {counted(split['tokens'], 'token')}, "
                f"{_size(split['text_bytes'])} of text, {counted(split['shards'], 'shard')}"
            )
        for sentence in found["damage"]:
            print(f"damaged: {sentence}")
        print("damaged" if found["damage"] else "whole")
    if found["damage"]:
        raise typer.Exit(1)


@contextmanager
def _stoppable() -> Iterator[None]:
    """SIGTERM, which schedulers send, ends a build as Ctrl-C does: its workers and its lock go with it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _size(count: int) -> str:
    from gpt2.corpus.report import size

    return size(count)


class _Watcher:
    """Progress on stderr: bars on a terminal, else a line for each stage and one now and then; notes always.

    A stage without bytes to do (total 0) has none of their units.
    """

    def __init__(self, console: "Console | None" = None) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        self._console = console or Console(file=sys.stderr, highlight=False)
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=12),
            TextColumn("{task.fields[said]}"),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task: TaskID | None = None
        self._name, self._total, self._first = "", 0, -1
        self._begun = self._said_at = time.monotonic()

    def __enter__(self) -> "_Watcher":
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._finish()
        self._bar.stop()

    def stage(self, name: str, total: int) -> None:
        self._finish()
        self._name, self._total, self._first, self._begun = name, total, -1, time.monotonic()
        self._task = self._bar.add_task(name, total=total or None, said="")
        self._line(f"{name}: {_size(total)}" if total else name)

    def progress(self, done: int) -> None:
        if self._task is None or not self._total:
            return
        if self._first < 0:
            self._first = done  # of an earlier run
        said = f"{_size(done)} of {_size(self._total)}"
        if new := done - self._first:
            left = (time.monotonic() - self._begun) / new * (self._total - done)
            said += f", {duration(left)} left"
        self._bar.update(self._task, completed=done, said=said)
        if time.monotonic() - self._said_at >= _SILENCE:
            self._line(f"{self._name}: {said}")

    def note(self, text: str) -> None:
        self._console.print(text, markup=False, soft_wrap=not self._console.is_terminal)

    def _finish(self) -> None:
        """The stage before is at its end, and its bar stands still."""
        if self._task is not None:
            took = f"in {duration(time.monotonic() - self._begun)}"
            said = f"{_size(self._total)} {took}" if self._total else took
            self._bar.update(self._task, total=self._total or 1, completed=self._total or 1, said=said)
            self._task = None

    def _line(self, text: str) -> None:
        if not self._console.is_terminal:
            self.note(text)
            self._said_at = time.monotonic()
