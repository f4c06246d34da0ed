"""The training loop, to be read from top to bottom: options and text in, a run folder out.

Next-token prediction (paper, section 2): each step reads a batch, adds up the gradients of its micro-batches, clips
them, moves the weights. Everything random is a function of (seed, step, micro-batch), so a run that was stopped goes on
as if it had not been.

It knows nothing of terminals: it tells a `Reporter` what happens, and a caller passes the function that writes samples.
"""

import dataclasses
import functools
import hashlib
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import torch
from torch import Tensor

from gpt2.checkpoint import LanguageModel, find_device
from gpt2.errors import BadData, BadOption, Error
from gpt2.model import GPT2
from gpt2.tokenizer import Tokenizer, learn
from gpt2.training.data import Batches, Ids, Split, read_documents, split, to_ids
from gpt2.training.evaluate import Evaluation, evaluate
from gpt2.training.memory import check_memory, explained
from gpt2.training.optimizer import Optimizer
from gpt2.training.options import GPT2_VOCABULARY, TrainingOptions
from gpt2.training.plot import draw_losses
from gpt2.training.run import RunFolder


class Reporter(Protocol):
    """What a run says while it goes on."""

    def note(self, text: str) -> None: ...
    def start(self, step: int, steps: int) -> None: ...
    def step(self, step: int, loss: float, tokens_per_second: float) -> None: ...
    def evaluation(self, step: int, evaluation: Evaluation) -> None: ...
    def sample(self, step: int, text: str) -> None: ...


@dataclass(frozen=True, slots=True)
class Result:
    """What a run came to: its last step, the last batch's loss and the last validation (None: there was none; of a
    run that was resumed, also those from before), and the run folder."""

    step: int
    train_loss: float | None
    validation: Evaluation | None
    path: Path
    interrupted: bool


@dataclass(frozen=True, slots=True)
class Data:
    """The ids of a run, and what is needed to score the validation part."""

    training: Ids
    validation: Ids
    validation_bytes: int
    fingerprint: str


def train(
    options: TrainingOptions,
    data: Sequence[Path],
    out: Path,
    reporter: Reporter,
    sample: Callable[[LanguageModel], str] | None = None,
) -> Result:
    """Trains a new GPT-2 on text files (see `training.data`) into the run folder `out`.

    `sample` writes a text with a model; None: no samples. Ctrl-C ends the run after a checkpoint.
    Raises BadData, BadOption, Busy or Unavailable before anything is trained.
    """
    run = RunFolder.create(out)
    # Whatever is wrong with the data is found before there is a folder that would be in the way of the next try.
    start = _start(options, data, reporter)
    with run.locked():
        RunFolder.create(out)  # another process may have been quicker
        run.write_recipe(options, [str(path.absolute()) for path in data])
        return _Run(options, run, *start, reporter, sample).go(first_step=0)


def resume(
    out: Path,
    reporter: Reporter,
    sample: Callable[[LanguageModel], str] | None = None,
    steps: int | None = None,
) -> Result:
    """Goes on with the run in `out` from its latest checkpoint, bit for bit as if it had not stopped (on one CPU).

    A run that was killed before its first checkpoint begins again. `steps` gives the run another length.
    Raises BadOption if there is no run, BadCheckpoint if its checkpoint is damaged, BadData if its data has changed.
    """
    run, options, data = RunFolder.open(out)
    files = [Path(path) for path in data]
    with run.locked():
        if steps is not None:
            options = dataclasses.replace(options, steps=steps)
        if run.checkpoint() is None:
            run.forget_after(0)
            run.write_recipe(options, data)
            return _Run(options, run, *_start(options, files, reporter), reporter, sample).go(first_step=0)
        device = _prepare(options)
        network, tokenizer, optimizer_state, state = run.load()
        if options.steps < state["step"]:
            raise BadOption(f"{out} is at step {state['step']} already, past {options.steps} steps.")
        tokens = _tokenise(split(read_documents(files), options.validation), tokenizer, reporter)
        if tokens.fingerprint != state["data"]:
            raise BadData(
                f"The data of {out} has changed since the checkpoint: {', '.join(data)}. Restore it, or start anew."
            )
        window = _check_batches(options, device, tokenizer, tokens)
        with explained(options, device, tokenizer.vocab_size, window):
            network.to(device).requires_grad_(True)
            optimizer = Optimizer(network, options)
        optimizer.load_state_dict(optimizer_state)
        run.write_recipe(options, data)
        run.forget_after(state["step"])
        return _Run(options, run, network, tokenizer, optimizer, tokens, reporter, sample, state).go(state["step"])


