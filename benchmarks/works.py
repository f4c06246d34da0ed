"""The works of the speed benchmark that living workers take turns at: decode, prefill, streams, and a busy core.

Every turn has prompts of its own, the same for all programs, so that nobody answers from what it has read before.
Turn 0 warms up and is not counted. Who goes first changes from turn to turn.
"""

import random
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from benchmarks.workers import Failed, Worker

VOCABULARY = 50256  # without end of text


@dataclass(frozen=True, slots=True)
class Scale:
    """How much is done. repeats: counted turns; long_repeats: of works that take long."""

    prompt: int = 32
    tokens: int = 128
    prefills: tuple[int, ...] = (512, 1024)
    streams: int = 64
    slots: int = 32
    calls: int = 1000
    repeats: int = 5
    long_repeats: int = 3


@dataclass(slots=True)
class Row:
    """One program at one work. seconds: of every counted turn; amount: tokens of a turn; reason: why there are none."""

    work: str
    case: str
    width: str
    peer: str
    amount: int
    seconds: list[float] = field(default_factory=list)
    reason: str | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def rate(self) -> float | None:
        """Tokens a second, by the median turn."""
        return self.amount / statistics.median(self.seconds) if self.seconds else None


def prompt(seed: int, length: int) -> list[int]:
    """Random token ids."""
    return random.Random(seed).choices(range(VOCABULARY), k=length)


def decode(workers: Sequence[Worker], width: str, scale: Scale, beside: str = "") -> list[Row]:
    """One text: 32 tokens read, 128 written, greedy. A run of one token beside it tells the pace after the prompt."""
    case = beside or f"{scale.prompt} + {scale.tokens} tokens"
    rows = {worker: Row("decode", case, width, worker.peer.name, scale.tokens) for worker in workers}
    firsts: dict[Worker, list[float]] = {worker: [] for worker in workers}
    ids: dict[Worker, list[int]] = {}

    def run(worker: Worker, turn: int) -> float:
        first, _ = worker.ask("decode", prompts=[prompt(2 * turn, scale.prompt)], tokens=1)
        seconds, result = worker.ask("decode", prompts=[prompt(2 * turn + 1, scale.prompt)], tokens=scale.tokens)
        if len(result[0]) != scale.tokens:
            raise Failed(f"it wrote {len(result[0])} tokens, not {scale.tokens}")
        if turn:
            firsts[worker].append(first)
        else:
            ids[worker] = result[0]
        return seconds

    _take_turns(rows, run, scale.long_repeats if beside else scale.repeats)
    reference = next((ids[worker] for worker in workers if worker.peer.name == "transformers" and worker in ids), None)
    for worker, row in rows.items():
        if row.seconds:
            after = statistics.median(row.seconds) - statistics.median(firsts[worker])
            row.extra["first_token_seconds"] = statistics.median(firsts[worker])
            row.extra["tokens_per_second_after_prompt"] = (scale.tokens - 1) / after
        if worker in ids and reference:
            row.extra["ids_as_transformers"] = _common(ids[worker], reference)
    return list(rows.values())


def prefill(workers: Sequence[Worker], width: str, scale: Scale, reference: list[float] | None) -> list[Row]:
    """A text read at once: every position's logits, or the last one's only."""
    rows: list[Row] = []
    for length in scale.prefills:
        for every in (True, False):
            case = f"{length} tokens, {'all' if every else 'last'} logits"
            group = {worker: Row("prefill", case, width, worker.peer.name, length) for worker in workers}

            def run(worker: Worker, turn: int, length: int = length, every: bool = every, group: Any = group) -> float:
                check = turn == 0 and reference is not None and length == scale.prefills[0]
                seconds, last = worker.ask("prefill", ids=prompt(1000 + turn, length), every=every, quiet=not check)
                if check and last:
                    group[worker].extra["error"] = _distance(last, reference or [])
                return seconds

            _take_turns(group, run, scale.repeats)
            rows += group.values()
    return rows


def streams(workers: Sequence[Worker], width: str, scale: Scale) -> list[Row]:
    """64 texts, 32 at a time: 8 to 256 tokens to read, 32 to 160 to write. Counted: tokens written, of all together."""
    lengths = random.Random(7)
    reads = [lengths.randint(8, 256) for _ in range(scale.streams)]
    writes = [lengths.randint(32, 160) for _ in range(scale.streams)]
    case = f"{scale.streams} texts, {scale.slots} at a time"
    rows = {worker: Row("streams", case, width, worker.peer.name, sum(writes)) for worker in workers}

    def run(worker: Worker, turn: int) -> float:
        prompts = [prompt(10_000 + turn * scale.streams + i, n) for i, n in enumerate(reads)]
        tokens = writes if turn else [min(8, n) for n in writes]
        seconds, result = worker.ask("streams", prompts=prompts, tokens=tokens, slots=scale.slots)
        if [len(row) for row in result] != tokens:
            raise Failed("it did not write the tokens that were asked for")
        return seconds

    _take_turns(rows, run, scale.long_repeats)
    return list(rows.values())


def busy(workers: Sequence[Worker], width: str, scale: Scale) -> list[Row]:
    """`decode` while another process keeps one core busy."""
    with _spinning():
        rows = decode(workers, width, scale, "beside a busy core")
    for row, worker in zip(rows, workers, strict=True):
        row.work = "busy"
        row.extra["waiting"] = worker.waiting
    return rows


@contextmanager
def _spinning() -> Iterator[None]:
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def _take_turns(rows: dict[Worker, Row], run: Callable[[Worker, int], float], repeats: int) -> None:
    workers = list(rows)
    for turn in range(repeats + 1):
        for worker in workers[turn % len(workers) :] + workers[: turn % len(workers)]:
            row = rows[worker]
            if row.reason is not None:
                continue
            try:
                seconds = run(worker, turn)
            except Failed as failure:
                row.reason, row.seconds = str(failure), []
                continue
            if turn:
                row.seconds.append(seconds)


def _common(ids: list[int], reference: list[int]) -> int:
    """How many ids agree from the start."""
    return next((i for i, pair in enumerate(zip(ids, reference, strict=True)) if pair[0] != pair[1]), len(ids))


def _distance(logits: list[float], reference: list[float]) -> float:
    """Root mean square of the difference, in standard deviations of the reference."""
    squares = sum((a - b) ** 2 for a, b in zip(logits, reference, strict=True)) / len(reference)
    return float((squares**0.5) / statistics.pstdev(reference))
