"""The training loop, to be read from top to bottom: options and data in, a run folder out.

Next-token prediction (paper, section 2): each step reads a batch, adds up the gradients of its micro-batches, clips
them, moves the weights (`step.py`). Everything random is a function of (seed, step, micro-batch), so a run that was
stopped goes on as if it had not been.

It knows nothing of terminals: it tells a `Reporter` what happens, and a caller passes the function that writes samples.
Under torchrun every process walks through the same code; the first alone reports, and writes the run folder.
"""

import dataclasses
import functools
import math
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import torch

from gpt2.checkpoint import LanguageModel
from gpt2.errors import BadData, BadOption, Error
from gpt2.training import begin
from gpt2.training.begin import Beginning
from gpt2.training.data import Batches, Part, Tokens
from gpt2.training.evaluate import Evaluation, count_bytes, evaluate
from gpt2.training.memory import explained
from gpt2.training.meter import Meter
from gpt2.training.options import HOW, TrainingOptions
from gpt2.training.plot import draw_losses
from gpt2.training.ranks import Ranks, started
from gpt2.training.run import RunFolder
from gpt2.training.step import Step, StepResult
from gpt2.training.trackers import Trackers


class Reporter(Protocol):
    """What a run says while it goes on.

    facts of a step, each only where it is known: flops_per_second, mfu (a share), memory (bytes), seconds_left,
    learning_rate, gradient_norm. tokens_per_second is of all processes together.
    """

    def note(self, text: str) -> None: ...
    def start(self, step: int, steps: int) -> None: ...
    def step(self, step: int, loss: float, tokens_per_second: float, facts: Mapping[str, float]) -> None: ...
    def evaluation(self, step: int, evaluation: Evaluation) -> None: ...
    def sample(self, step: int, text: str) -> None: ...


class Silent:
    """A reporter that says nothing: that of every process but the first."""

    def note(self, text: str) -> None: ...
    def start(self, step: int, steps: int) -> None: ...
    def step(self, step: int, loss: float, tokens_per_second: float, facts: Mapping[str, float]) -> None: ...
    def evaluation(self, step: int, evaluation: Evaluation) -> None: ...
    def sample(self, step: int, text: str) -> None: ...


@dataclass(frozen=True, slots=True)
class Result:
    """What a run came to: its last step, the last batch's loss and the last validation (None: there was none; of a
    run that was resumed, also those from before), and the run folder. is_first: whether this process reports."""

    step: int
    train_loss: float | None
    validation: Evaluation | None
    path: Path
    interrupted: bool
    is_first: bool = True


Sample = Callable[[LanguageModel], str]


def train(
    options: TrainingOptions, data: Sequence[Path], out: Path, reporter: Reporter, sample: Sample | None = None
) -> Result:
    """Trains a GPT-2 on text files, a corpus folder or token files (see `training.data`) into the run folder `out`.

    `sample` writes a text with a model; None: no samples. Ctrl-C ends the run after a checkpoint.
    Raises BadData, BadOption, Busy or Unavailable before anything is trained.
    """
    with started(options.parallel, begin.device_of(options)) as ranks:
        reporter = reporter if ranks.is_first else Silent()
        run = RunFolder.create(out) if ranks.is_first else RunFolder(out)
        # Whatever is wrong with the data is found before there is a folder that would be in the way of the next try.
        start = begin.anew(options, data, reporter.note, ranks)
        with run.locked(ranks):
            if ranks.is_first:
                RunFolder.create(out)  # another process may have been quicker
                run.write_recipe(start.options, [str(path.absolute()) for path in data])
            return _Run(start, run, ranks, reporter, sample).go()


def resume(
    out: Path,
    reporter: Reporter,
    sample: Sample | None = None,
    changes: Mapping[str, Any] | None = None,
    allow_changes: bool = False,
) -> Result:
    """Goes on with the run in `out` from its latest checkpoint, bit for bit as if it had not stopped (on one CPU).

    A run that was killed before its first checkpoint begins again, and says so. changes: fields of the options in
    `training.options.HOW`, such as another number of steps; with `allow_changes`, any, and other data.
    Raises BadOption if there is no run or the recipe has changed, BadCheckpoint if its checkpoint is damaged, BadData
    if its data has changed.
    """
    run, options, data = RunFolder.open(out)
    options = dataclasses.replace(options, **(changes or {}))
    files = [Path(path) for path in data]
    with started(options.parallel, begin.device_of(options)) as ranks:
        reporter = reporter if ranks.is_first else Silent()
        with run.locked(ranks):
            if run.checkpoints.pointed() is None:
                reporter.note(f"{out} has no checkpoint yet: beginning at step 0")
                start = begin.anew(options, files, reporter.note, ranks)
            else:
                state = run.checkpoints.state()
                _check_unchanged(run, options, state, allow_changes)
                if options.steps < state["step"]:
                    raise BadOption(f"{out} is at step {state['step']} already, past {options.steps} steps.")
                start = begin.again(options, files, run, reporter.note, ranks)
                if start.data.fingerprint != state["data"] and not allow_changes:
                    raise BadData(
                        f"The data of {out} has changed since the checkpoint: {', '.join(data)}. Restore it, start "
                        "anew, or go on with it all the same with --allow-changes."
                    )
            going = _Run(start, run, ranks, reporter, sample, resumed=True)
            ranks.barrier()  # all have read the folder as it was
            if ranks.is_first:
                run.write_recipe(start.options, data)
                run.take_up(start.first_step, going.best_step, options.keep)
            return going.go()


