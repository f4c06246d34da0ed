"""A prompt and its target as one text with fields, "{article}\\nTL;DR: {summary}", and `task.json`, which keeps it.

The target is the last field with all that stands behind it, and a single space before it: GPT-2's tokens begin with
their space, so a prompt that ended in one would ask for a text that it never saw. Where the target is more than that,
"{|}" says where it begins. "{{" and "}}" are braces.

Prompt and target are encoded each by itself, as they will be when the prompt is read and the target is to be written.
This file reads no data and trains nothing.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpt2.errors import BadCheckpoint, BadOption, BadPrompt

if TYPE_CHECKING:
    from gpt2.tokenizer import Tokenizer

TASK = "task.json"
FORMAT = 1
MARK = "{|}"

_PIECE = re.compile(r"\{\{|\}\}|\{\|\}|\{([^{}|]+)\}|[{}]")


@dataclass(frozen=True, slots=True)
class Field:
    """A place in a template where a column's value goes."""

    name: str


class DoesNotFit(Exception):
    """A prompt that does not fit into its room even without any of its longest field."""


@dataclass(frozen=True)
class Template:
    """A template as it is written. Raises BadOption for a text that is none."""

    text: str

    def __post_init__(self) -> None:
        if not isinstance(self.text, str):
            raise BadOption(f"template is {self.text!r}, but it must be text.")
        if not any(isinstance(piece, Field) for piece in self._target):
            where = f"behind {MARK} " if MARK in self._marked else ""
            raise BadOption(
                f"The template {self.text!r} has no field {where}to learn; write columns in braces: "
                "'{article}\\nTL;DR: {summary}'."
            )

    @property
    def fields(self) -> list[str]:
        """Names of all columns, each once, in their order."""
        pieces = (*self._prompt, *self._target)
        return list(dict.fromkeys(piece.name for piece in pieces if isinstance(piece, Field)))

    @property
    def prompt_fields(self) -> list[str]:
        """Names of the columns that a prompt needs."""
        return list(dict.fromkeys(piece.name for piece in self._prompt if isinstance(piece, Field)))

    @property
    def prompt_template(self) -> str:
        """What stands before the target, as a template."""
        return _written(self._prompt)

    @property
    def target_template(self) -> str:
        """The target, as a template."""
        return _written(self._target)

    def prompt(self, values: Mapping[str, str]) -> str:
        """The prompt with its fields filled in. Raises BadPrompt for a field without a value."""
        return _filled(self._prompt, values)

    def target(self, values: Mapping[str, str]) -> str:
        """The target with its fields filled in; as `prompt`."""
        return _filled(self._target, values)

    def is_empty(self, values: Mapping[str, str]) -> bool:
        """Whether nothing but white space stands in the target's fields."""
        return _is_blank(self._target, values)

    def has_no_prompt(self, values: Mapping[str, str]) -> bool:
        """Whether the prompt has fields, and nothing but white space stands in them."""
        return _is_blank(self._prompt, values)

    def prompt_ids(self, values: Mapping[str, str], tokenizer: "Tokenizer", room: int) -> tuple[list[int], bool]:
        """The prompt's ids, at most `room`, and whether something was cut for that.

        It is cut at the end of its longest field, never in the template's own words. A prompt of no text is end of
        text, as `generate` reads it. Raises DoesNotFit where that is not enough, BadPrompt for half characters.
        """
        longest = max(self.prompt_fields, key=lambda name: len(values[name]), default=None)
        if longest is None or len(values[longest]) <= room:
            ids = _ids(self.prompt(values), tokenizer)
            if len(ids) <= room:
                return ids, False
            if longest is None:
                raise DoesNotFit
        # A text that is far too long is not tokenised whole only to be cut.
        text, most = values[longest], 16 * max(room, 1)
        while len(text) > most and len(tokenizer.encode(text[:most])) <= room:
            most *= 2
        begin = text[:most]
        ids = _ids(self.prompt({**values, longest: begin}), tokenizer)
        if len(ids) <= room and begin == text:
            return ids, False
        ends = [end for _, end in tokenizer.offsets(begin)]
        keep = len(ends)
        while len(ids) > room:
            # What is kept is tokenised again, and may then be a token more or less.
            if not keep:
                raise DoesNotFit
            keep = max(0, min(keep - 1, keep - (len(ids) - room)))
            kept = begin[: ends[keep - 1]].rstrip() if keep else ""
            ids = _ids(self.prompt({**values, longest: kept}), tokenizer)
        return ids, True

    @property
    def _marked(self) -> tuple["str | Field", ...]:
        return _parsed(self.text)

    @cached_property
    def _parts(self) -> tuple[tuple["str | Field", ...], tuple["str | Field", ...]]:
        pieces = self._marked
        if pieces.count(MARK) > 1:
            raise BadOption(f"The template {self.text!r} has {MARK} more than once; the target begins at one place.")
        if MARK in pieces:
            cut = pieces.index(MARK)
            return pieces[:cut], pieces[cut + 1 :]
        cut = max((place for place, piece in enumerate(pieces) if isinstance(piece, Field)), default=len(pieces))
        before = pieces[cut - 1] if cut else ""
        if isinstance(before, str) and before.endswith(" "):
            head = (before[:-1],) if before[:-1] else ()
            return (*pieces[: cut - 1], *head), (" ", *pieces[cut:])
        return pieces[:cut], pieces[cut:]

    @property
    def _prompt(self) -> tuple["str | Field", ...]:
        return self._parts[0]

    @property
    def _target(self) -> tuple["str | Field", ...]:
        return self._parts[1]


