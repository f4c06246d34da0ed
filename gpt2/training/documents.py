"""Texts in files: which files paths name, the documents in them, and which of those are held out.

It knows nothing of tokens; a corpus of token shards is no text, and is refused here.
"""

import json
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gpt2.errors import BadData, Notice
from gpt2.shards import digest, held_out, is_corpus
from gpt2.tokenizer import END_OF_TEXT

TEXT_SUFFIXES = (".txt", ".md")
_FOR_CORPORA = (".html", ".htm", ".warc", ".wet", ".parquet", ".gz", ".zst")
_STRETCH = 2**16  # bytes that a sample takes at a place
_MIDI = (".mid", ".midi", ".kar")
_OTHERS = "Pages, archives, .parquet and compressed files are for `gpt2 corpus build`, which takes the text out."


def find_files(paths: Sequence[Path]) -> list[Path]:
    """The files that the paths name, a folder standing for the text files in it, in a fixed order.

    Raises BadData for what is not there, and for a corpus in a folder: its report and vocabulary are no text to read.
    Warns (Notice) of files in a folder that `gpt2 corpus build` would read, and that are left out here.
    """
    files: list[Path] = []
    for path in paths:
        if path.is_dir():
            corpora = sorted(found.parent for found in path.rglob("corpus.json") if is_corpus(found.parent))
            if corpora:
                what = "holds no text to read" if corpora[0] == path else "name it itself"
                raise BadData(f"{corpora[0]} is a corpus; {what}.")
            for building in sorted(path.rglob("building")):
                refuse_unfinished(building.parent)
            every = sorted(found for found in path.rglob("*") if found.is_file())
            inside = [file for file in every if file.suffix in (*TEXT_SUFFIXES, ".jsonl")]
            if not inside:
                if any(file.suffix.lower() in _MIDI for file in every):
                    raise BadData(f"{path} holds MIDI files: make shards of them with `gpt2 music prepare`.")
                raise BadData(f"{path} holds no .txt, .md or .jsonl file. {_OTHERS}")
            left = Counter(file.suffix.lower() for file in every if file.suffix.lower() in _FOR_CORPORA)
            if left:
                kinds = ", ".join(f"{count:,} {kind}" for kind, count in sorted(left.items()))
                warnings.warn(f"{path}: left out are {kinds}. {_OTHERS}", Notice, stacklevel=2)
            files += inside
        elif path.is_file():
            if path.suffix.lower() in _FOR_CORPORA:
                raise BadData(f"{path} is no plain text. {_OTHERS}")
            files.append(path)
        else:
            raise BadData(f"{path} is no file and no folder; give text files, .jsonl files, or folders of them.")
    if not files:
        raise BadData("There is no data: give text files, .jsonl files, or folders of them.")
    # A file that is named twice, or beside its own folder, is read once.
    once: dict[Path, Path] = {}
    for file in files:
        once.setdefault(file.resolve(), file)
    return list(once.values())


def refuse_unfinished(folder: Path) -> None:
    """Raises BadData for a corpus whose build was not finished: what lies in it is neither text nor all of its tokens.

    It is known by what a build writes down of its settings; others have folders named building too.
    """
    try:
        settings = json.loads((folder / "building" / "settings.json").read_text(encoding="utf-8"))
        begun = "source_digest" in settings
    except (OSError, ValueError, TypeError, RecursionError):
        begun = False
    if begun and not is_corpus(folder):
        raise BadData(f"{folder} is a corpus that was begun and not finished; run its `gpt2 corpus build` again.")


def read_documents(paths: Sequence[Path]) -> Iterator[str]:
    """The documents in files, as `named_documents` has them."""
    return (text for _, text in named_documents(paths))


def named_documents(paths: Sequence[Path]) -> Iterator[tuple[str, str]]:
    """The documents in files, and what each is called: a text file is one, and a line of a .jsonl file is one (its
    field `text`). Files have their names alone where no two are called the same.

    Documents of nothing but spaces are skipped. Raises BadData, naming file and line, for what is no UTF-8 or no such
    JSON, and for a text file with zero bytes among its first 8,192. Warns (Notice) about text that spells the
    end-of-text token, which is read as ordinary text.
    """
    files = find_files(paths)
    called = Counter(file.name for file in files)
    for file in files:
        warned, name = False, file.name if called[file.name] == 1 else str(file)
        lines = file.suffix == ".jsonl"
        for number, text in _lines(file) if lines else [(0, _whole(file))]:
            if END_OF_TEXT in text and not warned:
                warned = True
                warn_of_end_of_text(str(file))
            if text and not text.isspace():
                yield f"{name}, line {number}" if lines else name, text