def _start(
    options: TrainingOptions, data: Sequence[Path], reporter: Reporter
) -> tuple[GPT2, Tokenizer, Optimizer, Data]:
    """What a run has before its first step."""
    device = _prepare(options)
    parts = split(read_documents(data), options.validation)
    tokenizer = Tokenizer.gpt2()
    if options.vocab_size:
        reporter.note(f"learning a vocabulary of {options.vocab_size:,} tokens")
        tokenizer = learn(parts.training, options.vocab_size)
    tokens = _tokenise(parts, tokenizer, reporter)
    window = _check_batches(options, device, tokenizer, tokens)
    with explained(options, device, tokenizer.vocab_size, window):
        network = GPT2(options.model_config(tokenizer.vocab_size)).initialise(options.seed).to(device)
        return network, tokenizer, Optimizer(network, options), tokens


def accumulate_gradients(
    network: Callable[[Tensor, Tensor], Tensor],
    inputs_BT: Tensor,
    targets_BT: Tensor,
    micro_batch_size: int,
    before_each: Callable[[int], None] = lambda _: None,
) -> Tensor:
    """Adds the gradients of the batch's mean loss to the parameters, `micro_batch_size` rows at a time.

    `network` gives the summed loss of (inputs, targets). Every micro-batch is divided by the number of targets in the
    whole batch, so the sum is the big batch's gradient however unevenly the targets (-100: none) are spread.
    `before_each` is told the number of each micro-batch. Returns the mean loss in nats, a scalar.
    """
    count = (targets_BT != -100).sum().clamp(min=1)
    total = torch.zeros((), device=inputs_BT.device)
    for number, start in enumerate(range(0, len(inputs_BT), micro_batch_size)):
        before_each(number)
        rows = slice(start, start + micro_batch_size)
        loss = network(inputs_BT[rows], targets_BT[rows]) / count
        loss.backward()  # type: ignore[no-untyped-call]
        total = total + loss.detach()
    return total


