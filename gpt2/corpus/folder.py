"""The corpus folder: whose it is while it is built, what it was begun with, and whether it is still what was written.

    train-00000.safetensors, ..., validation-00000.safetensors, ...     token shards
    tokenizer.json, vocab.json, merges.txt, tokenizer_config.json      their vocabulary
    corpus.json, corpus.md                                             what came in, was dropped, went out
    lock, building/                                                    while a build writes here

A folder with corpus.json is finished. Nothing here knows how a corpus is made.
"""

import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gpt2.corpus.options import CorpusOptions
from gpt2.corpus.report import OUT
from gpt2.corpus.sources import Source
from gpt2.errors import BadData, BadOption, BadTokenizer, Busy
from gpt2.files import check_writable, is_temporary, write_atomically
from gpt2.tokenizer import Tokenizer, read_tokenizer

FORMAT = "gpt2-corpus 1"
# Settings that tell of the input, which nobody wants to read in a message.
_INPUT = ("sources", "files", "source_bytes", "source_digest")


def settings_of(
    given: Sequence[str], sources: Sequence[Source], options: CorpusOptions, tokenizer: Tokenizer | None
) -> dict[str, Any]:
    """What two runs must have in common to work on one folder."""
    digest = hashlib.sha256()
    for source in sources:
        changed = 0 if source.kind == "hub" else Path(source.where).stat().st_mtime_ns
        digest.update(json.dumps([source.name, source.kind, source.bytes, changed]).encode())
    links = None
    if options.filters.links is not None:
        with options.filters.links.open("rb") as file:
            links = hashlib.file_digest(file, "sha256").hexdigest()
    return {
        **options.to_dict(),
        "tokenizer": tokenizer.fingerprint() if tokenizer else None,
        "sources": list(given),
        "files": len(sources),
        "source_bytes": sum(source.bytes for source in sources),
        "source_digest": digest.hexdigest(),
        "links_digest": links,
    }


def check_folder(out: Path) -> None:
    """Raises BadOption if something else is in the folder, or if it cannot be written."""
    if out.exists() and not out.is_dir():
        raise BadOption(f"{out} is a file; choose another --out.")
    names = {path.name for path in out.iterdir()} if out.is_dir() else set()
    if names - {"lock"} and not _is_ours(out):
        raise BadOption(f"{out} holds something else, such as {min(names - {'lock'})}; choose another --out.")
    try:
        check_writable(out)
    except OSError as error:
        raise BadOption(f"{out} cannot be written: {error.filename}: {error.strerror}. Choose another --out.") from None