def warn_of_end_of_text(where: str) -> None:
    """Warns (Notice) of a file whose text spells the end-of-text token."""
    warnings.warn(
        f"{where} spells {END_OF_TEXT} in its text. It is read as ordinary text and separates nothing: "
        "put documents in files of their own, or on lines of a .jsonl file.",
        Notice,
        stacklevel=3,
    )


def _whole(file: Path) -> str:
    try:
        data = file.read_bytes()
        if b"\0" in data[:8192]:
            # Zero bytes are valid UTF-8, and no text.
            raise BadData(f"{file} is a binary file: it holds zero bytes. What is read is text in UTF-8.")
        # With or without the byte order mark that some editors put in front.
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadData(f"{file} is not UTF-8 text: byte {error.start} is {error.object[error.start]:#04x}.") from None


def _lines(file: Path) -> Iterator[tuple[int, str]]:
    with file.open("rb") as stream:
        for number, line in enumerate(stream, 1):
            if not line.strip():
                continue
            try:
                text = json.loads(line.removeprefix(b"\xef\xbb\xbf"))["text"]
            except (ValueError, KeyError, TypeError, RecursionError):
                raise BadData(f'{file}, line {number}: expected a JSON object with a field "text".') from None
            if not isinstance(text, str):
                raise BadData(f'{file}, line {number}: the field "text" is {type(text).__name__}, not text.')
            if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
                raise BadData(f"{file}, line {number}: the text holds a lone surrogate, half a character.")
            yield number, text


class Sample(NamedTuple):
    """Stretches of text from all over files. share: of the files' bytes; documents: as many as all files are expected
    to hold."""

    texts: list[str]
    share: float
    documents: int


def sampled(files: Sequence[Path], most: int) -> Sample:
    """A sample of files (`find_files`), about `most` bytes.

    Lines of a .jsonl file stay whole. What cannot be read is passed over: `read_documents` refuses it. Raises BadData
    for files without text.
    """
    texts, taken, begin, at, lines_taken = [], 0, 0, 0, 0
    sizes = [(file, file.stat().st_size) for file in files]
    total = sum(size for _, size in sizes)
    for file, size in sizes:
        with file.open("rb") as stream:
            while at < begin + size:
                if file.suffix == ".jsonl":
                    # The rest of a line is left out, which is its end alone where the place is a line's beginning.
                    stream.seek(max(0, at - begin - 1))
                    if at > begin:
                        stream.readline()
                    lines = stream.readlines(_STRETCH)
                    size_here = sum(map(len, lines))
                    found = [text for line in lines if (text := _text_in(line))]
                    lines_taken += len(found)
                    texts += found
                else:
                    stream.seek(at - begin)
                    data = stream.read(_STRETCH)
                    size_here = len(data)
                    texts.append(data.decode("utf-8-sig", "ignore"))
                taken += size_here
                # A line may be far longer than a stretch; the next place is then as much farther.
                at += max(1, total // most) * max(_STRETCH, size_here)
        begin += size
    if not any(texts):
        raise BadData("The data holds no text.")
    share = min(1.0, taken / total)
    wholes = sum(file.suffix != ".jsonl" for file in files)
    return Sample(texts, share, wholes + round(lines_taken / share))


def _text_in(line: bytes) -> str | None:
    try:
        text = json.loads(line)["text"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return text if isinstance(text, str) else None


@dataclass(frozen=True, slots=True)
class Split:
    """Documents to train on and documents held out."""

    training: list[str]
    validation: list[str]


def split(documents: Iterable[str], share: float) -> Split:
    """Holds out a share of the documents by the hash of their text (`shards/heldout.py`).

    A single document is cut instead: its last `share`, by characters, is held out. Where all would be held out, the one
    with the lowest hash is, with its copies. Raises BadData when there is nothing to train on, or nothing to hold out
    although share > 0.
    """
    documents = list(documents)
    if not documents:
        raise BadData("The data holds no text.")
    if share == 0:
        return Split(documents, [])
    if len(documents) == 1:
        text = documents[0]
        cut = int(len(text) * (1 - share))
        if not 0 < cut < len(text):
            raise BadData(
                f"A text of {len(text)} characters cannot be split into training and validation; give more, or "
                "--validation 0, which holds nothing out."
            )
        return Split([text[:cut]], [text[cut:]])
    hashes = np.array([digest(text.encode("utf-8", "surrogatepass"))[0] for text in documents], dtype=np.uint64)
    held = held_out(hashes, share, leave_some=True)
    if held.all():
        raise BadData(f"All {len(documents)} documents are the same text, so none can be held out.")
    return Split(
        [text for text, out in zip(documents, held, strict=True) if not out],
        [text for text, out in zip(documents, held, strict=True) if out],
    )
