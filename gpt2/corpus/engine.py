"""Who runs the tasks of a stage: this process, a pool of processes, or Ray. Which of them changes nothing that is made.

A task is a number; running it leaves a folder behind, whole or not at all, and a task whose folder is there is not run
again. That is all that restarting needs, so the engines keep no books of their own. The pool is Python's; Ray's workers
are run by datatrove. Workers and the process that started them talk by files in a folder that is made for one run, and
whose end is the workers' end: where it is gone, nobody waits for them.
"""

import contextlib
import importlib.util
import json
import logging
import multiprocessing
import os
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, Literal, Protocol

from gpt2 import errors
from gpt2.errors import BadOption, Error, Unavailable

Engine = Literal["local", "ray"]
ENGINES: tuple[Engine, ...] = ("local", "ray")
# In a run's folder: a worker met an error, so no other begins a task.
_STOP = "stop"


class Task(Protocol):
    """The numbered tasks of one stage. Picklable: it goes to other processes, and with Ray to other machines."""

    def __call__(self, number: int, tell: Callable[[int], None]) -> None:
        """Does one task, and now and then tells how many of its bytes are done."""

    def finished(self, number: int) -> bool:
        """Whether a task's folder is there."""

    def sizes(self) -> Sequence[int]:
        """Bytes of each task, for progress."""


def check_engine(engine: str, workers: int | None) -> int:
    """How many workers there will be. Raises BadOption for absurd values, Unavailable for what is not installed."""
    if engine not in ENGINES:
        raise BadOption(f"engine is {engine!r}; it must be {' or '.join(ENGINES)}.")
    if workers is not None and workers < 1:
        raise BadOption(f"workers is {workers}; it must be at least 1.")
    if engine == "ray":
        _need("ray", "ray")
        _need("datatrove", "corpus")
    return workers or _cores()


def run(task: Task, engine: Engine, workers: int, folder: Path, progress: Callable[[int], None]) -> int:
    """Runs what is not finished of a stage; returns how many tasks were finished before.

    folder: for what workers tell: how far they are, and what went wrong; what earlier runs left there is deleted.
    progress: called with the bytes done. Raises what a task raised, and Unavailable where a worker was killed.
    """
    sizes = task.sizes()
    pending = [number for number in range(len(sizes)) if not task.finished(number)]
    before = len(sizes) - len(pending)
    if not pending:
        return before
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    own = Path(tempfile.mkdtemp(dir=folder))
    step = _Step(task, tuple(pending), own)
    try:
        with _watching(task, pending, own, progress):
            if engine == "local" and (workers == 1 or len(pending) == 1):
                step(None, 0, 1)
                return before
            try:
                (_run_local if engine == "local" else _run_ray)(step, min(workers, len(pending)))
            except Exception:
                _raise_told(own)
                raise
        # Ray's executor logs what failed and ends as if nothing had.
        _raise_told(own)
        lost = [number for number in pending if not task.finished(number)]
        if lost:
            raise Error(f"{len(lost)} tasks were not finished, and their workers left no message; run it again.")
    finally:
        shutil.rmtree(own, ignore_errors=True)
    return before


@dataclass(frozen=True, slots=True)
class _Step:
    """A worker's whole stage, called as datatrove calls it: with documents (none), a rank and the number of ranks.

    Workers take tasks one by one, whoever is free the next. With a rank of datatrove for each task, Ray would start
    processes for each, which takes longer than many a task.
    """

    task: Task
    numbers: tuple[int, ...]
    folder: Path

    def __reduce__(self) -> tuple[Any, ...]:
        return _arrived, (self.task, self.numbers, self.folder)

    def __call__(self, data: Any, rank: int, world_size: int) -> None:
        for number in self.numbers:
            if (self.folder / _STOP).exists() or not self.folder.is_dir():
                return
            if self._take(number, rank):
                self._do(number)

    def _take(self, number: int, rank: int) -> bool:
        """Whether a task is this worker's. One that was lost comes back with its rank, and finds what it had taken."""
        claim = self.folder / f"taken-{number}"
        try:
            with claim.open("x", encoding="ascii") as file:
                file.write(str(rank))
        except FileExistsError:
            return claim.read_text(encoding="ascii") == str(rank) and not self.task.finished(number)
        return True

    def _do(self, number: int) -> None:
        told = self.folder / f"progress-{number}"
        next_time = time.monotonic()

        def tell(done: int) -> None:
            nonlocal next_time
            if time.monotonic() >= next_time:
                next_time = time.monotonic() + 0.5
                # Progress is no reason to fail.
                with contextlib.suppress(OSError):
                    told.write_text(str(done), encoding="ascii")

        try:
            self.task(number, tell)
        except (Error, OSError) as error:
            self._tell_error(number, explained(error))
            raise explained(error) from None
        except Exception:
            self._stop()
            raise
        finally:
            with contextlib.suppress(OSError):
                told.unlink(missing_ok=True)

    def _tell_error(self, number: int, error: Error) -> None:
        half = self.folder / f"half-{number}"
        # Where the folder is gone, so is whoever would read it; it must not come back.
        with contextlib.suppress(OSError):
            half.write_text(json.dumps([type(error).__name__, str(error)]), encoding="utf-8")
            half.replace(self.folder / f"error-{number}")
        self._stop()

    def _stop(self) -> None:
        with contextlib.suppress(OSError):
            (self.folder / _STOP).touch()


