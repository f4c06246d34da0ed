"""Where test sets come from: a folder, or the Hugging Face hub. What is missing is said, with how to get it.

A set is one file, or the shards of one. In a folder it is found under the names that people have it by, in sub-folders
and in .zip files too; on the hub it is a data file of a data set (JSON lines or parquet; never a script, never a
pickle). What its contents mean is for the rows that read it.
"""

import fnmatch
import gzip
import io
import json
import os
import re
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar, cast

from gpt2.errors import BadData, Unavailable

T = TypeVar("T")

# Deeper than this, and past so many files, a folder is no folder of test sets.
_DEPTH, _MOST_FILES = 4, 100_000
_PARQUET = b"PAR1"
# Of the hub's tables, with or without a hash behind; the One Billion Word's test is one of fifty files, and no shard.
_SHARD = re.compile(r"(.*)-(\d{5})-of-(\d{5})(?:-[0-9a-f]{16})?(\.parquet|\.jsonl)", re.IGNORECASE)
# As its own conversions are, which do not say how many they are.
_NUMBERED = re.compile(r"(.*/)(\d{4})(\.parquet)", re.IGNORECASE)
# What zipfile raises for a damaged archive, an encrypted one (RuntimeError) and an unknown compression.
_DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, NotImplementedError)


@dataclass(frozen=True, slots=True)
class Source:
    """A set: the names of its file in a folder, its files on the hub as (data set, file, revision), and how to get it.

    names: patterns (`*` and `?`, neither for a slash) of the end of a path below the folder, tried in order.
    """

    title: str
    names: tuple[str, ...]
    hub: tuple[tuple[str, str, str | None], ...]
    get: str


# The hub converts data sets that are scripts into parquet, on a branch of that name.
_CONVERTED = "refs/convert/parquet"


def _wikitext(number: int, config: str, file: str) -> Source:
    folders = (f"wikitext{number}", f"wikitext-{number}", f"wikitext-{number}-*")
    names = (*(f"{folder}/{file}" for folder in folders), f"{config}/test-*.parquet")
    if config.endswith("raw-v1"):
        # The raw test text is one and the same.
        names = (*names, f"wikitext103/{file}", f"wikitext-*/{file}", file, "wikitext-*-raw-v1/test-*.parquet")
    return Source(
        f"{config} test",
        names,
        (("Salesforce/wikitext", f"{config}/test-00000-of-00001.parquet", None),),
        f"{file} of {config}.zip",
    )


def _newstest(language: str) -> Source:
    return Source(
        f"WMT14 English-French test (newstest2014), its {'English' if language == 'en' else 'French'} side",
        (
            f"newstest2014-fren.{language}",
            f"newstest2014-fren-src.{language}.sgm",
            f"newstest2014-fren-ref.{language}.sgm",
            "fr-en/test-*.parquet",
            "wmt14*test*.parquet",
            "wmt14*test*.jsonl",
        ),
        (("wmt/wmt14", "fr-en/test-00000-of-00001.parquet", None),),
        f"newstest2014-fren-src.{language}.sgm of test-full.tgz (statmt.org/wmt14)",
    )


