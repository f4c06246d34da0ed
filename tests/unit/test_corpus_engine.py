"""Who runs a build's tasks: two workers make what one makes, and workers, builds and machines that are killed.

What comes out of a build is in test_corpus_pipeline.py.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gpt2 import corpus
from gpt2.corpus import CorpusOptions, engine, parts, stages
from gpt2.errors import BadData, BadOption
from tests.unit.test_corpus_pipeline import PLAIN, Notes, documents, folder, needs_rensa, shard_bytes, small_parts

__all__ = ["documents", "folder", "small_parts"]


# A build by two workers, as a file: workers import it as well, and so find `stages` changed.
TWO_WORKERS = """
import multiprocessing, os, signal, sys, time
from pathlib import Path
from gpt2 import corpus
from gpt2.corpus import parts, stages
from gpt2.errors import Error
parts._PART_BYTES = 1
make = stages.make_filters
def changed(options):
    {change}
    return make(options)
stages.make_filters = changed
if __name__ == "__main__":
    try:
        corpus.build([sys.argv[1]], Path(sys.argv[2]), corpus.CorpusOptions(near=False), workers=2)
    except Error as error:
        print(type(error).__name__, error)
"""


@needs_rensa
def test_the_number_of_workers_changes_no_byte(folder, tmp_path, small_parts):
    for workers in (1, 2):
        corpus.build([str(folder)], tmp_path / str(workers), CorpusOptions(validation=0.1), workers=workers)
    assert shard_bytes(tmp_path / "1") == shard_bytes(tmp_path / "2")
    assert len(shard_bytes(tmp_path / "1")) == 2


def test_a_build_that_was_killed_goes_on_with_what_it_had(folder, tmp_path):
    """SIGKILL in the middle of the reading; the parts that were finished are not read again."""
    corpus.build([str(folder)], tmp_path / "whole", PLAIN, workers=1)
    out = tmp_path / "out"
    # Each part waits, so that there is a middle to be killed in.
    script = f"""
import time
from pathlib import Path
from gpt2 import corpus
from gpt2.corpus import parts, stages
parts._PART_BYTES = 1
make = stages.make_filters
def slow(options):
    time.sleep(0.3)
    return make(options)
stages.make_filters = slow
corpus.build([{str(folder)!r}], Path({str(out)!r}), corpus.CorpusOptions(near=False), workers=1)
"""
    process = subprocess.Popen([sys.executable, "-c", script])
    done = out / "building" / "parts"
    deadline = time.monotonic() + 60
    while process.poll() is None and len(list(done.glob("0*"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    finished = {path.name: path.stat().st_mtime_ns for path in done.glob("0*")}
    assert 3 <= len(finished) < 8
    notes = Notes()
    read: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts, "_PART_BYTES", 1)
        original = stages.read

        def counted(source, *arguments):
            read.append(source.name)
            return original(source, *arguments)

        patch.setattr("gpt2.corpus.stages.read", counted)
        corpus.build([str(folder)], out, PLAIN, workers=1, watcher=notes)
    assert len(read) == 8 - len(finished)
    assert any(note.startswith(f"{len(finished)} of 8 parts were finished before") for note in notes.notes)
    assert shard_bytes(out) == shard_bytes(tmp_path / "whole")
    assert not (out / "building").exists()


@pytest.mark.skipif(os.name == "nt", reason="left out: Windows has no SIGKILL")
def test_a_worker_that_is_killed_ends_the_build_with_a_message(folder, tmp_path, small_parts):
    script, out = tmp_path / "build.py", tmp_path / "out"
    script.write_text(TWO_WORKERS.format(change="os.kill(os.getpid(), signal.SIGKILL)"))
    done = subprocess.run([sys.executable, script, folder, out], capture_output=True, text=True, timeout=60)
    assert done.stdout.startswith("Unavailable A worker was killed, perhaps for want of memory; run the same command")
    corpus.build([str(folder)], out, PLAIN, workers=1)
    corpus.build([str(folder)], tmp_path / "whole", PLAIN, workers=1)
    assert shard_bytes(out) == shard_bytes(tmp_path / "whole")


@pytest.mark.skipif(os.name == "nt", reason="left out: Windows has no SIGKILL")
@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_workers_end_with_the_process_that_started_them(folder, tmp_path, small_parts, end):
    script, out = tmp_path / "build.py", tmp_path / "out"
    begun, ended = tmp_path / "begun", tmp_path / "ended"
    for made in (begun, ended):
        made.mkdir()
    # Each part takes a second, and leaves a file before and after it.
    script.write_text(
        TWO_WORKERS.format(
            change=f"name = str(time.time_ns()); Path({str(begun)!r}, name).touch(); time.sleep(1); "
            f"Path({str(ended)!r}, name).touch()"
        )
    )
    process = subprocess.Popen([sys.executable, script, folder, out], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while process.poll() is None and len(list(begun.iterdir())) < 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(end)
    process.wait(timeout=60)
    before = len(list(begun.iterdir()))
    assert 4 <= before < 8
    time.sleep(1.5)
    # Two workers were at it, and neither ended its part or began another one.
    assert len(list(begun.iterdir())) == before
    assert len(list(ended.iterdir())) == before - 2
    corpus.build([str(folder)], out, PLAIN, workers=1)
    corpus.build([str(folder)], tmp_path / "whole", PLAIN, workers=1)
    assert shard_bytes(out) == shard_bytes(tmp_path / "whole")


class Counted:
    """Tasks that count how often they were begun."""

    def __init__(self, tasks: int) -> None:
        self.tasks, self.begun = tasks, 0

    def sizes(self) -> list[int]:
        return [1] * self.tasks

    def finished(self, number: int) -> bool:
        return False

    def __call__(self, number: int, tell: object) -> None:
        self.begun += 1


def test_a_worker_leaves_before_a_task_when_its_run_is_over_or_another_failed(tmp_path):
    task = Counted(3)
    step = engine._Step(task, (0, 1, 2), tmp_path / "gone")
    step(None, 0, 1)
    assert task.begun == 0
    assert not (tmp_path / "gone").exists()
    (tmp_path / "gone").mkdir()
    (tmp_path / "gone" / "stop").touch()
    step(None, 0, 1)
    assert task.begun == 0


def test_what_earlier_runs_left_is_no_message_to_this_one(tmp_path):
    (tmp_path / "earlier").mkdir()
    for name in ("taken-0", "stop", "error-0", "earlier/stop"):
        (tmp_path / name).write_text("")
    task = Counted(2)
    engine.run(task, "local", 1, tmp_path, lambda done: None)
    assert task.begun == 2
    assert list(tmp_path.iterdir()) == []


def test_whether_to_stop_is_one_file_however_many_tasks(tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "glob", lambda *_: pytest.fail("the folder of all tasks was listed"))
    task = Counted(3)
    engine._Step(task, (0, 1, 2), tmp_path)(None, 0, 1)
    assert task.begun == 3


def test_what_a_worker_raises_is_raised(folder, tmp_path, small_parts):
    (folder / "4.jsonl").write_bytes(b'{"text": "\xff"}\n')
    options = CorpusOptions(read=corpus.ReadOptions(invalid="refuse"), near=False)
    with pytest.raises(BadData, match=r"4\.jsonl"):
        corpus.build([str(folder)], tmp_path / "out", options, workers=2)


@pytest.mark.parametrize("values", [{"workers": 0}, {"engine": "spark"}])
def test_absurd_engines_are_refused(folder, tmp_path, values):
    with pytest.raises(BadOption, match=next(iter(values))):
        corpus.build([str(folder)], tmp_path / "out", PLAIN, **values)