def _arrived(task: Task, numbers: tuple[int, ...], folder: Path) -> _Step:
    """A step unpickled in a worker, where datatrove's log of every task would be a screenful each."""
    from loguru import logger

    logger.disable("datatrove")
    return _Step(task, numbers, folder)


def explained(error: Error | OSError) -> Error:
    """An error of the file system in a sentence; ours as they are."""
    if isinstance(error, Error):
        return error
    where = f"{error.filename}: " if error.filename is not None else ""
    return Unavailable(
        f"{where}{error.strerror or error}. Make room or mend that, and run the same command again: "
        "what is finished is kept."
    )


def _raise_told(folder: Path) -> None:
    """Raises the error of the first task that left one."""
    told = sorted(folder.glob("error-*"), key=lambda path: int(path.name.partition("-")[2]))
    if told:
        name, message = json.loads(told[0].read_text(encoding="utf-8"))
        raise getattr(errors, name, Error)(message)


def _run_local(step: _Step, workers: int) -> None:
    # Not forked: the libraries that workers use have threads, which do not survive it.
    with ProcessPoolExecutor(
        workers, multiprocessing.get_context("spawn"), initializer=_begin_worker, initargs=(step.folder,)
    ) as pool:
        try:
            for future in [pool.submit(_work, step.task, step.numbers, step.folder, rank) for rank in range(workers)]:
                future.result()
        except BrokenProcessPool:
            raise Unavailable(
                "A worker was killed, perhaps for want of memory; run the same command again, with fewer --workers."
            ) from None
        except (KeyboardInterrupt, SystemExit):
            # They leave now, so that the pool has nobody to wait for.
            shutil.rmtree(step.folder, ignore_errors=True)
            raise


def _work(task: Task, numbers: tuple[int, ...], folder: Path, rank: int) -> None:
    _Step(task, numbers, folder)(None, rank, len(numbers))


def _begin_worker(folder: Path) -> None:
    """Makes a process end with the run that it works for, however that ends: a pool's workers would wait for ever."""
    # Ctrl-C reaches every process of a terminal; the first one says what is to be done.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None
    sentinel = parent.sentinel

    def watch() -> None:
        while not wait([sentinel], 0.1) and folder.is_dir():
            pass
        # What it was writing has a temporary name, and the next run deletes it.
        os._exit(1)

    threading.Thread(target=watch, name="corpus-parent", daemon=True).start()


def _run_ray(step: _Step, workers: int) -> None:
    from datatrove.executor.ray import RayPipelineExecutor
    from loguru import logger

    logger.disable("datatrove")
    with tempfile.TemporaryDirectory(prefix="gpt2-corpus-") as logs:
        RayPipelineExecutor([step], workers, workers, logging_dir=logs, skip_completed=False, mem_per_cpu_gb=0.5).run()


@contextlib.contextmanager
def opened(engine: Engine, workers: int) -> Iterator[None]:
    """Holds what an engine needs for all stages: Ray started here, or joined where RAY_ADDRESS names a cluster."""
    if engine == "local":
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    # A cluster has its own number of processors.
    here: dict[str, Any] = {} if os.environ.get("RAY_ADDRESS") else {"num_cpus": workers}
    ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR, **here)
    try:
        yield
    finally:
        ray.shutdown()


@contextlib.contextmanager
def _watching(task: Task, pending: list[int], folder: Path, progress: Callable[[int], None]) -> Iterator[None]:
    """Tells twice a second how many bytes are done: of tasks that are finished, and as far as others tell."""
    sizes = task.sizes()
    unfinished = set(pending)
    stop = threading.Event()

    def look() -> None:
        for number in list(unfinished):
            if task.finished(number):
                unfinished.discard(number)
        done = sum(sizes) - sum(sizes[number] for number in unfinished)
        told: list[Path] = []
        # The run may just have been ended, and its folder with it.
        with contextlib.suppress(OSError):
            told = list(folder.glob("progress-*"))
        for path in told:
            with contextlib.suppress(OSError, ValueError, IndexError):
                number = int(path.name.partition("-")[2])
                if number in unfinished:
                    done += min(sizes[number], int(path.read_text(encoding="ascii")))
        progress(done)

    def watch() -> None:
        while not stop.wait(0.5):
            look()

    look()
    thread = threading.Thread(target=watch, name="corpus-progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
    look()


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def _need(module: str, extra: str) -> None:
    if not _installed(module):
        raise Unavailable(f"The engine ray needs {module}: install the extra `{extra}` (see README), or use local.")