def _is_ours(out: Path) -> bool:
    """Whether a build was begun or finished in a folder that is not empty; others have folders named building too."""
    building = out / "building"
    if (out / "corpus.json").is_file() or (building / "settings.json").is_file():
        return True
    # Killed while it wrote the settings.
    return building.is_dir() and all(is_temporary(path) for path in building.iterdir())


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Holds the folder, which is made, against other builds. Raises Busy if one has it."""
    from filelock import FileLock, Timeout

    out.mkdir(parents=True, exist_ok=True)
    lock = FileLock(out / "lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise Busy(f"Another process is building in {out}; wait for it, or choose another --out.") from None
    try:
        yield
    finally:
        lock.release()


def begun(out: Path, settings: dict[str, Any], sources: Sequence[Source]) -> dict[str, Any] | None:
    """The report of a corpus that is finished; else None. Raises BadOption if it was begun with other settings.

    sources: what the settings' sources are, to name one that has changed.
    """
    finished = stored(out)
    path = out / "building" / "settings.json"
    if finished is not None:
        before = finished["settings"]
    elif path.is_file():
        before = json.loads(path.read_text(encoding="utf-8"))
    else:
        return None
    # As JSON has it: tuples are lists there.
    now = json.loads(json.dumps(settings))
    changed = [name for name in now if before.get(name) != now[name]]
    if changed:
        named = [
            f"{name.replace('_', '-')} was {before.get(name)} and is {now[name]}"
            for name in changed
            if name not in (*_INPUT, "links_digest")
        ]
        if "links_digest" in changed and "links" not in changed:
            named.append(f"what is in {now['links']} (--links) has changed since")
        if any(name in _INPUT for name in changed):
            since = (out / "corpus.json" if finished is not None else path).stat().st_mtime
            named.append(_other_sources(before, now, sources, since))
        raise BadOption(f"{out} was begun with other settings: {'; '.join(named)}. Choose another --out, or delete it.")
    if finished is not None:
        shutil.rmtree(out / "building", ignore_errors=True)
    return finished


def _other_sources(before: dict[str, Any], now: dict[str, Any], sources: Sequence[Source], since: float) -> str:
    """In what the sources are no longer those of a build, as far as it knows: it keeps no list of their files."""
    if before.get("sources") != now["sources"]:
        old, new = (" ".join(map(str, of.get("sources") or ["none"])) for of in (before, now))
        return f"the sources were {old} and are {new}"
    said = "the sources have changed since"
    counts = [(of.get("files", 0), of.get("source_bytes", 0)) for of in (before, now)]
    if counts[0] != counts[1]:
        (files, size), (files_now, size_now) = counts
        said += f": {files:,} files of {size:,} bytes then, {files_now:,} of {size_now:,} now"
    else:
        said += ", though not in size"
    local = (source for source in sources if source.kind != "hub")
    newer = next((source.name for source in local if Path(source.where).stat().st_mtime > since), None)
    return f"{said}; newer than the build is {newer}" if newer else said


def begin(out: Path, settings: dict[str, Any]) -> None:
    """Makes the folder ready for a build with these settings, or for going on with it."""
    building = out / "building"
    # What a killed process left half-written.
    for stale in building.rglob(".*.tmp"):
        shutil.rmtree(stale, ignore_errors=True)
    if not (building / "settings.json").is_file():
        write_atomically(building / "settings.json", json.dumps(settings).encode())


def stored(out: Path) -> dict[str, Any] | None:
    """What corpus.json says; None without one. Raises BadData for a damaged one."""
    path = out / "corpus.json"
    if not path.is_file():
        return None
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        known = report["format"] == FORMAT
    except (ValueError, KeyError, TypeError, RecursionError):
        known = False
    if not known:
        raise BadData(f"{path} is damaged, or of another program or version: its format is not {FORMAT!r}.")
    missing = [name for name in _NEEDED if name not in report]
    inner = (("tokenizer", "fingerprint", str), ("tokenizer", "vocab_size", int), ("total", "tokens", int))
    for part, name, kind in inner:
        value = report.get(part)
        if not isinstance(value, dict) or not isinstance(value.get(name), kind):
            missing.append(f"{name} of {part}")
    if missing:
        raise BadData(f"{path} is damaged: it does not say {missing[0]}. Fetch it again, or build the corpus again.")
    return dict(report)


# What is read of corpus.json, or told from it.
_NEEDED = ("settings", "tokenizer", "total", "sets", "steps", "problems", "seconds", "worker_seconds")


def check(folder: Path) -> dict[str, Any]:
    """Reads every block of a corpus folder; returns what is in it.

    `splits`: for train and validation shards, documents, tokens and bytes of text; `damage`: a sentence for whatever is
    not what was written. Raises BadData if there is no corpus.
    """
    from gpt2.shards import listed_shards, open_shards, shard_paths

    report = stored(folder)
    if report is None:
        if not folder.is_dir():
            raise BadData(f"{folder} is no corpus: there is no such folder.")
        begun = " It was begun and not finished: run its `gpt2 corpus build` again." * (folder / "building").is_dir()
        raise BadData(f"{folder} is no finished corpus: it has no corpus.json.{begun}")
    damage: list[str] = []
    splits: dict[str, Any] = {}
    try:
        tokenizer = read_tokenizer(folder)
        if tokenizer.fingerprint() != report["tokenizer"]["fingerprint"]:
            damage.append(f"{folder}: its tokenizer is not the one that it was built with.")
        for split in OUT:
            if listed_shards(folder, split) is None:
                damage.append(f"{folder}: corpus.json does not say how many {split} shards there are.")
            if paths := shard_paths(folder, split):
                shards = open_shards(paths)
                shards.check_tokenizer(tokenizer)
                damage += shards.damage()
                splits[split] = {
                    "shards": len(shards.paths),
                    "documents": shards.document_count,
                    "tokens": len(shards),
                    "text_bytes": shards.text_bytes,
                }
    except (BadData, BadTokenizer) as error:
        damage.append(str(error))
    else:
        total = sum(split["tokens"] for split in splits.values())
        if total != report["total"]["tokens"]:
            damage.append(
                f"{folder}: its shards hold {total:,} tokens, and corpus.json says {report['total']['tokens']:,}."
            )
    return {
        "folder": str(folder),
        "tokenizer": report["tokenizer"],
        "splits": splits,
        "damage": damage,
        "report": report,
    }
