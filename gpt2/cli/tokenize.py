"""`gpt2 tokenize`: text to ids, and back."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gpt2.cli.common import Json, Revision, console, print_json, read_file, read_text
from gpt2.config import SIZES
from gpt2.errors import BadOption, BadPrompt

if TYPE_CHECKING:
    from gpt2.tokenizer import Tokenizer

_COLOURS = ("on dark_blue", "on dark_green", "on dark_red", "on purple4", "on dark_goldenrod")


def command(
    text: Annotated[str | None, typer.Argument(help="Text; - reads standard input.", show_default=False)] = None,
    file: Annotated[Path | None, typer.Option(help="Read this file instead.", show_default=False)] = None,
    decode: Annotated[
        bool, typer.Option("--decode", help="The text is ids (numbers or JSON), to be turned back.")
    ] = False,
    special: Annotated[
        bool,
        typer.Option("--special", help="Read a literal <|endoftext|> as the control token; by default it is text."),
    ] = False,
    model: Annotated[
        str | None, typer.Option(help="Whose vocabulary; default: GPT-2's own 50,257 tokens.", show_default=False)
    ] = None,
    revision: Revision = None,
    as_json: Json = False,
) -> None:
    """Turn text into token ids and show the pieces; or ids into text (--decode).

    JSON: ids, tokens (a token that holds part of a character shows as U+FFFD) and offsets (the characters that each
    token covers; not with --special).
    """
    if (text is None) == (file is None):
        raise BadOption("Give a text, or --file.")
    source = read_text(text) if text is not None else read_file(file) if file is not None else ""
    tokenizer = _tokenizer(model, revision)
    if decode:
        ids = _ids(source)
        answer = tokenizer.decode(ids)
        if as_json:
            print_json({"ids": ids, "text": answer})
        else:
            print(answer)
        return
    ids = tokenizer.encode(source, allowed_special=tuple(tokenizer.special_tokens) if special else ())
    tokens = [tokenizer.decode([id]) for id in ids]
    if as_json:
        document: dict[str, object] = {"ids": ids, "tokens": tokens}
        if not special:
            document["offsets"] = tokenizer.offsets(source)
        print_json(document)
        return
    from rich.text import Text

    pieces = Text()
    for number, token in enumerate(tokens):
        pieces.append(token.replace("\n", "⏎\n"), _COLOURS[number % len(_COLOURS)])
    out = console()
    if out.is_terminal:
        out.print(pieces, soft_wrap=True)
    else:
        # Without colours the borders need another mark.
        print("|".join(tokens))
    print(" ".join(map(str, ids)))
    out.print(f"[dim]{len(ids)} tokens, {len(source)} characters, {len(source.encode())} bytes[/]")


def _tokenizer(model: str | None, revision: str | None) -> "Tokenizer":
    from gpt2.tokenizer import Tokenizer, read_tokenizer

    # The four sizes share GPT-2's vocabulary, which is in the package: nothing to fetch.
    if model is None or model in SIZES:
        return Tokenizer.gpt2()
    from gpt2.checkpoint import load, locate
    from gpt2.checkpoint.huggingface import has_tokenizer

    path = locate(model, revision, weights=False)
    # A folder's vocabulary is read alone where it has one; other formats bring theirs with the weights.
    return read_tokenizer(path) if has_tokenizer(path) else load(model, revision=revision).tokenizer


def _ids(text: str) -> list[int]:
    """Ids from plain numbers, a JSON list of them, or the document that `tokenize --json` prints."""
    try:
        if text.lstrip().startswith("{"):
            ids = json.loads(text).get("ids")
        else:
            ids = [int(word) for word in text.replace(",", " ").strip("[] \t\r\n").split()]
    except ValueError:
        ids = None
    if not isinstance(ids, list) or any(type(id) is not int for id in ids):
        raise BadPrompt(f"--decode expects token ids such as 464 3797 3332 or [464, 3797, 3332], not {text[:40]!r}.")
    return ids
