"""Corpora: `python -m benchmarks.corpus FOLDER` for a folder of .jsonl(.gz|.zst) files with a field `text`.

    speed         MB of text per second of one core, whole builds and single stages, beside datatrove's and datasets'
    duplicates    recall and precision of near-duplicate removal on planted copies
    memory        resident memory of builds from larger and larger inputs, made of the folder's own words

Rates are by processor time of the whole process tree, so that a busy machine changes them little; seconds of the
clock stand beside them. Peers that are not installed are named as missing; `--peers PYTHON` runs them in another
environment.
"""

import argparse
import importlib.util
import json
import multiprocessing
import os
import random
import re
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from gpt2.corpus import CorpusOptions, Problems, build, duplicates
from gpt2.corpus.report import size
from gpt2.corpus.sources import find, read

SHARES = (0.01, 0.05, 0.1, 0.2)


def texts(folder: Path, most_bytes: int) -> Iterator[str]:
    """Documents of the folder up to some bytes."""
    left = most_bytes
    for source in find([str(folder)]):
        for document in read(source, Problems()):
            if left <= 0:
                return
            left -= len(document.text.encode())
            yield document.text


def say(**values: object) -> None:
    print(json.dumps(values), flush=True)


# Speed


def sample(folder: Path, most_bytes: int, into: Path) -> tuple[Path, int]:
    """A plain .jsonl file of the first documents, and the bytes of their text."""
    path = into / "sample.jsonl"
    total = 0
    with path.open("w", encoding="utf-8") as file:
        for text in texts(folder, most_bytes):
            total += len(text.encode())
            file.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
    return path, total


def ours(path: Path, out: Path, **values: object) -> None:
    fast = bool(values.pop("fast", False))
    build([str(path)], out, CorpusOptions(**values), workers=1, fast=fast)  # type: ignore[arg-type]


def datatrove_tokens(path: Path, out: Path) -> None:
    """datatrove's reader and its tokenizer stage, one task, documents not shuffled."""
    from datatrove.executor.local import LocalPipelineExecutor
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.tokens import DocumentTokenizer
    from loguru import logger

    from gpt2.tokenizer import Tokenizer, write_tokenizer

    logger.remove()
    logger.disable("datatrove")
    write_tokenizer(Tokenizer.gpt2(), out / "tokenizer")
    stage = DocumentTokenizer(
        str(out / "tokens"),
        str(out / "tokenizer" / "tokenizer.json"),
        eos_token="<|endoftext|>",
        shuffle_documents=False,
        batch_size=100,
    )
    reader = JsonlReader(str(path.parent), glob_pattern=path.name)
    LocalPipelineExecutor([reader, stage], 1, 1, logging_dir=str(out / "logs")).run()


def datatrove_signatures(path: Path, out: Path) -> None:
    """The first stage of datatrove's near-duplicate removal with its own settings, but for the hash: its xxhash fails
    with releases of that library from 4 on.
    """
    from datatrove.executor.local import LocalPipelineExecutor
    from datatrove.pipeline.dedup import MinhashDedupSignature
    from datatrove.pipeline.dedup.minhash import MinhashConfig
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.utils.hashing import HashConfig
    from loguru import logger

    logger.remove()
    logger.disable("datatrove")
    reader = JsonlReader(str(path.parent), glob_pattern=path.name)
    signing = MinhashDedupSignature(str(out / "sig"), MinhashConfig(hash_config=HashConfig(hash_fc="sha1")))
    LocalPipelineExecutor([reader, signing], 1, 1, logging_dir=str(out / "logs")).run()


def our_signatures(path: Path, out: Path) -> None:
    batch: list[bytes] = []
    for document in read(find([str(path)])[0], Problems()):
        batch.append(document.text.encode())
        if len(batch) == 256:
            duplicates.bands(duplicates.signatures(batch))
            batch = []
    duplicates.bands(duplicates.signatures(batch or [b""]))


