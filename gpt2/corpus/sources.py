"""What the sources of a corpus are: folders, globs, files and data sets on the hub; and reading one of them.

How each kind is read is in readers.py, warc.py and hub.py.
"""

import glob
import itertools
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from gpt2.corpus.documents import BROKEN_FILE, Document, Problems, ReadOptions
from gpt2.corpus.hub import check_hub, read_hub
from gpt2.corpus.readers import Reading, read_jsonl, read_page, read_parquet, read_text
from gpt2.corpus.streams import BrokenStream
from gpt2.corpus.warc import read_warc
from gpt2.errors import BadData

Kind = Literal["text", "jsonl", "parquet", "html", "warc", "hub"]

_SUFFIXES: dict[str, Kind] = {
    ".txt": "text",
    ".md": "text",
    ".jsonl": "jsonl",
    ".parquet": "parquet",
    ".html": "html",
    ".htm": "html",
    ".warc": "warc",
    ".wet": "warc",
}
_COMPRESSED = (".gz", ".zst")
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+(:[\w.-]+){0,2}")
_KINDS_READ = "text (.txt, .md), .jsonl, .html, .htm, .warc, each also as .gz or .zst, and .parquet"


@dataclass(frozen=True, slots=True)
class Source:
    """One file, or one data set on the hub.

    `name` is unique in a build and does not depend on where the files lie: the path from the folder that was given,
    that folder's own name in front. `where` is the path, or the hub's `owner/name:config:split`. `bytes` is the size on
    disk, compressed as it is; 0 for the hub.
    """

    name: str
    kind: Kind
    where: str
    bytes: int


def find(sources: Sequence[str], out: Path | None = None, note: Callable[[str], None] | None = None) -> list[Source]:
    """What the given paths, globs and names stand for, each file once.

    The order is that of the arguments, and by path inside a folder or glob. Of a folder, the files with endings that
    can be read are taken, and hidden ones are not; how many others there are is told to `note`. Folders that are links
    are followed once. A path that exists is never taken for a glob or a name. What lies in `out`, where the corpus is
    made, is no source. Raises BadData for what is not there or cannot be read.
    """
    found: list[Source] = []
    others: list[str] = []
    seen: set[str] = set()
    names: dict[str, int] = {}
    made = os.path.realpath(out) if out is not None else None
    for given in sources:
        for name, path in _expand(given, made, others):
            key = given if path is None else os.path.realpath(path)
            if path is not None and made is not None and Path(key).is_relative_to(made):
                continue
            kind = "hub" if path is None else kind_of(path)
            if kind is None:
                raise BadData(f"{path} is of no kind that can be read: {_KINDS_READ}.")
            where, size = given, 0
            if path is not None:
                try:
                    where, size = str(path), path.stat().st_size
                except OSError as error:
                    raise _unreadable(error) from None
            if key in seen:
                continue
            seen.add(key)
            names[name] = names.get(name, 0) + 1
            # Two folders of the same name hold files of the same name: the second one's are told apart.
            unique = name if names[name] == 1 else f"{name} ({names[name]})"
            found.append(Source(unique, kind, where, size))
    if not found:
        raise BadData("There are no sources: give files, folders, globs, or names of data sets.")
    if others and note is not None:
        note(f"Files of other kinds are left out: {len(others):,}, such as {others[0]}.")
    return found


def kind_of(path: Path) -> Kind | None:
    """What a file is by its ending; None if it is nothing that can be read."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in _COMPRESSED:
        suffixes.pop()
        if suffixes and suffixes[-1] == ".parquet":
            return None
    return _SUFFIXES.get(suffixes[-1]) if suffixes else None


def _expand(given: str, made: str | None, others: list[str]) -> Iterable[tuple[str, Path | None]]:
    """Names and paths of one argument; no path for a data set on the hub. Files that cannot be read go to `others`."""
    path = Path(given).expanduser()
    if path.is_dir():
        inside = [(f"{path.resolve().name}/{relative}", path / relative) for relative in _inside(path, made)]
        known = [(name, file) for name, file in inside if kind_of(file) is not None]
        if not known:
            held = f"{len(inside)} files of other kinds, such as {inside[0][1].name}" if inside else "no files"
            raise BadData(f"{given} holds nothing that can be read: {held}. What can be: {_KINDS_READ}.")
        others += [name for name, file in inside if kind_of(file) is None]
        return known
    if path.is_file():
        return [(path.name, path)]
    if path.exists():
        raise BadData(f"{given} is no file and no folder.")
    if glob.has_magic(given):
        matches = sorted(Path(match) for match in glob.glob(str(path), recursive=True))  # noqa: PTH207
        files = [match for match in matches if match.is_file() and kind_of(match) is not None]
        if not files:
            raise BadData(f"{given} matches no file that can be read: {_KINDS_READ}.")
        base = Path(*itertools.takewhile(lambda part: not glob.has_magic(part), path.parts))
        return [(f"{base.resolve().name}/{file.relative_to(base).as_posix()}", file) for file in files]
    if _HUB_NAME.fullmatch(given) and kind_of(path) is None:
        return [(given, None)]
    raise BadData(f"{given} is not here: no file, no folder, no glob that matches, and no owner/name of a data set.")


def _inside(folder: Path, made: str | None) -> list[str]:
    """The files of a folder and its folders, by path, without hidden ones and without the folder `made`."""
    files: list[str] = []
    # Links can lead in a circle.
    seen = {made, os.path.realpath(folder)}
    for directory, folders, names in os.walk(folder, onerror=_refuse, followlinks=True):
        shown = sorted(name for name in folders if not name.startswith("."))
        folders.clear()
        for name in shown:
            real = os.path.realpath(Path(directory, name))
            if real not in seen:
                seen.add(real)
                folders.append(name)
        here = Path(directory).relative_to(folder)
        files += [(here / name).as_posix() for name in names if not name.startswith(".")]
    return sorted(files)


def _refuse(error: OSError) -> None:
    raise _unreadable(error)


def _unreadable(error: OSError) -> BadData:
    return BadData(f"{error.filename} cannot be read: {error.strerror}.")


def read(source: Source, problems: Problems, options: ReadOptions | None = None) -> Iterator[Document]:
    """The documents of a source, in its order, with bounded memory; what is wrong is counted in `problems`.

    Raises BadData where the options refuse what is wrong, where no record has the text field, and where a file is gone;
    Unavailable where reading needs an extra that is not installed.
    """
    reading = Reading(source.name, source.where, problems, options or ReadOptions())
    try:
        match source.kind:
            case "text":
                yield from read_text(reading)
            case "jsonl":
                yield from read_jsonl(reading)
            case "parquet":
                yield from read_parquet(reading)
            case "html":
                yield from read_page(reading)
            case "warc":
                yield from read_warc(reading)
            case "hub":
                yield from read_hub(reading)
    except BrokenStream as error:
        reading.problem(BROKEN_FILE, str(error))


def check_sources(sources: Sequence[Source], options: ReadOptions) -> None:
    """Reads the first document of a source of each kind in each folder, so that a wrong field name or a missing extra
    is an error before hours of work. Raises what `read` raises.
    """
    checked: set[tuple[str, str]] = set()
    for source in sources:
        group = (source.kind, str(Path(source.where).parent) if source.kind != "hub" else source.where)
        if group not in checked:
            checked.add(group)
            if source.kind == "hub":
                check_hub(source.where)
            next(read(source, Problems(), options), None)