@dataclass
class _Run:
    options: TrainingOptions
    folder: RunFolder
    network: GPT2
    tokenizer: Tokenizer
    optimizer: Optimizer
    data: Data
    reporter: Reporter
    sample: Callable[[LanguageModel], str] | None
    state: dict[str, Any] | None = None

    def go(self, first_step: int) -> Result:
        options = self.options
        batches = Batches(self.data.training, options.context, options.batch_size, options.seed)
        state = self.state or {"best": None, "best_step": None, "seconds": 0.0}
        best, best_step, seconds = state["best"], state["best_step"], state["seconds"]
        loss, validation = _last_losses(self.folder.metrics())
        step = saved = first_step
        self.reporter.start(first_step, options.steps)
        with _stop_requests() as stop, self._memory_explained(batches.window):
            while step < options.steps and not stop.is_set():
                started = time.perf_counter()
                loss = self._step(step, *batches.at(step))
                elapsed = time.perf_counter() - started
                seconds += elapsed
                step += 1
                last = step == options.steps
                speed = options.batch_size * batches.window / elapsed
                self.reporter.step(step, loss, speed)
                self.folder.log(
                    {
                        "step": step,
                        "train_loss": loss,
                        "learning_rate": options.learning_rate_at(step - 1),
                        "tokens": step * options.batch_size * batches.window,
                        "seconds": round(seconds, 3),
                        "tokens_per_second": round(speed, 1),
                    }
                )
                improved = False
                if len(self.data.validation) and (last or _due(step, options.eval_every)):
                    result = self._evaluate(step, self._validation_part)
                    # Only losses over the same tokens are compared.
                    improved = best is None or result.nats_per_token < best
                    if improved:
                        best, best_step = result.nats_per_token, step
                    validation = result
                    if last and len(self._validation_part) < len(self.data.validation):
                        validation = self._evaluate(step, self.data.validation)
                if last or improved or _due(step, options.save_every):
                    self._save(step, best, best_step, seconds)
                    saved = step
                if last or _due(step, options.sample_every):
                    self._sample(step)
            if saved < step:
                self._save(step, best, best_step, seconds)
        draw_losses(self.folder.metrics(), self.folder.path / "loss.png", self.reporter.note)
        return Result(step, loss, validation, self.folder.path, interrupted=step < options.steps)

    def _step(self, step: int, inputs: Tensor, targets: Tensor) -> float:
        """One optimiser step; returns the batch's mean loss in nats."""
        options, device = self.options, self.network.device
        self.network.train()

        def seed_dropout(micro_batch: int) -> None:
            digest = hashlib.blake2b(f"{options.seed}/{step}/{micro_batch}".encode(), digest_size=8).digest()
            torch.manual_seed(int.from_bytes(digest, "big") >> 1)

        loss = accumulate_gradients(
            self._loss,
            inputs.to(device),
            targets.to(device),
            options.micro_batch_size or options.batch_size,
            seed_dropout,
        ).item()
        # The norm tells of a gradient that is not finite even where the loss is: it must not reach the weights.
        norm = torch.nn.utils.clip_grad_norm_(self.network.parameters(), options.grad_clip or math.inf).item()
        if not math.isfinite(loss) or not math.isfinite(norm):
            whole = self.folder.checkpoint()
            saved = "No checkpoint was written yet" if whole is None else f"The checkpoint {whole.name} is whole"
            raise Error(
                f"At step {step + 1} the loss is {loss} and the gradient's norm {norm}. {saved}; "
                f"lower learning_rate {self._again}."
            )
        self.optimizer.step(options.learning_rate_at(step))
        return loss

    @property
    def _again(self) -> str:
        """Where to change an option that a run cannot go on with, and how to go on."""
        again = "begin again" if self.folder.checkpoint() is None else "go on"
        return f"in {self.folder.path / 'recipe.toml'}, and {again} with `gpt2 train --resume {self.folder.path}`"

    def _memory_explained(self, window: int) -> AbstractContextManager[None]:
        device, vocab_size = self.network.device, self.tokenizer.vocab_size
        return explained(self.options, device, vocab_size, window, f" Change it {self._again}.")

    def _loss(self, inputs: Tensor, targets: Tensor) -> Tensor:
        with torch.autocast(self.network.device.type, dtype=self._autocast, enabled=self._autocast is not None):
            loss: Tensor = self._compiled_loss(inputs, targets)
        return loss

    @functools.cached_property
    def _compiled_loss(self) -> Callable[[Tensor, Tensor], Tensor]:
        return torch.compile(self.network.loss) if self.options.compile else self.network.loss

    @property
    def _autocast(self) -> torch.dtype | None:
        return torch.bfloat16 if self.options.dtype == "bfloat16" else None

    @functools.cached_property
    def _validation_part(self) -> Ids:
        """The validation tokens that are scored during training."""
        most = self.options.eval_tokens
        return self.data.validation[:most] if most else self.data.validation

    def _evaluate(self, step: int, ids: Ids) -> Evaluation:
        text_bytes = self.data.validation_bytes
        end = _end_of_text(self.tokenizer)
        if len(ids) < len(self.data.validation):
            text_bytes = len(self.tokenizer.decode_bytes([int(i) for i in ids if i != end]))
        # No more rows at a time than training has: what fits there fits here.
        rows = self.options.micro_batch_size or self.options.batch_size
        result = evaluate(self.network, ids, end, text_bytes, batch_size=rows, autocast=self._autocast)
        self.reporter.evaluation(step, result)
        self.folder.log(
            {
                "step": step,
                "validation_loss": result.nats_per_token,
                "validation_bits_per_byte": result.bits_per_byte,
                "validation_tokens": result.tokens,
            }
        )
        return result

    def _save(self, step: int, best: float | None, best_step: int | None, seconds: float) -> None:
        state = {
            "data": self.data.fingerprint,
            "best": best,
            "best_step": best_step,
            "seconds": seconds,
            "tokenizer": self.tokenizer.fingerprint(),
        }
        self.folder.save(step, self.network, self.tokenizer, self.optimizer.state_dict(), state)
        # Every improvement is saved at its own step, so this checkpoint exists.
        if best_step is not None:
            self.folder.point("best", best_step)
        self.folder.prune(self.options.keep)

    def _sample(self, step: int) -> None:
        if self.sample is None:
            return
        self.network.eval()
        text = self.sample(LanguageModel(self.network, self.tokenizer, source=str(self.folder.path)))
        self.folder.write_sample(step, text)
        self.reporter.sample(step, text)


