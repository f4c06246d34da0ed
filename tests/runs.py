"""Small training runs in processes of their own, for tests that kill, stop and starve them; and how runs are compared.

A process is forked from a server that has imported everything already, which takes milliseconds where starting Python
takes seconds. What it runs is the command line, or a function of a test.
"""

import faulthandler
import json
import multiprocessing
import multiprocessing.connection
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from torch.distributed import TCPStore

from gpt2.checkpoint import read_directory
from gpt2.training import TrainingOptions

POSIX = pytest.mark.skipif(os.name != "posix", reason="processes and signals as POSIX has them")

TEXT = "the quick brown fox jumps over the lazy dog. " * 60

# Ten steps with both dropouts, micro-batches and validation.
SHORT = TrainingOptions(
    n_layer=1,
    n_head=2,
    n_embd=16,
    context=16,
    vocab_size=270,
    dropout=0.1,
    attention_dropout=0.1,
    steps=10,
    batch_size=4,
    micro_batch_size=2,
    warmup_steps=2,
    eval_every=4,
    sample_every=5,
    save_every=4,
    threads=1,
)
# Everything that a resumed run has to take up again: the guard and the best, too.
OPTIONS = replace(
    SHORT,
    steps=24,
    learning_rate=0.03,
    skip_spikes=1.5,
    eval_every=3,
    eval_tokens=150,
    sample_every=0,
    save_every=2,
    keep=2,
    trackers="none",
)

TIMES = ("seconds", "tokens_per_second", "flops_per_second", "mfu", "memory")

_processes = multiprocessing.get_context("forkserver" if os.name == "posix" else "spawn")
if os.name == "posix":
    _processes.set_forkserver_preload(
        ["tests.runs", "gpt2.cli", "gpt2.training.loop", "gpt2.generation", "torch._dynamo", "matplotlib.figure"]
    )


def write_text(folder: Path) -> Path:
    file = folder / "text.txt"
    file.write_text(TEXT)
    return file


def arguments(options: TrainingOptions, data: Path, out: Path) -> list[str]:
    """The command line of a new run."""
    recipe = data.parent / f"{out.name}.toml"
    recipe.write_text(options.to_toml())
    return ["train", str(data), "--out", str(out), "--recipe", str(recipe)]


@dataclass
class Child:
    """A process on its way; `said`: the file with what it prints."""

    process: Any
    said: Path

    def wait(self, seconds: float = 120) -> int:
        self.process.join(seconds)
        if self.process.exitcode is None:
            self.stop()
            raise AssertionError(f"still running after {seconds} s; it said: {self.output}")
        return int(self.process.exitcode)

    def stop(self) -> None:
        """Ends it, and has it say first where it was."""
        if self.process.exitcode is None:
            self.signal(signal.SIGABRT)  # faulthandler's
            self.process.join(5)
            self.process.kill()

    def signal(self, number: int) -> None:
        os.kill(self.process.pid, number)

    @property
    def output(self) -> str:
        return self.said.read_text() if self.said.exists() else ""


def fork(said: Path, function: Callable[..., object], *values: object) -> Child:
    """Calls a function of a test module in a process of its own."""
    child = _processes.Process(target=_called, args=(said, function, *values), daemon=True)
    child.start()
    return Child(child, said)


def command(said: Path, *words: str, before: Callable[[], object] | None = None) -> Child:
    """`gpt2 WORDS` in a process of its own; `before` is called in it first."""
    return fork(said, _command, list(words), before)


def _called(said: Path, function: Callable[..., object], *values: object) -> None:
    handle = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    # Whatever the caller has (a shell's background job ignores Ctrl-C, `nohup` a closed terminal), this is a process at
    # a terminal.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    faulthandler.enable(handle, all_threads=True)
    code = function(*values)
    sys.stdout.flush()
    with suppress(OSError):  # where nobody reads
        sys.stderr.flush()
    os._exit(code if isinstance(code, int) else 0)


def _command(words: list[str], before: Callable[[], object] | None) -> int:
    from gpt2.cli import run

    if before is not None:
        before()
    return run(words)


@dataclass(frozen=True)
class Rank:
    """Makes a process one of several that train together, as torchrun would; `port`: where they meet."""

    rank: int
    size: int
    port: int

    def __call__(self) -> None:
        os.environ |= {"RANK": str(self.rank), "LOCAL_RANK": str(self.rank), "WORLD_SIZE": str(self.size)}
        os.environ |= {"LOCAL_WORLD_SIZE": str(self.size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(self.port)}
        # The store is the test's, as it is torchrun's.
        os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "True"


def meeting() -> TCPStore:
    """Where processes meet; kept open by whoever holds it.

    A port that was only seen to be free may be somebody else's when the first process opens it: it would fail, and the
    others would wait for it.
    """
    return TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)


