"""Megabytes of text per second and core that become GPT-2's ids: the extra `fast` beside tiktoken and others, in turn.

python -m benchmarks.tokenizers FILES [--megabytes 300] [--memory-megabytes 1000]

FILES are .jsonl, .jsonl.zst (field text) or .txt. Every portion of 8 MB goes through each program before the next one
is read, so that a noisy machine hits all alike; ids are compared; seconds are the processor's. "first" is text that no
program has seen, "again" is the first tenth once more. Then each program reads --memory-megabytes in a process of its
own, half of it real text and half random words, and says how much memory it holds. Prints JSON lines.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from gpt2.tokenizer import Tokenizer, write_tokenizer

PORTION = 8_000_000
SLOW = {"tokenizers"}  # these read a tenth
Encode = Callable[[list[str]], np.ndarray]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--megabytes", type=int, default=300)
    parser.add_argument("--memory-megabytes", type=int, default=1000)
    parser.add_argument("--memory", help=argparse.SUPPRESS)
    options = parser.parse_args()
    os.environ |= {"RAYON_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    if options.memory:
        print(json.dumps(memory(options.memory, options.files, options.memory_megabytes)))
        return
    names = [name for name in PROGRAMS if installed(name)]
    print(json.dumps(speed(names, options.files, options.megabytes)), flush=True)
    for name in names:
        if name not in SLOW:
            arguments = [*map(str, options.files), "--memory", name]
            arguments += ["--memory-megabytes", str(options.memory_megabytes)]
            subprocess.run([sys.executable, "-m", "benchmarks.tokenizers", *arguments], check=True)


def speed(names: list[str], files: list[Path], megabytes: int) -> dict[str, Any]:
    programs = {name: PROGRAMS[name]() for name in names}
    seconds = {name: {"first": 0.0, "again": 0.0} for name in names}
    read = {name: {"first": 0, "again": 0} for name in names}
    wrong = dict.fromkeys(names, 0)
    kept: list[list[str]] = []
    total = 0

    def take(documents: list[str], kind: str, those: list[str]) -> None:
        size = sum(len(text.encode()) for text in documents)
        results = {}
        for name in those:
            started = time.process_time()
            results[name] = programs[name](documents)
            seconds[name][kind] += time.process_time() - started
            read[name][kind] += size
        for name in those:
            wrong[name] += not np.array_equal(results[name], results["tiktoken"])

    for documents in portions(files):
        slow = total < megabytes * 1e5
        take(documents, "first", [name for name in names if slow or name not in SLOW])
        if slow:
            kept.append(documents)
        total += sum(map(len, documents))
        if total >= megabytes * 1e6:
            break
    for documents in kept:
        take(documents, "again", names)
    rates = {n: {k: read[n][k] / max(seconds[n][k], 1e-9) / 1e6 for k in seconds[n]} for n in names}
    return {
        "work": "text to GPT-2's ids, one core",
        "megabytes": round(total / 1e6),
        "megabytes_per_second": {n: {k: round(rate, 1) for k, rate in rates[n].items()} for n in names},
        "times_tiktoken": {n: {k: round(rates[n][k] / rates["tiktoken"][k], 1) for k in rates[n]} for n in names},
        "portions_with_other_ids": wrong,
        "versions": {n: version(n if n != "fast" else "fastokens") for n in names},
        "machine": platform.processor() or platform.machine(),
    }


def memory(name: str, files: list[Path], megabytes: int) -> dict[str, Any]:
    encode = PROGRAMS[name]()
    held, total = [round(resident())], 0
    random = np.random.default_rng(0)
    real = portions(files)
    while total < megabytes * 1e6:
        if total < megabytes * 5e5:
            documents = next(real, None)
            if documents is None:
                real = portions(files)
                continue
        else:
            # Words of eight letters that no program has met before.
            letters = random.integers(97, 123, (PORTION // 8000, 8000), dtype=np.uint8)
            letters[:, ::9] = 32
            documents = [row.tobytes().decode() for row in letters]
        before = total // 10**8
        encode(documents)
        total += sum(map(len, documents))
        if total // 10**8 > before:
            held.append(round(resident()))
    return {
        "work": "memory after each 100 MB of text, in MB; the second half is random words",
        "program": name,
        "held": held,
    }


def resident() -> float:
    """Megabytes that this process holds."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def portions(files: list[Path]) -> Iterator[list[str]]:
    """Documents of at most 5,000 characters, as web pages have, about 8 MB at a time."""
    documents: list[str] = []
    size = 0
    for file in files:
        for text in texts(file):
            for start in range(0, len(text), 5000):
                documents.append(text[start : start + 5000])
                size += len(documents[-1])
            if size >= PORTION:
                yield documents
                documents, size = [], 0
    if documents:
        yield documents


def texts(file: Path) -> Iterator[str]:
    if file.suffix == ".txt":
        yield file.read_text(encoding="utf-8")
        return
    if file.suffix == ".zst":
        import pyarrow

        with pyarrow.input_stream(str(file), compression="zstd") as stream:
            lines = stream.read().splitlines()
    else:
        lines = file.read_bytes().splitlines()
    for line in lines:
        yield json.loads(line)["text"]


def fast() -> Encode:
    from gpt2.tokenizer.fast import FastEncoder

    encoder = FastEncoder(Tokenizer.gpt2())
    return lambda documents: np.concatenate(encoder.encode_batch(documents))


def tiktoken() -> Encode:
    tokenizer = Tokenizer.gpt2()
    return lambda documents: np.concatenate([tokenizer.encode_array(text) for text in documents])


def tokenizers() -> Encode:
    import tempfile

    from tokenizers import Tokenizer as Theirs

    with tempfile.TemporaryDirectory() as folder:
        write_tokenizer(Tokenizer.gpt2(), Path(folder))
        theirs = Theirs.from_file(str(Path(folder) / "tokenizer.json"))
    theirs.encode_special_tokens = True
    return lambda documents: np.concatenate([e.ids for e in theirs.encode_batch_fast(documents)])


def gigatoken() -> Encode:
    import gigatoken

    from gpt2.tokenizer.fast import _plain_json

    encoder = gigatoken.Tokenizer.from_json(_plain_json(Tokenizer.gpt2())).backend
    return lambda documents: np.asarray(encoder.encode_batch(documents, parallel=False).layout.content.data)


PROGRAMS: dict[str, Callable[[], Encode]] = {
    "fast": fast,
    "tiktoken": tiktoken,
    "tokenizers": tokenizers,
    "gigatoken": gigatoken,
}


def installed(name: str) -> bool:
    from importlib.util import find_spec

    return find_spec("fastokens" if name == "fast" else name) is not None


if __name__ == "__main__":
    main()
