"""Training tokens/s and peak memory: ours beside nanoGPT's model and transformers' Trainer, on equal work, in turn.

python -m benchmarks.training [--nanogpt CLONE] [--accelerate FOLDER] [--shapes small,long] [--repeats 9] [--out FILE]

Every program runs in a process of its own and takes one optimiser step when it is told to; the others wait. A step is
a batch of random tokens, forward, backward, clipping at norm 1, AdamW; no dropout; float32 weights, bfloat16 products.
nanoGPT's model.py is read from a clone of its repository, compiled under bf16 autocast, with its own optimiser.
The Trainer runs its own loop; it needs `accelerate`, here or in a folder that `pip install --no-deps --target` filled.
What is missing is left out, and that is said.
"""

import argparse
import importlib
import json
import os
import resource
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Shape:
    """A model and a batch of rows x n_positions tokens; micro: rows of ours at a time, the best here."""

    n_layer: int
    n_embd: int
    n_head: int
    vocab_size: int
    n_positions: int
    rows: int
    micro: int


SHAPES = {
    "small": Shape(6, 384, 6, 4096, 256, 32, 8),
    "long": Shape(6, 256, 8, 8192, 1024, 8, 2),
    "124M": Shape(12, 768, 12, 50257, 1024, 2, 2),
}
PROGRAMS = ("ours", "ours-eager", "nanogpt", "nanogpt-eager", "trainer", "trainer-compiled")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nanogpt", type=Path, help="a clone of nanoGPT; without it, it is left out")
    parser.add_argument("--accelerate", type=Path, help="a folder that holds accelerate, if the environment does not")
    parser.add_argument("--shapes", default=",".join(SHAPES))
    parser.add_argument("--programs", default=",".join(PROGRAMS))
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--micro", type=int, default=0, help="rows of ours at a time; 0: what was best here")
    parser.add_argument("--out", type=Path, help="JSON lines, appended")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        _work(options)
        return
    for name in options.shapes.split(","):
        result = _compare(name, options)
        print(json.dumps(result), flush=True)
        if options.out:
            with options.out.open("a") as file:
                file.write(json.dumps(result) + "\n")


def _compare(shape: str, options: argparse.Namespace) -> dict[str, Any]:
    workers = {}
    for program in options.programs.split(","):
        worker = _Worker(program, shape, options)
        if worker.error:
            print(f"{program} left out: {worker.error}", file=sys.stderr)
        else:
            workers[program] = worker
    steps: dict[str, list[dict[str, float]]] = {program: [] for program in workers}
    for _ in range(options.repeats):
        for program, worker in workers.items():
            try:
                steps[program].append(worker.step())
            except (BrokenPipeError, json.JSONDecodeError):
                raise SystemExit(f"{program} ended on shape {shape}: {worker.last_words()}") from None
    tokens = SHAPES[shape].rows * SHAPES[shape].n_positions
    seconds = {program: statistics.median(step["seconds"] for step in done) for program, done in steps.items()}
    ratios = {}
    if "ours" in steps:
        # Steps of one turn ran in the same noise: the median of their ratios says more than the ratio of medians.
        for program in workers:
            turns = zip(steps[program], steps["ours"], strict=True)
            ratios[program] = round(statistics.median(a["seconds"] / b["seconds"] for a, b in turns), 2)
        del ratios["ours"]
    result = {
        "shape": shape,
        "tokens": tokens,
        "tokens_per_second": {program: round(tokens / value) for program, value in seconds.items()},
        "best_tokens_per_second": {
            program: round(tokens / min(step["seconds"] for step in done)) for program, done in steps.items()
        },
        "processor_seconds": {
            program: round(statistics.median(step["processor"] for step in done), 3) for program, done in steps.items()
        },
        "times_faster": ratios,
        "peak_gigabytes": {program: round(worker.close() / 1e9, 2) for program, worker in workers.items()},
        "first_step_seconds": {program: round(worker.first["seconds"], 1) for program, worker in workers.items()},
        "loss": {program: round(done[-1]["loss"], 3) for program, done in steps.items()},
        "threads": options.threads,
        "repeats": options.repeats,
    }
    return result


class _Worker:
    """A program in a process of its own, which has taken two steps (the first one compiles) when this returns."""

    def __init__(self, program: str, shape: str, options: argparse.Namespace) -> None:
        command = [sys.executable, "-m", "benchmarks.training", "--worker", program, "--shapes", shape]
        command += ["--threads", str(options.threads), "--micro", str(options.micro)]
        for flag in ("nanogpt", "accelerate"):
            if getattr(options, flag):
                command += [f"--{flag}", str(getattr(options, flag).absolute())]
        environment = os.environ | {"OMP_NUM_THREADS": str(options.threads), "OMP_WAIT_POLICY": "passive"}
        environment |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
        )
        self.error = ""
        try:
            self.first = self.step()
            self.step()
        except (BrokenPipeError, json.JSONDecodeError):
            self.error = self.last_words()

    def last_words(self) -> str:
        """Why the process ended."""
        said = self._process.communicate()[1].strip().splitlines()
        if self._process.returncode == -signal.SIGKILL:
            return "killed, most likely because memory was full; compare fewer at a time with --programs"
        return said[-1] if said else "no reason given"

    def step(self) -> dict[str, float]:
        return self._ask("step")

    def close(self) -> int:
        """Ends the process; its peak memory in bytes."""
        peak = int(self._ask("end")["peak"])
        self._process.communicate()
        return peak

    def _ask(self, what: str) -> dict[str, float]:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(what + "\n")
        self._process.stdin.flush()
        answer: dict[str, float] = json.loads(self._process.stdout.readline())
        return answer


