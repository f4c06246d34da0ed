"""`build`: sources in, a corpus folder out.

Its stages, each of which can be killed and goes on with what it had finished:

    reading      each part: documents, extraction, filters, hashes, signatures      (stages.py, by workers)
    duplicates   all parts together: the fate of every document                     (here, in one process)
    vocabulary   learnt if one was asked for                                        (here)
    tokens       each stretch of kept documents: tokens, shards                     (stages.py, by workers)
    moving in    the shards get their last names, and corpus.json says what they are

What is half-done lies in `building/` inside the corpus folder, and is deleted at the end. Which documents stay, their
order and the borders of the shards are functions of the sources and the options alone.
"""

import dataclasses
import json
import shutil
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from gpt2.corpus import duplicates
from gpt2.corpus.documents import SPELT_END, Problems
from gpt2.corpus.engine import Engine, check_engine, explained, opened, run
from gpt2.corpus.extract import check_extractor
from gpt2.corpus.fates import SPLITS, TRAIN, Stretch, count_dropped, decide, share_out
from gpt2.corpus.filters import check_filters
from gpt2.corpus.folder import FORMAT, begin, begun, check_folder, locked, settings_of
from gpt2.corpus.options import CorpusOptions
from gpt2.corpus.parts import Parts, bundle
from gpt2.corpus.report import IN, OUT, Tally, as_text, rows
from gpt2.corpus.sources import Source, check_sources, find
from gpt2.corpus.stages import MakeShards, ReadParts
from gpt2.errors import BadData, BadOption, Notice
from gpt2.files import write_atomically
from gpt2.tokenizer import Tokenizer, learn, read_tokenizer, write_tokenizer

# Text from which a vocabulary is learnt, at most.
_LEARN_BYTES = 256 * 10**6


class Watcher(Protocol):
    """Who is told how far a build is."""

    def stage(self, name: str, total: int) -> None:
        """A stage begins that has so many bytes to do."""

    def progress(self, done: int) -> None:
        """So many of them are done. Called from another thread."""

    def note(self, text: str) -> None:
        """Something to tell, in a line."""


class _Silent:
    def stage(self, name: str, total: int) -> None:
        pass

    def progress(self, done: int) -> None:
        pass

    def note(self, text: str) -> None:
        pass


def build(
    sources: Sequence[str],
    out: Path,
    options: CorpusOptions | None = None,
    *,
    engine: Engine = "local",
    workers: int | None = None,
    fast: bool = False,
    watcher: Watcher | None = None,
) -> dict[str, Any]:
    """Builds a corpus in the folder `out`, or goes on with it; returns what corpus.json says.

    sources: folders, files, globs, names of data sets (see sources.py). workers: processes; default: one for each core.
    fast: tokenise with the faster exact library of the extra `fast`. A script that builds with several workers does so
    under `if __name__ == "__main__":`, because they import it.

    Raises BadOption for options that are wrong or not those that the folder was begun with, BadData for sources that
    cannot be read or of which nothing is left, Unavailable for what is not installed or a full disk, Busy if another
    build is writing there.
    """
    options, watcher = options or CorpusOptions(), watcher or _Silent()
    workers = check_engine(engine, workers)
    check_filters(options.filters)
    if options.near:
        duplicates.check_near()
    tokenizer = None if options.vocab_size else _given_tokenizer(options.tokenizer)
    if fast:
        from gpt2.tokenizer.fast import FastEncoder

        FastEncoder(tokenizer or Tokenizer.gpt2())
    check_folder(out)
    found = find(sources, out, watcher.note)
    if any(source.kind in ("html", "warc") for source in found):
        check_extractor(options.extractor)
    settings = settings_of(sources, found, options, tokenizer)
    with locked(out):
        try:
            finished = begun(out, settings, found)
            if finished is not None:
                watcher.note(f"{out} is finished already: built from these sources with these options.")
                return finished
            # Before anything is begun, so that a wrong name does not bind the folder to it.
            check_sources(found, options.read)
            begin(out, settings)
            with opened(engine, workers):
                return _Build(out, found, options, settings, engine, workers, fast, watcher).run(tokenizer)
        except OSError as error:
            raise explained(error) from None