def wait_all(children: Sequence[Child], seconds: float = 120) -> list[str]:
    """Waits for processes that wait for each other, and returns what each said. Where one fails, the others end."""
    end = time.monotonic() + seconds
    while (codes := [child.process.exitcode for child in children]) != [0] * len(children):
        if any(codes) or time.monotonic() > end:
            for child in children:
                child.process.join(10 if any(codes) else 0)  # for its own message
                child.stop()
            raise AssertionError(
                f"exit codes {codes} after all or {seconds} s; they said: {[c.output for c in children]}"
            )
        multiprocessing.connection.wait([c.process.sentinel for c in children if c.process.exitcode is None], 1)
    return [child.output for child in children]


class KillAt:
    """Kills this process with SIGKILL right before its n-th file operation in a run's folder.

    What lies on disk changes by such operations alone, so these are all the places where a kill can make a difference,
    but for a file of which a part is written.
    """

    def __init__(self, run: Path, number: int, guard_window: int = 8) -> None:
        self.run, self.left, self.guard_window = str(run), number, guard_window

    def __call__(self) -> None:
        shorten_guard(self.guard_window)
        sys.addaudithook(self._heard)

    def _heard(self, event: str, values: tuple[Any, ...]) -> None:
        if event == "open":
            if not str(values[0]).startswith(self.run):
                return
        elif event not in ("os.rename", "os.mkdir", "os.rmdir", "os.remove", "os.chmod"):
            return
        self.left -= 1
        if self.left <= 0:
            os.kill(os.getpid(), signal.SIGKILL)


def shorten_guard(window: int = 8) -> None:
    """The guard remembers 128 steps, more than these runs have."""
    from gpt2.training import guard

    guard.WINDOW = window


def wait_for(condition: Callable[[], object], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.0005)


# Looking at what a run left


def metrics(run: Path, without: tuple[str, ...] = TIMES) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in without} for line in lines]


def names(run: Path) -> list[str]:
    """Checkpoints there are."""
    folder = run / "checkpoints"
    return sorted(path.name for path in folder.iterdir() if path.name.startswith("step-")) if folder.is_dir() else []


def litter(run: Path) -> list[str]:
    # os.walk, because a run that is still writing renames and removes folders while they are listed.
    return [
        f"{folder}/{name}"
        for folder, folders, files in os.walk(run)
        for name in (*folders, *files)
        if name.endswith(".tmp")
    ]


def check_whole(run: Path) -> int:
    """Every checkpoint with a name loads, and every pointer names one; returns how many there are."""
    for name in names(run):
        path = run / "checkpoints" / name
        network, tokenizer = read_directory(path)
        assert network.config.vocab_size == tokenizer.vocab_size
        moments = load_file(path / "training" / "optimizer.safetensors")
        # The first step may have been skipped as a spike; after that every parameter has a state.
        assert {key.split("/")[0] for key in moments} in (set(), {name for name, _ in network.named_parameters()})
        state = json.loads((path / "training" / "state.json").read_text())
        assert f"step-{state['step']:06d}" == name
    for pointer in ("latest", "best"):
        if (run / pointer).exists():
            assert (run / pointer).read_text().strip() in names(run), pointer
    return len(names(run))


def assert_same(run: Path, expected: Path) -> None:
    """Two runs are bit for bit the same: checkpoints, pointers, and all that was measured but times."""
    assert names(run) == names(expected), (names(run), names(expected))
    for pointer in ("latest", "best"):
        assert (run / pointer).read_text() == (expected / pointer).read_text()
    for name in names(run):
        ours, theirs = run / "checkpoints" / name, expected / "checkpoints" / name
        files = sorted(str(path.relative_to(theirs)) for path in theirs.rglob("*") if path.is_file())
        assert files == sorted(str(path.relative_to(ours)) for path in ours.rglob("*") if path.is_file())
        for file in files:
            if not file.endswith("state.json"):
                assert (ours / file).read_bytes() == (theirs / file).read_bytes(), f"{name}/{file}"
        states = [json.loads((folder / "training" / "state.json").read_text()) for folder in (ours, theirs)]
        assert states[0] | {"seconds": 0} == states[1] | {"seconds": 0}
    for line, other in zip(metrics(run), metrics(expected), strict=True):
        assert line == other, (line, other)
    assert not litter(run)


@contextmanager
def small_disk(place: Path, size: str) -> Iterator[Path]:
    """A file system of its own that is so small; skips the test where none can be mounted."""
    place.mkdir()
    mount = shutil.which("mount")
    words = [str(mount), "-t", "tmpfs", "-o", f"size={size}", "none", str(place)]
    done = subprocess.run(words, capture_output=True, text=True, check=False) if mount else None
    if done is None or done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip() if done else 'no mount'}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def free(place: Path) -> int:
    return shutil.disk_usage(place).free


def fill(disk: Path, leave: int) -> Path:
    """Fills a disk but for so many bytes."""
    filler = disk / "filler"
    # A run may write at the same time: then the disk is full before all of it is there.
    with suppress(OSError):
        filler.write_bytes(bytes(max(0, free(disk) - leave)))
    return filler