# What follows runs in the workers.


def _work(options: argparse.Namespace) -> None:
    answers = sys.stdout
    with redirect_stdout(sys.stderr):  # libraries print
        import torch

        torch.set_num_threads(options.threads)
        torch.manual_seed(0)
        shape = SHAPES[options.shapes]
        _PARTS[options.worker.split("-")[0]](shape, options, _Turns(answers))


class _Turns:
    """Waits to be told, and answers."""

    def __init__(self, answers: Any) -> None:
        self._answers = answers

    def wait(self) -> None:
        if sys.stdin.readline().strip() != "step":
            self._answer(peak=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
            os._exit(0)
        self._wall, self._processor = time.perf_counter(), time.process_time()

    def done(self, loss: float) -> None:
        self._answer(
            seconds=time.perf_counter() - self._wall, processor=time.process_time() - self._processor, loss=loss
        )

    def _answer(self, **values: float) -> None:
        print(json.dumps(values), file=self._answers, flush=True)


def _ids(shape: Shape) -> Any:
    import torch

    return torch.randint(shape.vocab_size, (shape.rows, shape.n_positions + 1))


def _ours(shape: Shape, options: argparse.Namespace, turns: _Turns) -> None:
    from gpt2.model import GPT2
    from gpt2.training.allocator import keep_freed_memory
    from gpt2.training.options import TrainingOptions
    from gpt2.training.ranks import Ranks
    from gpt2.training.step import Step

    keep_freed_memory()
    training = TrainingOptions(
        n_layer=shape.n_layer,
        n_head=shape.n_head,
        n_embd=shape.n_embd,
        context=shape.n_positions,
        batch_size=shape.rows,
        micro_batch_size=options.micro or shape.micro,
        dtype="bfloat16",
        compile=options.worker == "ours",
    )
    network = GPT2(training.model_config(shape.vocab_size)).initialise(0)
    step = Step(network, training, Ranks())
    ids = _ids(shape)
    inputs, targets = ids[:, :-1].contiguous(), ids[:, 1:].contiguous()
    number = 0
    while True:
        turns.wait()
        turns.done(step(number, inputs, targets).loss)
        number += 1


def _nanogpt(shape: Shape, options: argparse.Namespace, turns: _Turns) -> None:
    if options.nanogpt is None:
        raise SystemExit("no --nanogpt was given")
    sys.path.insert(0, str(options.nanogpt))
    import torch

    theirs = importlib.import_module("model")

    # Its own vocabulary is padded: 50,304.
    config = theirs.GPTConfig(
        block_size=shape.n_positions,
        vocab_size=-(-shape.vocab_size // 64) * 64,
        n_layer=shape.n_layer,
        n_head=shape.n_head,
        n_embd=shape.n_embd,
        dropout=0.0,
        bias=True,
    )
    model = theirs.GPT(config)
    optimizer = model.configure_optimizers(0.1, 1e-3, (0.9, 0.95), "cpu")
    run: Callable[..., Any] = model if options.worker.endswith("eager") else torch.compile(model)
    ids = _ids(shape)
    inputs, targets = ids[:, :-1].contiguous(), ids[:, 1:].contiguous()
    while True:
        turns.wait()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            _, loss = run(inputs, targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        turns.done(loss.item())


def _trainer(shape: Shape, options: argparse.Namespace, turns: _Turns) -> None:
    if options.accelerate:
        sys.path.insert(0, str(options.accelerate))
    import torch
    import transformers
    from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainerCallback, TrainingArguments

    class Turns(TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            turns.wait()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            turns.done(0.0)

    transformers.logging.set_verbosity_error()
    config = GPT2Config(
        vocab_size=shape.vocab_size,
        n_positions=shape.n_positions,
        n_embd=shape.n_embd,
        n_layer=shape.n_layer,
        n_head=shape.n_head,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    )
    rows = torch.randint(shape.vocab_size, (shape.rows * 200, shape.n_positions))
    arguments = TrainingArguments(
        output_dir="/nonexistent",
        use_cpu=True,
        bf16=True,
        torch_compile=options.worker.endswith("compiled"),
        per_device_train_batch_size=shape.rows,
        max_steps=200,
        optim="adamw_torch_fused",
        max_grad_norm=1.0,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    data = [{"input_ids": row, "labels": row} for row in rows]
    Trainer(GPT2LMHeadModel(config), arguments, train_dataset=data, callbacks=[Turns()]).train()


_PARTS: dict[str, Callable[[Shape, argparse.Namespace, _Turns], None]] = {
    "ours": _ours,
    "nanogpt": _nanogpt,
    "trainer": _trainer,
}


if __name__ == "__main__":
    main()