SOURCES: Mapping[str, Source] = MappingProxyType(
    {
        "lambada-openai": Source(
            "LAMBADA test, OpenAI's variant",
            ("lambada_test.jsonl", "lambada_test_en.jsonl"),
            (("EleutherAI/lambada_openai", "data/lambada_test.jsonl", None),),
            "lambada_test.jsonl of EleutherAI/lambada_openai",
        ),
        "lambada-original": Source(
            "LAMBADA test, original",
            (
                "lambada_test_plain_text.txt",
                "lambada*/plain_text/test-*.parquet",
                "datasets--*lambada/snapshots/*/plain_text/test-*.parquet",
            ),
            (("cimec/lambada", "plain_text/test-00000-of-00001.parquet", None),),
            "lambada_test_plain_text.txt of lambada-dataset.tar.gz (zenodo.org/records/2630551)",
        ),
        "cbt-cn": Source(
            "Children's Book Test, common nouns, test",
            ("cbtest_CN_test_2500ex.txt", "CN/test-*.parquet"),
            (("cam-cst/cbt", "CN/test-00000-of-00001.parquet", None),),
            "cbtest_CN_test_2500ex.txt of CBTest.tgz",
        ),
        "cbt-ne": Source(
            "Children's Book Test, named entities, test",
            ("cbtest_NE_test_2500ex.txt", "NE/test-*.parquet"),
            (("cam-cst/cbt", "NE/test-00000-of-00001.parquet", None),),
            "cbtest_NE_test_2500ex.txt of CBTest.tgz",
        ),
        "wikitext-raw": _wikitext(2, "wikitext-2-raw-v1", "wiki.test.raw"),
        "wikitext-2": _wikitext(2, "wikitext-2-v1", "wiki.test.tokens"),
        "wikitext-103": _wikitext(103, "wikitext-103-v1", "wiki.test.tokens"),
        "ptb": Source(
            "Penn Treebank test (Mikolov's)",
            ("ptb.test.txt", "penn_treebank/test/*.parquet", "penn_treebank/test-*.parquet"),
            (("ptb-text-only/ptb_text_only", "penn_treebank/test/0000.parquet", _CONVERTED),),
            "ptb.test.txt of simple-examples.tgz",
        ),
        "enwik8": Source("enwik8", ("enwik8",), (), "enwik8.zip from mattmahoney.net/dc, as it is or unpacked"),
        "text8": Source("text8", ("text8",), (), "text8.zip from mattmahoney.net/dc, as it is or unpacked"),
        "1bw": Source(
            "One Billion Word test",
            ("news.en.heldout-00000-of-00050", "news.en-00000-of-00100"),
            (),
            "heldout-monolingual.tokenized.shuffled/news.en.heldout-00000-of-00050 of "
            "1-billion-word-language-modeling-benchmark-r13output.tar.gz (statmt.org/lm-benchmark)",
        ),
        "winograd": Source(
            "Winograd schemas (285, with their pronouns)",
            ("WSCollection.xml", "wsc285/test/*.parquet", "wsc285/test-*.parquet"),
            (("ErnestSDavis/winograd_wsc", "wsc285/test/0000.parquet", _CONVERTED),),
            "WSCollection.xml from cs.nyu.edu/~davise/papers/WinogradSchemas",
        ),
        "nq-open": Source(
            "Natural Questions, open, dev",
            ("NQ-open.dev.jsonl", "nq_open/validation-*.parquet", "nq_open/validation*.jsonl"),
            (("google-research-datasets/nq_open", "nq_open/validation-00000-of-00001.parquet", None),),
            "NQ-open.dev.jsonl of google-research-datasets/natural-questions (folder nq_open)",
        ),
        "nq-open-train": Source(
            "Natural Questions, open, train (for example pairs)",
            ("NQ-open.train.jsonl", "nq_open/train-*.parquet", "nq_open/train*.jsonl"),
            (("google-research-datasets/nq_open", "nq_open/train-00000-of-00001.parquet", None),),
            "NQ-open.train.jsonl of google-research-datasets/natural-questions (folder nq_open)",
        ),
        "coqa": Source(
            "CoQA dev",
            (
                "coqa-dev-v1.0.json",
                "coqa*/validation*.parquet",
                "coqa*/data/validation*.parquet",
                "coqa*/default/validation/*.parquet",
                "coqa*/validation*.jsonl",
            ),
            (
                ("EleutherAI/coqa", "default/validation/0000.parquet", _CONVERTED),
                ("stanfordnlp/coqa", "data/validation-00000-of-00001.parquet", None),
            ),
            "coqa-dev-v1.0.json from stanfordnlp.github.io/coqa",
        ),
        "cnn-dailymail": Source(
            "CNN/Daily Mail test",
            (
                "3.0.0/test-*.parquet",
                "cnn_dailymail*/test*.parquet",
                "cnn_dailymail*/test*.jsonl",
                "cnn_dailymail_test.*",
                "cnndm_realsumm_summeval.jsonl",
            ),
            (("abisee/cnn_dailymail", "3.0.0/test-00000-of-00001.parquet", None),),
            "the test split of abisee/cnn_dailymail 3.0.0 (parquet, or JSON lines with fields article and highlights)",
        ),
        "wmt14-en": _newstest("en"),
        "wmt14-fr": _newstest("fr"),
    }
)