def _check_unchanged(run: RunFolder, options: TrainingOptions, state: Mapping[str, Any], allow: bool) -> None:
    """Raises BadOption for a recipe that is not the checkpoint's, unless that is allowed and can be."""
    now, then = dataclasses.asdict(options), state.get("options", {})
    changed = [name for name in then if name in now and name not in HOW and now[name] != then[name]]
    fixed = [name for name in changed if name in _FIXED]
    told = ", ".join(f"{name} = {now[name]!r} (was {then[name]!r})" for name in fixed or changed)
    if fixed:
        raise BadOption(
            f"The recipe of {run.path} has changed since its checkpoint, in what a run cannot go on with: {told}. "
            "Put it back in recipe.toml, or start anew (--init takes the weights of this run)."
        )
    if changed and not allow:
        raise BadOption(
            f"The recipe of {run.path} has changed since its checkpoint: {told}. Put it back in recipe.toml, or go on "
            "with it all the same with --allow-changes."
        )


# What the weights and the optimiser's state of a checkpoint are made for.
_FIXED = ("init", "n_layer", "n_head", "n_embd", "context", "vocab_size", "optimizer")


class _Run:
    """A run on its way."""

    def __init__(
        self,
        start: Beginning,
        folder: RunFolder,
        ranks: Ranks,
        reporter: Reporter,
        sample: Sample | None,
        resumed: bool = False,
    ) -> None:
        self.options, self.data = start.options, start.data
        self.tokenizer, self.network = start.data.tokenizer, start.network
        self.folder, self.ranks, self.reporter, self.sample = folder, ranks, reporter, sample
        self.first_step, self.resumed = start.first_step, resumed
        self.step = Step(start.network, start.options, ranks)
        state = start.state or {"best": None, "best_step": None, "seconds": 0.0}
        self.best, self.best_step, self.seconds = state["best"], state["best_step"], state["seconds"]
        if start.state is not None and start.optimizer_files is not None:
            self.step.guard.restore(state.get("guard", [[], [], [0]]))
            with folder.checkpoints.reading():
                self.step.optimizer.load(start.optimizer_files)

    def go(self) -> Result:
        options, folder, reporter = self.options, self.folder, self.reporter
        batches = Batches(self.data.training, options.context, options.batch_size, options.seed)
        tokens = options.batch_size * batches.window
        loss, validation = _last_losses(folder.metrics())
        step = saved = self.first_step
        meter = Meter(
            self.network.config,
            batches.window,
            tokens,
            self.network.device,
            dtype=options.dtype,
            ranks=self.ranks.size,
        )
        reporter.note(meter.describe())
        reporter.start(step, options.steps)
        meter.start(step, options.steps)
        with (
            self._trackers() as trackers,
            _stop_requests() as stop,
            explained(options, self.network.device, self.tokenizer.vocab_size, batches.window, f" {self._change}"),
        ):
            while step < options.steps and not self._all_stop(stop):
                result = self.step(step, *batches.rows(step, self.step.rows))
                step += 1
                if not result.finite:
                    raise self._diverged(step, result)
                loss, last = result.loss, step == options.steps
                facts = meter.step(step)
                facts |= {"learning_rate": options.learning_rate_at(step - 1), "gradient_norm": result.norm}
                self.seconds += tokens / facts["tokens_per_second"]
                reporter.step(step, loss, facts["tokens_per_second"], facts)
                line = {"step": step, "train_loss": loss, "tokens": step * tokens, "seconds": round(self.seconds, 3)}
                self._log(trackers, line | _rounded(facts) | ({"skipped": 1} if result.skipped else {}))
                if result.skipped:
                    reporter.note(f"step {step}: skipped, a spike: loss {loss:.3f}, gradient norm {result.norm:.3g}")
                with meter.paused():
                    improved = False
                    if len(self.data.validation) and (last or _due(step, options.eval_every)):
                        scored = self._evaluate(step, self._validation_part, trackers)
                        # Only losses over the same tokens are compared.
                        improved = self.best is None or scored.nats_per_token < self.best
                        if improved:
                            self.best, self.best_step = scored.nats_per_token, step
                        validation = scored
                        if last and len(self._validation_part) < len(self.data.validation):
                            validation = self._evaluate(step, self.data.validation, trackers)
                    if last or improved or _due(step, options.save_every):
                        self._save(step)
                        saved = step
                    if last or _due(step, options.sample_every):
                        self._sample(step, trackers)
            if saved < step:
                self._save(step)
        if self.ranks.is_first:
            with folder.checkpoints.writing("loss.png"):
                draw_losses(folder.metrics(), folder.path / "loss.png", reporter.note)
        return Result(step, loss, validation, folder.path, step < options.steps, self.ranks.is_first)

    def _all_stop(self, stop: threading.Event) -> bool:
        """Whether any process was asked to stop: a signal reaches them at different steps."""
        return bool(self.ranks.total(torch.tensor(float(stop.is_set()), device=self.network.device)))

    def _diverged(self, step: int, result: StepResult) -> Error:
        whole = self.folder.checkpoints.pointed()
        saved = "No checkpoint was written yet" if whole is None else f"The checkpoint {whole.name} is whole"
        return Error(
            f"At step {step} the loss is {result.loss} and the gradient's norm {result.norm}. {saved}; "
            f"lower learning_rate {self._again}."
        )

    @property
    def _again(self) -> str:
        """Where to change an option that a run cannot go on with, and how to go on."""
        begun = self.folder.checkpoints.pointed() is not None
        go_on = f"`gpt2 train --resume {self.folder.path}{' --allow-changes' if begun else ''}`"
        return f"in {self.folder.path / 'recipe.toml'}, and {'go on' if begun else 'begin again'} with {go_on}"

    @property
    def _change(self) -> str:
        return f"Change it {self._again}."

    def _trackers(self) -> Trackers:
        return Trackers(
            self.folder.path,
            self.options.trackers if self.ranks.is_first else "none",
            recipe=dataclasses.asdict(self.options),
            resumed_at=self.first_step if self.resumed else None,
            note=self.reporter.note,
        )

    def _log(self, trackers: Trackers, line: dict[str, Any]) -> None:
        if self.ranks.is_first:
            self.folder.log(line)
            trackers.log(line["step"], line)

    @functools.cached_property
    def _validation_part(self) -> Tokens:
        """The validation tokens that are scored during training."""
        whole, most = self.data.validation, self.options.eval_tokens
        return Part(whole, 0, most) if 0 < most < len(whole) else whole

    def _evaluate(self, step: int, ids: Tokens, trackers: Trackers) -> Evaluation:
        text_bytes = self.data.validation_bytes if ids is self.data.validation else None
        if text_bytes is None:
            text_bytes = count_bytes(ids, self.tokenizer)
        end = self.tokenizer.end_of_text
        assert end is not None, "data without a separator is refused when it is opened"
        # No more rows at a time than training has: what fits there fits here.
        rows = self.step.micro_batch_size
        result = evaluate(self.network, ids, end, text_bytes, batch_size=rows, loss=self.step.evaluation_loss)
        self.reporter.evaluation(step, result)
        line = {
            "step": step,
            "validation_loss": result.nats_per_token,
            "validation_bits_per_byte": result.bits_per_byte,
            "validation_tokens": result.tokens,
        }
        self._log(trackers, line)
        return result

    def _save(self, step: int) -> None:
        state = {
            "data": self.data.fingerprint,
            "best": self.best,
            "best_step": self.best_step,
            "seconds": self.seconds,
            "tokenizer": self.tokenizer.fingerprint(),
            "options": dataclasses.asdict(self.options),
            "guard": self.step.guard.state(),
        }
        optimizer, keep = self.step.optimizer, self.options.keep
        self.folder.save(step, self.network, self.tokenizer, optimizer, state, self.ranks, keep)

    def _sample(self, step: int, trackers: Trackers) -> None:
        if self.sample is None:
            return
        with self.ranks.whole(self.network) as network:
            if network is None:
                return
            network.eval()
            text = self.sample(LanguageModel(network, self.tokenizer, source=str(self.folder.path)))
        self.folder.write_sample(step, text)
        self.reporter.sample(step, text)
        trackers.text(step, text)


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


def _rounded(facts: Mapping[str, float]) -> dict[str, float]:
    """Facts as they are written down: six digits are more than any of them is good for."""
    return {name: float(f"{value:.6g}") for name, value in facts.items() if name != "seconds_left"}


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