class _Build:
    """One build under way."""

    def __init__(
        self,
        out: Path,
        sources: Sequence[Source],
        options: CorpusOptions,
        settings: dict[str, Any],
        engine: Engine,
        workers: int,
        fast: bool,
        watcher: Watcher,
    ) -> None:
        self._out, self._work = out, out / "building"
        self._options, self._settings = options, settings
        self._engine, self._workers, self._fast, self._watcher = engine, workers, fast, watcher
        bundles = tuple(tuple(part) for part in bundle(sources))
        self._reading = ReadParts(self._work / "parts", bundles, options)
        self._parts = tuple(self._reading.part(number) for number in range(len(bundles)))
        self._fates = self._work / "fates"
        self._plan = self._work / "stretches.json"

    def run(self, tokenizer: Tokenizer | None) -> dict[str, Any]:
        with self._stage("reading", sum(self._reading.sizes())):
            self._run_tasks(self._reading, "parts")
        tally, problems = self._read_counts()
        if not self._plan.is_file():
            with self._stage("duplicates", 0):
                self._decide(tally, problems)
        plan = json.loads(self._plan.read_text(encoding="utf-8"))
        tally.merge(plan["tally"])
        folder = self._work / "tokenizer"
        if not (folder / "tokenizer.json").is_file():
            with self._stage("vocabulary", 0):
                write_tokenizer(tokenizer or self._learn(plan), folder)
        tokenizer = tokenizer or read_tokenizer(folder)
        stretches = tuple(Stretch(*stretch) for stretch in plan["stretches"])
        making = MakeShards(self._work / "shards", self._parts, self._fates, folder, stretches, self._fast)
        with self._stage("tokens", sum(making.sizes())):
            self._run_tasks(making, "stretches")
        with self._stage("moving in", 0):
            shards = _move_in(making, self._out)
        return self._finish(tally, problems, making, shards, tokenizer)

    def _run_tasks(self, task: ReadParts | MakeShards, name: str) -> None:
        before = run(task, self._engine, self._workers, self._work / "messages", self._watcher.progress)
        if before:
            self._watcher.note(f"{before} of {len(task.sizes())} {name} were finished before, and are not done again.")

    @contextmanager
    def _stage(self, name: str, total: int) -> Iterator[None]:
        """Tells of a stage, and adds its seconds to those that earlier runs of this build spent on it."""
        self._watcher.stage(name, total)
        start = time.monotonic()
        try:
            yield
        finally:
            # Where nothing was left, the folder is gone, and free for other options.
            if self._work.is_dir():
                spent = self._seconds()
                spent[name] = spent.get(name, 0.0) + time.monotonic() - start
                write_atomically(self._work / "seconds.json", json.dumps(spent).encode())

    def _seconds(self) -> dict[str, float]:
        path = self._work / "seconds.json"
        seconds: dict[str, float] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        return seconds

    def _read_counts(self) -> tuple[Tally, Problems]:
        tally, problems = Tally(), Problems()
        for part in self._parts:
            counts = part.counts()
            tally.merge(counts["tally"])
            problems.merge(Problems.from_dict(counts["problems"]))
        return tally, problems

    def _decide(self, tally: Tally, problems: Problems) -> None:
        parts = Parts(self._parts)
        if not len(parts):
            # So that the folder can be used with other options.
            shutil.rmtree(self._work)
            raise BadData(_nothing_left(tally, problems))
        fates = decide(parts, self._options)
        stretches = [dataclasses.astuple(stretch) for stretch in share_out(parts, fates)]
        plan = {"stretches": stretches, "tally": count_dropped(parts, fates).to_dict()}
        fates.tofile(self._fates)
        write_atomically(self._plan, json.dumps(plan).encode())

    def _learn(self, plan: dict[str, Any]) -> Tokenizer:
        """A vocabulary from the training documents, or from a share of them that their hashes choose."""
        assert self._options.vocab_size is not None
        parts = Parts(self._parts)
        wanted = np.flatnonzero(np.fromfile(self._fates, np.uint8) == TRAIN)
        total = sum(stretch[3] for stretch in plan["stretches"] if stretch[0] == TRAIN)
        if total > _LEARN_BYTES:
            # The second half of the hash: the first decides who is held out.
            chosen = parts.hashes()[wanted, 1].astype(np.float64) / 2.0**64 < _LEARN_BYTES / total
            self._watcher.note(
                f"The vocabulary is learnt from {chosen.sum():,} of {len(wanted):,} training documents, "
                f"about {_LEARN_BYTES / 1e6:.0f} MB of text, chosen by hash."
            )
            wanted = wanted[chosen]
        return learn((text.decode() for text, _ in parts.read(wanted)), self._options.vocab_size)

    def _finish(
        self, tally: Tally, problems: Problems, making: MakeShards, shards: dict[str, int], tokenizer: Tokenizer
    ) -> dict[str, Any]:
        counts = [making.counts(number) for number in range(len(making.plan))]
        for one in counts:
            tally.merge(one["tally"])
        documents, size, tokens = tally.total(*OUT)
        report = {
            "format": FORMAT,
            "shards": shards,
            "total": {"documents": documents, "bytes": size, "tokens": tokens},
            "tokenizer": {"fingerprint": tokenizer.fingerprint(), "vocab_size": tokenizer.vocab_size},
            "settings": self._settings,
            "steps": rows(tally),
            "problems": problems.to_dict(),
            "sets": tally.to_dict(),
            "seconds": {name: round(seconds, 3) for name, seconds in self._seconds().items()},
            "worker_seconds": {
                "reading": _sum(part.counts()["seconds"] for part in self._parts),
                "tokens": _sum(one["seconds"] for one in counts),
            },
            "engine": self._engine,
            "workers": self._workers,
        }
        if SPELT_END in problems.counts:
            warnings.warn(
                f"{problems.counts[SPELT_END]:,} documents spell <|endoftext|> (the first: "
                f"{problems.examples[SPELT_END]}). It is kept as ordinary text and separates nothing.",
                Notice,
                stacklevel=2,
            )
        write_tokenizer(tokenizer, self._out)
        # A file's name need be no UTF-8.
        write_atomically(self._out / "corpus.md", as_text(report).encode(errors="backslashreplace"))
        write_atomically(self._out / "corpus.json", json.dumps(report, indent=1).encode())
        shutil.rmtree(self._work, ignore_errors=True)
        return report