@contextmanager
def _stop_requests() -> Iterator[threading.Event]:
    """An event that Ctrl-C or SIGTERM sets, so that the step under way is finished and saved; a second one is heard
    at once. Signals reach the main thread alone, so elsewhere the event is never set."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def request(number: int, _: FrameType | None) -> None:
        event.set()
        for each, handler in before.items():
            signal.signal(each, handler)

    for number in before:
        signal.signal(number, request)
    try:
        yield event
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _end_of_text(tokenizer: Tokenizer) -> int:
    if tokenizer.end_of_text is None:
        raise BadOption("This tokenizer has no <|endoftext|>, which separates documents.")
    return tokenizer.end_of_text


def _prepare(options: TrainingOptions) -> torch.device:
    if options.threads:
        torch.set_num_threads(options.threads)
    device = find_device(options.device)
    check_memory(options, device, options.vocab_size or GPT2_VOCABULARY)
    return device


def _check_batches(options: TrainingOptions, device: torch.device, tokenizer: Tokenizer, data: Data) -> int:
    """Raises BadOption if a step cannot fit into memory; returns the tokens in a row."""
    window = min(options.context, max(1, len(data.training) - 1))
    check_memory(options, device, tokenizer.vocab_size, window)
    return window


def _last_losses(metrics: Sequence[dict[str, Any]]) -> tuple[float | None, Evaluation | None]:
    """The training loss and the validation that were written down last."""
    loss = next((line["train_loss"] for line in reversed(metrics) if "train_loss" in line), None)
    last = next((line for line in reversed(metrics) if "validation_loss" in line), None)
    if last is None:
        return loss, None
    nats = last["validation_loss"] * last["validation_tokens"]
    return loss, Evaluation(
        nats, last["validation_tokens"], round(nats / math.log(2) / last["validation_bits_per_byte"])
    )


def _tokenise(parts: Split, tokenizer: Tokenizer, reporter: Reporter) -> Data:
    threads = torch.get_num_threads()
    training, validation = to_ids(parts.training, tokenizer, threads), to_ids(parts.validation, tokenizer, threads)
    digest = hashlib.sha256(training.tobytes())
    digest.update(validation.tobytes())
    reporter.note(f"{len(training):,} tokens to train on, {len(validation):,} held out")
    return Data(training, validation, sum(len(text.encode()) for text in parts.validation), digest.hexdigest())
