"""Documents out of files, for what a model is scored on and for what it is held against: one reader for both.

How each kind of file is read is the corpus room's business (`corpus/readers.py`); here is what a wrong one means where
nothing may be left out quietly.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from gpt2.errors import BadData
from gpt2.evaluation.perplexity import Document
from gpt2.shards import is_corpus

if TYPE_CHECKING:
    from gpt2.corpus.documents import Problems
    from gpt2.corpus.sources import Source


def read_texts(names: Sequence[str], field: str = "text", *, strict: bool = True) -> Iterator[Document]:
    """The documents that files, folders, globs and names of data sets on the hub stand for, one at a time.

    A text file is one, named by its path; a line of a .jsonl file and a row of a .parquet file are each one (their
    `field`), named by path and number. Text and .jsonl may be compressed (.gz, .zst). A file that is named, and whose
    ending says nothing, is text. What holds nothing but spaces is passed over.

    strict: bytes that are no UTF-8 are an error too, and text that spells end of text is warned about (Notice).
    Otherwise they are replaced, and it is not. All files are found before one is read. Raises BadData, naming file and
    number, for what is not there or cannot be read; Unavailable, naming the extra, where reading needs one.
    """
    sources: dict[tuple[str, str], Source] = {}
    for name in names:
        for source in _sources(name):
            if source.kind in ("html", "warc"):
                raise BadData(f"{source.where} holds a page, not text; make a corpus first (`gpt2 corpus build`).")
            place = source.where if source.kind == "hub" else os.path.realpath(source.where)
            sources.setdefault((source.kind, place), replace(source, name=source.where))
    return _documents(list(sources.values()), field, strict)


def _sources(name: str) -> "list[Source]":
    from gpt2.corpus.sources import Source, find, kind_of
    from gpt2.training.data import is_tokens
    from gpt2.training.documents import refuse_unfinished

    path = Path(name).expanduser()
    if path.is_file() and kind_of(path) is None:
        return [Source(name, "text", str(path), path.stat().st_size)]
    if path.is_dir():
        # A corpus is token shards: its vocabulary and its report are no texts.
        corpora = [found.parent for found in sorted(path.rglob("corpus.json")) if is_corpus(found.parent)]
        if is_tokens(path) or path in corpora:
            raise BadData(f"{path} is a corpus of tokens; it holds no text to read.")
        if corpora:
            raise BadData(f"{corpora[0]} is a corpus; name it itself, or the texts beside it.")
        for building in sorted(path.rglob("building")):
            refuse_unfinished(building.parent)
    return find([name])


def _documents(sources: "Sequence[Source]", field: str, strict: bool) -> Iterator[Document]:
    from gpt2.corpus.documents import SPELT_END, Problems, ReadOptions
    from gpt2.corpus.sources import read
    from gpt2.training.documents import warn_of_end_of_text

    for source in sources:
        problems, warned = Problems(), False
        for document in read(source, problems, ReadOptions(text_field=field)):
            _refuse(problems, strict)
            if strict and not warned and SPELT_END in problems.counts:
                warned = True
                warn_of_end_of_text(source.where)
            number = document.id.rpartition("#")[2]
            yield Document(source.where if source.kind == "text" else f"{source.where} #{number}", document.text)
        _refuse(problems, strict)


def _refuse(problems: "Problems", strict: bool) -> None:
    """Raises BadData for what the reader would leave out, or replace, and only count."""
    from gpt2.corpus.documents import EMPTY, INVALID_TEXT, LONE_SURROGATE, SPELT_END

    mended = (EMPTY, SPELT_END) if strict else (EMPTY, SPELT_END, INVALID_TEXT, LONE_SURROGATE)
    for kind, example in problems.examples.items():
        if kind not in mended:
            place, _, detail = example.partition(": ")
            raise BadData(f"{place}: {kind}{f' ({detail})' if detail else ''}.")