def _parsed(text: str) -> tuple[str | Field, ...]:
    """Words, fields and the mark (which no words can spell: a brace in words is doubled)."""
    pieces: list[str | Field] = []
    words, end = "", 0
    for found in _PIECE.finditer(text):
        words += text[end : found.start()]
        end = found.end()
        if found[0] in ("{{", "}}"):
            words += found[0][0]
        elif found[0] in ("{", "}"):
            raise BadOption(
                f"The template {text!r} has a lone {found[0]!r} (character {found.start()}); fields stand in braces, "
                "and a brace that is meant as such is doubled."
            )
        else:
            pieces += [words] if words else []
            pieces.append(MARK if found[0] == MARK else Field(found[1].strip()))
            words = ""
    words += text[end:]
    return (*pieces, *([words] if words else []))


def _is_blank(pieces: Sequence[str | Field], values: Mapping[str, str]) -> bool:
    """Whether there are fields, and nothing but white space stands in them."""
    texts = [values[piece.name] for piece in pieces if isinstance(piece, Field)]
    return bool(texts) and not any(map(str.strip, texts))


def _written(pieces: Sequence[str | Field]) -> str:
    return "".join(
        f"{{{piece.name}}}" if isinstance(piece, Field) else piece.replace("{", "{{").replace("}", "}}")
        for piece in pieces
    )


def _filled(pieces: Sequence[str | Field], values: Mapping[str, str]) -> str:
    for piece in pieces:
        if isinstance(piece, Field) and piece.name not in values:
            raise BadPrompt(f"The template has a field {{{piece.name}}}, and no value was given for it.")
    return "".join(values[piece.name] if isinstance(piece, Field) else piece for piece in pieces)


def _ids(text: str, tokenizer: "Tokenizer") -> list[int]:
    if text:
        return tokenizer.encode(text)
    assert tokenizer.end_of_text is not None, "checked where data are opened"
    return [tokenizer.end_of_text]


@dataclass(frozen=True, slots=True)
class Task:
    """What a fine-tuned model was taught, for those who ask it: the template, where an answer ends, how long it is.

    stop: strings that end an answer, beside end of text, which always does. labels: all that an answer can be, where it
    is one of a few. context: tokens of the longest prompt with its answer that was learnt from, so that none is asked
    that is longer; None: the model's window.
    """

    name: str
    template: Template
    stop: tuple[str, ...] = ()
    max_tokens: int = 100
    labels: tuple[str, ...] = ()
    context: int | None = None

    def window(self, model: int) -> int:
        """Tokens for a prompt and its answer, in a model with a window of `model` tokens."""
        return min(model, self.context or model)

    def to_json(self) -> str:
        """The text of a task.json."""
        document: dict[str, Any] = {
            "format": FORMAT,
            "name": self.name,
            "template": self.template.prompt_template,
            "target": self.template.target_template,
            "stop": list(self.stop),
            "max_tokens": self.max_tokens,
        }
        if self.labels:
            document["labels"] = list(self.labels)
        if self.context is not None:
            document["context"] = self.context
        return json.dumps(document, indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str, source: str) -> "Task":
        """The task that such a text holds; `source` is the name that errors give it. Raises BadCheckpoint."""
        try:
            document = json.loads(text)
            if document["format"] != FORMAT:
                raise BadCheckpoint(
                    f"{source} has the format {document['format']!r}, and this program reads {FORMAT}; update it."
                )
            stop, labels, most = document.get("stop", []), document.get("labels", []), document["max_tokens"]
            texts = (isinstance(each, list) and all(isinstance(s, str) and s for s in each) for each in (stop, labels))
            if not all(texts):
                raise ValueError("stop and labels must be lists of texts")
            if not isinstance(most, int) or isinstance(most, bool) or most < 1:
                raise ValueError(f"max_tokens is {most!r}")
            context = document.get("context")
            if context is not None and (not isinstance(context, int) or isinstance(context, bool) or context <= most):
                raise ValueError(f"context is {context!r}")
            template = Template(document["template"] + MARK + document["target"])
            return cls(str(document.get("name", "")), template, tuple(stop), most, tuple(labels), context)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise BadCheckpoint(f"{source} is no task that was written here ({error}).") from None


def write_task(task: Task, folder: Path) -> None:
    """Puts the task into a model's directory."""
    (folder / TASK).write_text(task.to_json(), encoding="utf-8")


def read_task(folder: Path) -> Task | None:
    """The task of a model's directory; None where there is none. Raises BadCheckpoint for a damaged one."""
    path = folder / TASK
    if not path.is_file():
        return None
    try:
        return Task.from_json(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise BadCheckpoint(f"{path} cannot be read ({error}).") from None