def _given_tokenizer(name: str) -> Tokenizer:
    tokenizer = Tokenizer.gpt2() if name == "gpt2" else read_tokenizer(Path(name))
    if tokenizer.end_of_text is None:
        raise BadOption(f"The vocabulary in {name} has no <|endoftext|>, which separates documents in shards.")
    return tokenizer


def _move_in(making: MakeShards, out: Path) -> dict[str, int]:
    """Gives the shards their last names, in the order of the stretches; returns how many each split has."""
    shards = dict.fromkeys(OUT, 0)
    for number, stretch in enumerate(making.plan):
        split = SPLITS[stretch.fate]
        for name in making.counts(number)["shards"]:
            target = out / f"{split}-{shards[split]:05d}.safetensors"
            shards[split] += 1
            # A run that was killed here had moved some.
            if (made := making.shards(number) / name).exists():
                made.replace(target)
    return shards


def _sum(seconds: Iterable[Mapping[str, float]]) -> dict[str, float]:
    total: dict[str, float] = {}
    for one in seconds:
        for name, spent in one.items():
            total[name] = total.get(name, 0.0) + spent
    return {name: round(spent, 3) for name, spent in total.items()}


def _nothing_left(tally: Tally, problems: Problems) -> str:
    met = ", ".join(f"{kind} ({count:,})" for kind, count in sorted(problems.counts.items()))
    documents = tally.total(IN)[0]
    if not documents:
        return "The sources hold no document" + (f"; met were: {met}." if met else ".")
    took = ", ".join(f"{step} ({tally.total(step)[0]:,})" for step in tally.dropped())
    return f"Nothing is left of {documents:,} documents. What took them: {took}."