@dataclass(frozen=True, slots=True)
class Found:
    """A set's file: the source it is of, where it came from, its name and its bytes; more: its other shards'."""

    source: Source
    where: str
    name: str
    data: bytes = field(repr=False)
    more: tuple[bytes, ...] = field(default=(), repr=False)

    def text(self, encoding: str = "utf-8") -> str:
        """The file as text; \\r\\n becomes \\n. Raises BadData for bytes that are no such text."""
        try:
            return self.data.decode(encoding).removeprefix("\ufeff").replace("\r\n", "\n")
        except UnicodeDecodeError as error:
            raise BadData(
                f"{self.where} is not {encoding} text: byte {error.start} is {self.data[error.start]:#04x}."
            ) from None

    def records(self) -> list[dict[str, Any]]:
        """The rows of a parquet file, or the objects of a file of JSON lines (gzip too).

        Raises BadData for what is neither, naming the line; Unavailable where parquet cannot be read for want of
        pyarrow.
        """
        found: list[dict[str, Any]] = []
        for data in (self.data, *self.more):
            found += _parquet(self.where, data) if data[:4] == _PARQUET else self._lines(data)
        return found

    def _lines(self, data: bytes) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        for number, line in enumerate(self._unpacked(data).splitlines(), 1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except ValueError as error:
                raise BadData(f"{self.where}, line {number}: no JSON ({error}).") from None
            if not isinstance(record, dict):
                raise BadData(f"{self.where}, line {number}: expected an object, not {type(record).__name__}.")
            found.append(record)
        return found

    def _unpacked(self, data: bytes) -> bytes:
        if data[:2] != b"\x1f\x8b":
            return data.removeprefix(b"\xef\xbb\xbf")
        try:
            return gzip.decompress(data).removeprefix(b"\xef\xbb\xbf")
        except (EOFError, OSError, zlib.error) as error:
            raise BadData(f"{self.where} is a damaged gzip file ({error}); get it again.") from None

    def column(self, name: str) -> list[Any]:
        """One field of every record. Raises BadData, naming those that there are, where it is missing."""
        records = self.records()
        for number, record in enumerate(records, 1):
            if name not in record:
                there = ", ".join(record) or "none"
                raise BadData(f'{self.where}, record {number}: there is no field "{name}"; there are {there}.')
        return [record[name] for record in records]

    def texts(self, name: str) -> list[str]:
        """A field of texts. Raises BadData, naming the record, for one that holds something else, or null."""
        values = self.column(name)
        for number, value in enumerate(values, 1):
            if not isinstance(value, str):
                what = "null" if value is None else f"of type {type(value).__name__}"
                raise BadData(f'{self.where}, record {number}: the field "{name}" is {what}, not text.')
        return values

    @property
    def is_table(self) -> bool:
        """Whether this has records, as the hub's files do: parquet, or JSON lines by its name."""
        return self.data[:4] == _PARQUET or self.name.lower().endswith((".jsonl", ".jsonl.gz"))


class Sets:
    """Finds sets, each once: in a folder if one is given, else on the hub.

    Raises BadData for a folder that is not there.
    """

    def __init__(self, folder: Path | None = None) -> None:
        if folder is not None and not folder.is_dir():
            raise BadData(f"{folder} is no folder; --data takes one that holds test sets.")
        self._folder = folder
        self._files, self._damaged = _listed(folder) if folder is not None else ([], [])
        self._found: dict[Source, Found] = {}
        self._made: dict[tuple[str, Source], Any] = {}
        self._unreachable: str | None = None

    def made(self, name: str, make: Callable[[Found], T], found: Found) -> T:
        """What `make` makes of a set, made once for each name: several rows and a control may want the same."""
        key = (name, found.source)
        if key not in self._made:
            self._made[key] = make(found)
        return cast("T", self._made[key])

    def get(self, source: Source) -> Found:
        """The file of a set. Raises Unavailable, with how to get it, if it is not to be had."""
        if source not in self._found:
            self._found[source] = self._fetch(source) if self._folder is None else self._look(source, self._folder)
        return self._found[source]

    def _look(self, source: Source, folder: Path) -> Found:
        for pattern in source.names:
            for file in self._files:
                if _fits(file.name, pattern):
                    shards = self._shards(file)
                    data, *more = (_bytes(shard) for shard in shards)
                    others = f" and its {len(more)} other shards" if more else ""
                    return Found(source, f"{folder / file.name}{others}", Path(file.name).name, data, tuple(more))
        hub = ", or leave --data out to fetch it from the hub" if source.hub else ""
        many = len(self._damaged)
        damaged = f" ({many} of its .zip files cannot be read, such as {self._damaged[0]})" if many else ""
        raise Unavailable(f"{source.title} is not in {folder}{damaged}: put {source.get} there{hub}.")

    def _shards(self, first: "_File") -> list["_File"]:
        """The files of a set that is cut into shards as the hub cuts them; of any other, the one."""
        shard = _shard(first.name)
        if shard is None:
            return [first]
        found: dict[int, _File] = {}
        for file in self._files:
            other = _shard(file.name)
            if other is not None and other[0] == shard[0]:
                found.setdefault(other[1], file)
        wanted = range(shard[2] or max(found) + 1)
        if missing := [number for number in wanted if number not in found]:
            raise Unavailable(
                f"{first.name} is one of {len(wanted)} shards, and {len(missing)} of them are missing: "
                f"number {missing[0]}, counted from 0, is the first."
            )
        return [found[number] for number in wanted]

    def _fetch(self, source: Source) -> Found:
        if not source.hub:
            raise Unavailable(f"{source.title} is not on the hub: get {source.get}, and name its folder with --data.")
        if self._unreachable is not None:
            raise Unavailable(_instead(source, self._unreachable))
        from huggingface_hub import errors, hf_hub_download

        reason = ""
        for repository, file, revision in source.hub:
            # Any failure inside huggingface_hub is a set that cannot be had; its exceptions changed with every version.
            try:
                path = Path(hf_hub_download(repository, file, repo_type="dataset", revision=revision))
                return Found(source, f"{repository}/{file} on the hub", file, path.read_bytes())
            except (errors.EntryNotFoundError, errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as error:
                if isinstance(error, errors.LocalEntryNotFoundError):
                    self._unreachable = "the hub cannot be reached"
                reason = self._unreachable or f"{repository} on the hub has no {file}"
            except Exception as error:
                reason = self._unreachable = f"the hub did not give it ({type(error).__name__})"
        raise Unavailable(_instead(source, reason))


def _instead(source: Source, reason: str) -> str:
    return f"{source.title}: {reason}; get {source.get}, and name its folder with --data."


@dataclass(frozen=True, slots=True)
class _File:
    """name: the path below the folder; member: of the archive at `path`."""

    name: str
    path: Path
    member: str | None = None


def _shard(name: str) -> tuple[tuple[str, ...], int, int] | None:
    """Which set of shards a file is of, its number there, and how many there are (0: that is not said)."""
    if cut := _SHARD.fullmatch(name):
        return (cut[1], cut[3], cut[4]), int(cut[2]), int(cut[3])
    if cut := _NUMBERED.fullmatch(name):
        return (cut[1], cut[3]), int(cut[2]), 0
    return None


def _fits(name: str, pattern: str) -> bool:
    """Whether the end of a path is of a pattern, folder by folder."""
    parts, patterns = name.lower().split("/"), pattern.lower().split("/")
    end = parts[-len(patterns) :]
    return len(end) == len(patterns) and all(map(fnmatch.fnmatchcase, end, patterns))


def _listed(folder: Path) -> tuple[list[_File], list[str]]:
    """The files below a folder and in its .zip files, shallow ones first, and the .zip files that are damaged."""
    found: list[_File] = []
    damaged: list[str] = []
    for place, folders, files in os.walk(folder):
        here = Path(place)
        if len(here.relative_to(folder).parts) >= _DEPTH or len(found) > _MOST_FILES:
            folders.clear()
        folders.sort()
        for file in sorted(files):
            path = here / file
            name = path.relative_to(folder).as_posix()
            found.append(_File(name, path))
            if file.lower().endswith(".zip"):
                # One that is damaged may be no set's.
                try:
                    with zipfile.ZipFile(path) as archive:
                        found += [_File(f"{name}/{member}", path, member) for member in sorted(archive.namelist())]
                except _DAMAGE:
                    damaged.append(name)
    return sorted(found, key=lambda each: (each.member is not None, each.name.count("/"), each.name)), damaged


def _bytes(file: _File) -> bytes:
    if file.member is None:
        try:
            return file.path.read_bytes()
        except OSError as error:
            raise BadData(f"{file.path} cannot be read: {error.strerror or error}.") from None
    try:
        with zipfile.ZipFile(file.path) as archive:
            return archive.read(file.member)
    except _DAMAGE as error:
        raise BadData(f"{file.member} cannot be read from {file.path} ({error}); unpack it, or get it again.") from None


def _parquet(where: str, data: bytes) -> list[dict[str, Any]]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        raise Unavailable(f"Reading {where} needs pyarrow: install the extra `corpus` (see README).") from None
    try:
        rows: list[dict[str, Any]] = parquet.read_table(io.BytesIO(data)).to_pylist()
        return rows
    except (ArrowException, OSError) as error:
        raise BadData(f"{where} is a damaged parquet file: {str(error).splitlines()[0]}") from None