def datasets_map(path: Path, out: Path) -> None:
    """Hugging Face's datasets.map with its fast tokenizer, batched, one process."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    import datasets
    from transformers import PreTrainedTokenizerFast

    from gpt2.tokenizer import Tokenizer, write_tokenizer

    datasets.disable_progress_bars()
    write_tokenizer(Tokenizer.gpt2(), out / "tokenizer")
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(out / "tokenizer" / "tokenizer.json"))
    data = datasets.load_dataset("json", data_files=str(path), split="train", cache_dir=str(out / "cache"))
    data.map(
        lambda rows: {"ids": tokenizer(rows["text"])["input_ids"]},
        batched=True,
        batch_size=100,
        remove_columns=["text"],
    )


RUNS: dict[str, tuple[Callable[..., None], dict[str, object], tuple[str, ...]]] = {
    "ours: whole build": (ours, {}, ("rensa",)),
    "ours: whole build, --fast": (ours, {"fast": True}, ("rensa", "fastokens")),
    "ours: --no-near": (ours, {"near": False}, ()),
    "ours: --no-near --fast": (ours, {"near": False, "fast": True}, ("fastokens",)),
    "ours: signatures alone": (our_signatures, {}, ("rensa",)),
    "datatrove: tokenizer stage": (datatrove_tokens, {}, ("datatrove",)),
    "datatrove: signatures alone": (datatrove_signatures, {}, ("datatrove", "spacy")),
    "datasets: map": (datasets_map, {}, ("datasets",)),
}


def one_run(name: str, path: Path) -> None:
    """In a process of its own: runs, and prints seconds of the processor and of the clock, without those of imports."""
    function, values, _ = RUNS[name]
    with tempfile.TemporaryDirectory() as out:
        # A first run on next to nothing loads what has to be loaded.
        tiny = Path(out) / "tiny.jsonl"
        tiny.write_text('{"text": "a word or two"}\n{"text": "and another document"}\n', encoding="utf-8")
        function(tiny, Path(out) / "tiny", **values)
        begun, clock = _processor(), time.perf_counter()
        function(path, Path(out) / "out", **values)
        print(json.dumps([_processor() - begun, time.perf_counter() - clock]))


def _processor() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def speed(folder: Path, megabytes: int, repeats: int, peers: str, only: str) -> None:
    with tempfile.TemporaryDirectory() as directory:
        path, total = sample(folder, megabytes * 10**6, Path(directory))
        results: dict[str, list[list[float]]] = {}
        for _ in range(repeats):
            # In turn, so that what else runs on the machine hits all alike.
            for name in (name for name in RUNS if re.search(only, name)):
                python = sys.executable if name.startswith("ours") else peers
                command = [python, "-m", "benchmarks.corpus", str(path), "--run", name]
                done = subprocess.run(
                    command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
                )
                if done.returncode == 0:
                    results.setdefault(name, []).append(json.loads(done.stdout.splitlines()[-1]))
                elif "not installed" in done.stdout:
                    say(run=name, missing=done.stdout.strip())
                else:
                    say(run=name, failed=done.stderr.strip().splitlines()[-1:])
        for name, times in results.items():
            processor, clock = (statistics.median(column) for column in zip(*times, strict=True))
            say(run=name, mb_per_core_second=round(total / 1e6 / processor, 2), processor=round(processor, 2),
                clock=round(clock, 2), text_mb=round(total / 1e6, 1), runs=len(times))  # fmt: skip


# Near duplicates


def planted(original: str, words: list[str], source: random.Random) -> Iterator[tuple[str, str]]:
    """Copies of a text, each with the name of what was done to it."""
    pieces = re.split(r"(\s+)", original)
    places = range(0, len(pieces), 2)
    for share in SHARES:
        copy = list(pieces)
        for place in source.sample(places, max(1, round(share * len(places)))):
            copy[place] = source.choice(words)
        yield f"{share:.0%} of the words changed", "".join(copy)
    yield "last tenth cut", "".join(pieces[: int(len(pieces) * 0.9)])
    yield "last third cut", "".join(pieces[: int(len(pieces) * 0.67)])
    paragraphs = original.split("\n")
    source.shuffle(paragraphs)
    yield "paragraphs reordered", "\n".join(paragraphs)
    yield (
        "a page's head and foot around it",
        "Home | About | Contact\n" + original + "\nAll rights reserved. Share this page.",
    )


def recall(folder: Path, count: int, thresholds: tuple[float, ...]) -> None:
    source = random.Random(0)
    pieces = [piece for text in texts(folder, 60 * 10**6) for piece in cut(text, 6000)]
    source.shuffle(pieces)
    # What stands in the corpus twice by itself is no planted copy.
    pieces = list(dict.fromkeys(pieces))[: 5 * count]
    words = sorted({word for piece in pieces[:200] for word in piece.split()})
    documents, kinds = list(pieces), [""] * len(pieces)
    for piece in pieces[:count]:
        for kind, copy in planted(piece, words, source):
            documents.append(copy)
            kinds.append(kind)
    minima = duplicates.signatures([text.encode() for text in documents])
    bands = duplicates.bands(minima)
    copies = len(documents) - len(pieces)
    for threshold in thresholds:
        dropped = duplicates.near(len(documents), iter(bands), lambda at: minima[at], threshold)
        by_kind = {
            kind: round(float(dropped[[place for place, one in enumerate(kinds) if one == kind]].mean()), 3)
            for kind in dict.fromkeys(kinds[len(pieces) :])
        }
        wrong = int(dropped[: len(pieces)].sum())
        right = int(dropped[len(pieces) :].sum())
        # Originals that went although nothing of them was planted: looked at, whether they are copies by themselves.
        true = sum(_is_copy(place, documents, minima, threshold) for place in range(len(pieces)) if dropped[place])
        say(threshold=threshold, originals=len(pieces), copies=copies, recall=by_kind, originals_dropped=wrong,
            of_these_true_copies=true, precision=round((right + true) / max(1, right + wrong), 4))  # fmt: skip


def _is_copy(place: int, documents: list[str], minima: object, threshold: float) -> bool:
    """Whether an original has, by its sets of runs of words and not by signatures, a like one before it."""
    mine = set(duplicates.shingles(documents[place].encode()).tolist())
    near = ((minima[:place] == minima[place]).mean(axis=1) >= threshold / 2).nonzero()[0]  # type: ignore[index]
    for other in near.tolist():
        theirs = set(duplicates.shingles(documents[other].encode()).tolist())
        if len(mine & theirs) >= (threshold - 0.05) * len(mine | theirs):
            return True
    return False


def cut(text: str, characters: int) -> list[str]:
    """A text in pieces of about so many characters, at line ends where there are any."""
    pieces, piece = [], ""
    for line in text.splitlines(keepends=True):
        piece += line
        if len(piece) >= characters:
            pieces.append(piece[: 2 * characters])
            piece = ""
    return [*pieces, piece] if len(piece) > characters // 4 else pieces


# Memory


def make(folder: Path, gigabytes: float, into: Path) -> None:
    """Files of documents of about 6 kB: pieces of the folder's with their words mixed, one in ten nearly a copy of one
    before, one in fifty a copy.
    """
    source = random.Random(0)
    pieces = [piece for text in texts(folder, 100 * 10**6) for piece in cut(text, 6000)]
    left = gigabytes * 1e9
    number = 0
    recent: list[str] = []
    while left > 0:
        with (into / f"{number:04d}.jsonl").open("w", encoding="utf-8") as file:
            written = 0
            while written < min(86e6, left):
                chance = source.random()
                if recent and chance < 0.12:
                    text = source.choice(recent)
                    if chance >= 0.02:
                        words = text.split(" ")
                        for _ in range(max(1, len(words) // 100)):
                            words[source.randrange(len(words))] = "changed"
                        text = " ".join(words)
                else:
                    words = source.choice(pieces).split(" ")
                    source.shuffle(words)
                    text = " ".join(words)
                    recent.append(text)
                    if len(recent) > 5000:
                        recent = recent[2500:]
                line = json.dumps({"text": text, "set": "made"}, ensure_ascii=False) + "\n"
                file.write(line)
                written += len(line.encode())
        left -= written
        number += 1


def memory(folder: Path, sizes: list[float], workers: int, fast: bool, scratch: Path) -> None:
    for gigabytes in sizes:
        with tempfile.TemporaryDirectory(dir=scratch) as directory:
            sources, out = Path(directory) / "sources", Path(directory) / "out"
            sources.mkdir()
            make(folder, gigabytes, sources)
            begun = time.perf_counter()
            command = [sys.executable, "-m", "gpt2", "corpus", "build", str(sources), "--out", str(out), "--json"]
            command += ["--workers", str(workers)] + ["--fast"] * fast
            process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
            peak, answer = _peaks(process)
            report = json.loads(answer)
            megabytes = {name: round(value / 1e6) for name, value in peak.items()}
            say(gigabytes=gigabytes, workers=workers, peak_mb=megabytes,
                seconds=round(time.perf_counter() - begun), stages=report["seconds"],
                steps={row["step"]: row["documents"] for row in report["steps"]})  # fmt: skip
            shutil.rmtree(sources)


def _peaks(process: "subprocess.Popen[str]") -> tuple[dict[str, float], str]:
    """The most resident memory of the main process, of any other of its tree, and of all together."""
    answer: list[str] = []
    reader = threading.Thread(target=lambda: answer.append(process.stdout.read() if process.stdout else ""))
    reader.start()
    peak = {"main": 0.0, "largest worker": 0.0, "all": 0.0}
    while reader.is_alive():
        resident = {pid: _resident(pid) for pid in _tree(process.pid)}
        others = [value for pid, value in resident.items() if pid != process.pid]
        now = {
            "main": resident.get(process.pid, 0),
            "largest worker": max(others, default=0),
            "all": sum(resident.values()),
        }
        peak = {name: max(value, now[name]) for name, value in peak.items()}
        reader.join(0.2)
    process.wait()
    return peak, answer[0]


def _tree(root: int) -> list[int]:
    found, parents = [root], {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text()
            except OSError:
                continue
            parents.setdefault(int(stat.rpartition(")")[2].split()[1]), []).append(int(entry.name))
    for pid in found:
        found += parents.get(pid, [])
    return found


def _resident(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize()
    except (OSError, IndexError):
        return 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--what", choices=["speed", "duplicates", "memory"], default="speed")
    parser.add_argument("--megabytes", type=int, default=40, help="text for speed")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--peers", default=sys.executable, help="the Python of an environment with the peers")
    parser.add_argument("--only", default="", help="runs whose name this expression finds")
    parser.add_argument("--count", type=int, default=500, help="originals of which copies are planted")
    parser.add_argument("--gigabytes", type=float, nargs="+", default=[0.5, 2, 5])
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--fast", action="store_true")
    parser.add_argument("--scratch", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--run", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.run:
        missing = [name for name in RUNS[given.run][2] if importlib.util.find_spec(name) is None]
        if missing:
            print(f"not installed: {', '.join(missing)}")
            sys.exit(1)
        one_run(given.run, given.folder)
    elif given.what == "speed":
        say(machine=f"{os.cpu_count()} cores", python=sys.version.split()[0], start=multiprocessing.get_start_method())
        speed(given.folder, given.megabytes, given.repeats, given.peers, given.only)
    elif given.what == "duplicates":
        recall(given.folder, given.count, (0.5, 0.6, 0.7, 0.8))
    else:
        say(scratch=str(given.scratch), free=size(shutil.disk_usage(given.scratch).free))
        memory(given.folder, given.gigabytes, given.workers, given.fast, given.scratch)


if __name__ == "__main__":
    main()
