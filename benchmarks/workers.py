"""Workers, seen from the benchmark: a process for each program under test, asleep while another one is measured."""

import json
import os
import shutil
import signal
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.peers.catalogue import ROOT, Peer

if TYPE_CHECKING:
    from gpt2.config import GPT2Config

FILES = ROOT / "build" / "bench"


class Failed(Exception):
    """A worker answered that it cannot, or died; the text says why."""


class Worker:
    """A program under test that holds one model at one width. See `peers/protocol.py` for what it understands.

    waiting: of its idle threads, "active" or "passive", instead of what is best for it. While it is not asked anything
    the process is stopped (SIGSTOP), so threads that spin take nothing from the others. Its output goes to a log
    beside the models.
    """

    def __init__(self, peer: Peer, shape: str, width: str, threads: int, waiting: str | None = None):
        self.peer, self.shape, self.width, self.threads = peer, shape, width, threads
        self.model = FILES / shape / "model"
        self.folder = FILES / shape / f"{peer.name}-{peer.widths[width].replace(' ', '-')}"
        FILES.mkdir(parents=True, exist_ok=True)
        self.log = FILES / f"{peer.name}.log"
        settings = {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        settings["GPT2_CACHE"] = str(packed_folder(shape))
        chosen = dict(peer.variables) | ({"OMP_WAIT_POLICY": waiting} if waiting else {})
        self.waiting = chosen.get("OMP_WAIT_POLICY", "its own")
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [peer.python, "-m", f"benchmarks.peers.{peer.module}"],
                cwd=ROOT,
                env=os.environ | settings | chosen,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        self.version = "unknown"
        self.bytes_per_token: int | None = None

    def prepare(self) -> None:
        """Has the peer write the model in its own form, once."""
        if self.folder.exists() or self.peer.environment.name == ".venv":
            return
        making = self.folder.with_name(self.folder.name + ".making")
        shutil.rmtree(making, ignore_errors=True)
        making.mkdir(parents=True)
        self.ask("prepare", model=str(self.model), folder=str(making), width=self.peer.widths[self.width])
        making.rename(self.folder)

    def load(self) -> float:
        """Loads the model; returns the seconds it took."""
        seconds, about = self.ask(
            "load",
            model=str(self.model),
            folder=str(self.folder),
            width=self.peer.widths[self.width],
            threads=self.threads,
        )
        self.version, self.bytes_per_token = about["version"], about.get("bytes")
        return seconds

    def ask(self, do: str, *, quiet: bool = False, **arguments: Any) -> tuple[float, Any]:
        """Seconds that the work took in the worker, and its result (None if `quiet`)."""
        assert self.process.stdin
        assert self.process.stdout
        self.process.send_signal(signal.SIGCONT)
        try:
            self.process.stdin.write(json.dumps({"do": do, "quiet": quiet, **arguments}) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise Failed(f"the worker ended with {self.process.wait()}; see {self.log.relative_to(ROOT)}")
        self.process.send_signal(signal.SIGSTOP)
        answer = json.loads(line)
        if "error" in answer:
            raise Failed(answer["error"])
        return answer["seconds"], answer["result"]

    def close(self) -> None:
        """Ends the process."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe:
                pipe.close()


def config(shape: str) -> "GPT2Config":
    """A size of the paper by name, or `tiny`, for work on the benchmark itself."""
    from gpt2.config import SIZES, GPT2Config

    return GPT2Config(n_embd=128, n_layer=2, n_head=2) if shape == "tiny" else SIZES[shape].config


def packed_folder(shape: str) -> Path:
    """Where our packed weights lie; away from the user's, so that the first start can be measured and all deleted."""
    return FILES / shape / "packed"


def model_folder(shape: str) -> Path:
    """The Hugging Face directory with random weights that everybody runs, made when it is missing."""
    folder = FILES / shape / "model"
    if not folder.exists():
        import gpt2
        from gpt2.tokenizer import Tokenizer

        folder.parent.mkdir(parents=True, exist_ok=True)
        gpt2.write_directory(gpt2.GPT2(config(shape)).initialise(0), Tokenizer.gpt2(), folder)
    return folder
