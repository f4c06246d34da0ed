"""`gpt2 generate --task`: which texts a task is asked about, how, and what is printed. Not a command of its own."""

import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from gpt2.cli.common import read_file, read_text, without_line_end
from gpt2.errors import BadData, BadOption, BadPrompt, Notice
from gpt2.generation.options import GenerationOptions, SamplingOptions

if TYPE_CHECKING:
    from gpt2.checkpoint import LanguageModel
    from gpt2.generation import Completion
    from gpt2.tasks import Reply, Way


# Columns of a table that has no texts to ask about: Natural Questions, say.
_OF_QUESTIONS = {"question", "answer", "answers", "id"}


@dataclass(frozen=True, slots=True)
class Request:
    """What the flags say: a task, and the texts it is asked about (on the command line or in files)."""

    task: str
    text: str
    files: tuple[Path, ...]
    field: str | None
    question: str | None
    to: str | None

    def check(self, given: Collection[str]) -> None:
        """Raises BadOption for flags that exclude each other, OSError for a file that is not there.

        given: the flags on the command line.
        """
        if self.text and self.files:
            raise BadOption("Give a text or --file, not both.")
        for file in self.files:
            file.stat()  # one that is missing is told before a model is loaded, and before anything is said of that
            if file.is_dir():
                raise BadOption(f"{file} is a folder; give its files, each with a --file of its own.")
        if "prompts" in given:
            raise BadOption("--prompts holds prompts that are gone on from; with --task give texts with --file.")
        if "echo" in given:
            raise BadOption("--task prints the answer alone; --json has the prompt too.")
        if self.field is not None and not any(_is_table(file) for file in self.files):
            raise BadOption("--field names a column of a --file with columns (.jsonl, .csv, .tsv, .parquet).")

    def asked(self, model: "LanguageModel") -> "tuple[Way, list[tuple[str, dict[str, str]]]]":
        """How the model is asked, and the fields of each prompt with the name of where they come from.

        Raises BadOption, BadPrompt or BadData for what cannot be asked. Warns (Notice) as `tasks.find` does.
        """
        from gpt2.tasks import find
        from gpt2.tasks.asking import fields as filled

        has_text = bool(self.text or self.files)
        about = has_text and not self._is_of_questions()
        way = find(model, self.task, to=self.to, question=self.question, about=about)
        if not has_text and way.text is not None:
            raise BadPrompt(f"--task {self.task} needs a text: give one, - for standard input, or --file.")
        rows: list[tuple[str, dict[str, str]]] = []
        for name, text in self._texts(way):
            try:
                rows.append((name, filled(way, text, self.question)))
            except BadPrompt as error:
                raise BadPrompt(f"{name}: {error}" if name else str(error)) from None
        return way, rows

    def _is_of_questions(self) -> bool:
        """Whether the files have questions and nothing that they are about, so that they are the memory's to answer."""
        from gpt2.finetuning.rows import columns_of

        given = self.question is not None or self.field is not None
        if self.task != "answer" or given or not all(_is_table(file) for file in self.files):
            return False
        columns = [set(columns_of(file)) for file in self.files]
        return bool(columns) and all("question" in each and each <= _OF_QUESTIONS for each in columns)

    def _texts(self, way: "Way") -> Iterator[tuple[str, str | Mapping[str, str] | None]]:
        if not self.text and not self.files:
            yield "", None
            return
        if not self.files:
            name = "standard input" if self.text == "-" else ""
            yield from _lines(way, name, read_text(self.text))
        for file in self.files:
            if _is_table(file):
                yield from self._rows(way, file)
            else:
                yield from _lines(way, str(file), without_line_end(read_file(file)))

    def _rows(self, way: "Way", file: Path) -> Iterator[tuple[str, Mapping[str, str]]]:
        from gpt2.finetuning.rows import Problems, read_rows, unit_of

        unit = unit_of(file)
        wanted = [name for name in way.template.prompt_fields if name != "question" or self.question is None]
        columns = {name: self.field if self.field is not None and name == way.text else name for name in wanted}
        if self.field is not None and way.text not in wanted:
            raise BadOption(f"--field: the task {way.name} has the columns {', '.join(wanted)}, and no single text.")
        problems = Problems(skip=True)
        hint = " --field names the column of the text." if way.text in wanted and self.field is None else ""
        try:
            read = read_rows([str(file)], list(columns.values()), problems)
            found = []
            for _, number, row in read:
                # As a line that is no JSON: one cell without text stops no batch.
                if empty := next((column for column in columns.values() if not row[column].strip()), None):
                    problems.add(str(file), number, f"empty {empty}", unit)
                else:
                    found.append((number, row))
        except BadData as error:
            what = str(error).removesuffix(" The template's braces name columns.")
            raise BadData(what + hint) from None
        note = problems.check()
        if not found:
            lacks = hint if way.text in problems.lacking else ""
            raise BadPrompt(f"{file} has no row that can be used" + (f"; {note}." if note else ".") + lacks)
        if note:
            warnings.warn(note, Notice, stacklevel=2)
        for number, row in found:
            yield f"{file}, {unit} {number}", {name: row[column] for name, column in columns.items()}


def _is_table(file: Path) -> bool:
    from gpt2.finetuning.rows import TABLES, kind_of

    return kind_of(file) in TABLES


def _lines(way: "Way", name: str, text: str) -> Iterator[tuple[str, str]]:
    """A text as it is asked about: whole, or by line where that is the task's way."""
    lines = [(number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    if not way.by_line or len(lines) < 2:
        yield name, text
        return
    for number, line in lines:
        yield f"{name}, line {number}" if name else f"line {number}", line


def chosen(way: "Way", options: GenerationOptions, given: Collection[str]) -> GenerationOptions:
    """The task's options, with those over them that were given on the command line; its stops stay."""
    mine = {field.name: getattr(options, field.name) for field in fields(GenerationOptions) if field.name in given}
    drawn = {
        field.name: getattr(options.sampling, field.name) for field in fields(SamplingOptions) if field.name in given
    }
    if "stop" in mine:
        mine["stop"] = (*way.options.stop, *mine["stop"])
    return replace(way.options, sampling=replace(way.options.sampling, **drawn), **mine)


def write(file: IO[str], names: Sequence[str], done: "Sequence[tuple[int, Reply]]") -> None:
    """The answers alone; with their texts' names where there are several."""
    for number, reply in done:
        if len(names) > 1:
            seed = reply.completion.seed
            file.write(f"--- {number + 1} ({names[number]}, seed {seed})\n" if names[number] else f"--- {number + 1}\n")
        file.write(f"{reply.text}\n")


def documents(
    way: "Way",
    names: Sequence[str],
    done: "Sequence[tuple[int, Reply]]",
    document: "Callable[[str, Completion], dict[str, Any]]",
) -> list[dict[str, Any]]:
    """`generate --json`'s objects, with the answer as `text`, all that was written as `raw`, tokens cut, and the file
    and line that were asked about as `source`."""
    return [
        document(reply.prompt, reply.completion)
        | {"text": reply.text, "raw": reply.raw, "task": way.name, "cut_tokens": reply.cut, "source": names[number]}
        for number, reply in done
    ]
