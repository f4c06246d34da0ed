"""The training loop, to be read from top to bottom: options and data in, a run folder out.

Next-token prediction (paper, section 2): each step reads a batch, adds up the gradients of its micro-batches, clips
them, moves the weights (`step.py`). Everything random is a function of (seed, step, micro-batch), so a run that was
stopped goes on as if it had not been.

It knows nothing of terminals: it tells a `Reporter` what happens, and a caller passes the function that writes samples.
Under torchrun every process walks through the same code; the first alone reports, and writes the run folder.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from gpt2.checkpoint import LanguageModel
from gpt2.errors import BadData, Error
from gpt2.memory import no_room
from gpt2.training import begin, failures
from gpt2.training.begin import Beginning
from gpt2.training.changes import check_data, check_steps, check_unchanged
from gpt2.training.evaluate import Evaluation
from gpt2.training.memory import explained
from gpt2.training.meter import Meter
from gpt2.training.opening import opening
from gpt2.training.options import TrainingOptions
from gpt2.training.plot import draw_losses, title
from gpt2.training.ranks import Ranks, is_of_others, started
from gpt2.training.reporter import Reporter, Result, Sample, Silent
from gpt2.training.run import RunFolder, last_losses, rounded
from gpt2.training.signals import stop_requests
from gpt2.training.step import Step
from gpt2.training.trackers import Trackers
from gpt2.training.validation import is_due
from gpt2.training.work import Scoring, Work


def train(
    options: TrainingOptions,
    data: Sequence[Path],
    out: Path,
    reporter: Reporter,
    sample: Sample | None = None,
    work: Work | None = None,
) -> Result:
    """Trains a GPT-2 on text files, a corpus folder or token files (see `training.data`) into the run folder `out`.

    `sample` writes a text with a model; None: no samples. work: what is learnt, if not text (`training/work.py`).
    Ctrl-C, SIGTERM and a closed terminal end the run after a checkpoint. Raises BadData, BadOption, Busy or Unavailable
    before anything is trained. Later it raises BadData for data that went away, Unavailable for a compiler that failed
    (on one process both save first what was learnt), BadOption for memory that ran out, Error for a loss that is not
    finite, and for a disk that is full; they say what is saved.
    """
    with started(options.parallel, begin.device_of(options)) as ranks:
        reporter = reporter if ranks.is_first else Silent()
        work = work or Work()
        run = RunFolder.create(out, work) if ranks.is_first else RunFolder(out, work)
        # Whatever is wrong with the data is found before there is a folder that would be in the way of the next try.
        start = begin.anew(options, data, reporter.note, ranks, work)
        validation = start.data.scoring(start.options)
        with run.locked(ranks):
            if ranks.is_first:
                RunFolder.create(out, work)  # another process may have been quicker
                run.write_recipe(start.options, [str(path.absolute()) for path in data])
            return _Run(start, validation, run, ranks, reporter, sample).go()


def resume(
    out: Path,
    reporter: Reporter,
    sample: Sample | None = None,
    changes: Mapping[str, Any] | None = None,
    allow_changes: bool = False,
    work: Work | None = None,
) -> Result:
    """Goes on with the run in `out` from its latest checkpoint, bit for bit as if it had not stopped (on one CPU).

    A run that was killed before its first checkpoint begins again, and says so. changes: fields of the options in
    `training.options.HOW`, such as another number of steps; with `allow_changes`, any, and other data.
    Raises BadOption if there is no run or the recipe has changed, BadCheckpoint if its checkpoint is damaged, BadData
    if its data has changed.
    """
    run, options, data = RunFolder.open(out, work)
    # Before the options are looked at together: a warm-up that does not fit into so few steps is the lesser trouble.
    check_steps(run, (changes or {}).get("steps", options.steps))
    options = options.changed(changes or {})
    files = [Path(path) for path in data]
    with started(options.parallel, begin.device_of(options)) as ranks:
        reporter = reporter if ranks.is_first else Silent()
        with run.locked(ranks):
            if run.checkpoints.pointed() is None:
                reporter.note(f"{out} has no checkpoint yet: beginning at step 0")
                start = begin.anew(options, files, reporter.note, ranks, run.work)
            else:
                state = run.checkpoints.state()
                check_unchanged(run, options, state, allow_changes)
                start = begin.again(options, files, run, reporter.note, ranks)
                check_data(run, data, start.data.fingerprint, state, allow_changes)
            validation = start.data.scoring(start.options)
            going = _Run(start, validation, run, ranks, reporter, sample, resumed=True)
            ranks.barrier()  # all have read the folder as it was
            if ranks.is_first:
                run.write_recipe(start.options, data)
                run.take_up(start.first_step, going.best_step, options.keep)
            return going.go()


class _Run:
    """A run on its way."""

    def __init__(
        self,
        start: Beginning,
        validation: Scoring,
        folder: RunFolder,
        ranks: Ranks,
        reporter: Reporter,
        sample: Sample | None,
        resumed: bool = False,
    ) -> None:
        self.options, self.data, self.validation = start.options, start.data, validation
        self.tokenizer, self.network, self.start = start.data.tokenizer, start.network, start
        self.folder, self.ranks, self.reporter, self.sample = folder, ranks, reporter, sample
        self.first_step = self.saved = start.first_step
        self.resumed = resumed
        self.step = Step(start.network, start.options, ranks)
        state = start.state or {"best": None, "best_step": None, "seconds": 0.0, "tokens": 0}
        self.best, self.best_step, self.seconds = state["best"], state["best_step"], state["seconds"]
        # None: of a checkpoint that was written before they were counted.
        self.tokens: int | None = state.get("tokens")
        if self.best is not None and not self._scores_what(state):
            reporter.note("other tokens are scored than before, so the best checkpoint is chosen anew")
            self.best = self.best_step = None
        if start.state is not None and start.optimizer_files is not None:
            self.step.guard.restore(state.get("guard", [[], [], [0]]))
            with folder.checkpoints.reading():
                self.step.optimizer.load(start.optimizer_files)

    def _scores_what(self, state: Mapping[str, Any]) -> bool:
        """Whether the losses of that state are over the tokens that this run scores: only such are compared."""
        eval_tokens = state.get("options", {}).get("eval_tokens", self.options.eval_tokens)
        return bool(state["data"] == self.data.fingerprint and eval_tokens == self.options.eval_tokens)

    def go(self) -> Result:
        options, folder, reporter, ranks = self.options, self.folder, self.reporter, self.ranks
        batches = self.data.batches(options)
        self.window, tokens = batches.window, batches.tokens
        config, device = self.network.config, self.network.device
        meter = Meter(config, self.window, tokens, device, dtype=options.dtype, ranks=ranks.size)
        metrics = folder.metrics()
        loss, validation = last_losses(metrics)
        step, lost = self.first_step, None
        if self.tokens is None:
            counted = [line["tokens"] for line in metrics if "tokens" in line and line["step"] <= step]
            self.tokens = counted[-1] if counted else step * tokens
        # Of these weights: a kill may have come between a checkpoint and its evaluation.
        done = sum(line["step"] == step and "validation_loss" in line for line in metrics)
        was_stale = self._is_stale(step) and done >= len(self.validation.due(step, False))
        scored = bool(self.validation.due(options.steps, True))
        for said in opening(self.start, batches, folder.path, folder.command, meter.describe(), scored, was_stale):
            reporter.note(said)
        reporter.start(step, options.steps)
        with (
            self._trackers() as trackers,
            stop_requests() as stop,
            explained(options, device, self.tokenizer.vocab_size, self.window, f" Change it {folder.again}.", ranks),
        ):
            validation = self._evaluate(step, trackers, done) or validation
            meter.start(step, options.steps)
            while step < options.steps and not self._is_stale(step):
                try:
                    batch = batches.rows(step, self.step.rows)
                except BadData as error:
                    lost = error  # of this process alone, it may be; what was learnt is saved by all
                # Compiling takes minutes, and there is nothing to save yet. (The others of many would wait in vain.)
                compiles = options.compile and step == self.first_step and ranks.size == 1
                try:
                    with stop.at_once(compiles):
                        if self._all_stop(stop.is_set() or lost is not None):
                            break
                        result = self.step(step, *batch)
                except KeyboardInterrupt:
                    if not compiles:
                        raise
                    break
                except Exception as error:
                    self._failed(error, step, stop.is_set())
                    break
                if not result.finite:
                    what = f"the loss is {result.loss} and the gradient's norm {result.norm}"
                    raise failures.diverged(folder, step, what, step + 1)
                step += 1
                loss, last = result.loss, step == options.steps
                facts = meter.step(step)
                facts |= {"learning_rate": options.learning_rate_at(step - 1), "gradient_norm": result.norm}
                self.seconds += tokens / facts["tokens_per_second"]
                self.tokens += tokens  # and not by multiplying: a run may go on with another batch
                reporter.step(step, loss, facts["tokens_per_second"], facts)
                line = {"step": step, "train_loss": loss, "tokens": self.tokens, "seconds": round(self.seconds, 3)}
                self._log(trackers, line | rounded(facts) | ({"skipped": 1} if result.skipped else {}))
                if result.skipped:
                    reporter.note(f"step {step}: skipped, a spike: loss {loss:.3f}, gradient norm {result.norm:.3g}")
                with meter.paused():
                    # Saved first: an evaluation may take long, and fail.
                    if last or is_due(step, options.save_every):
                        self._save(step)
                    validation = self._evaluate(step, trackers) or validation
                    if last or is_due(step, options.sample_every):
                        self._sample(step, trackers)
            if self.saved < step:
                self._save(step)
            stale = step < options.steps and self._is_stale(step)
            if stale:
                # What decided that has been scored; the end scores all.
                before = max(1, done if step == self.first_step else 1)
                validation = self._evaluate(step, trackers, before, last=True) or validation
            if unreadable := ranks.heard(None if lost is None else str(lost)):
                raise failures.lost(folder, self.saved, unreadable)
        if ranks.is_first:
            name = title(folder.path.resolve().name, config, options, self.window)
            draw_losses(folder.metrics(), folder.path / "loss.png", reporter.note, name)
        if stale and not was_stale:
            reporter.note(f"step {step}: stopped, no better validation since step {self.best_step} (patience)")
        interrupted = step < options.steps and not stale
        best = folder.checkpoints.pointed("best") if ranks.is_first else None
        return Result(step, loss, validation, folder.path, interrupted, ranks.is_first, self.first_step, best)

    def _is_stale(self, step: int) -> bool:
        """Whether `patience` validations have passed without a better one: a function of what a checkpoint knows."""
        patience = self.options.patience
        return bool(
            patience and self.best_step is not None and step - self.best_step >= patience * self.options.eval_every
        )

    def _all_stop(self, stop: bool) -> bool:
        """Whether any process has to stop: a signal reaches them at different steps."""
        return bool(self.ranks.total(torch.tensor(float(stop), device=self.network.device)))

    def _failed(self, error: Exception, step: int, stop: bool) -> None:
        """Raises what a step raised, in words where it is a compiler's; on one process what was learnt is saved first.

        Returns where a compiler died of a signal that asked this run to stop, as all programs of a terminal do: the
        weights are still those of `step`.
        """
        alone = self.ranks.size == 1
        compilers = self.options.compile and failures.is_of_compiler(error)
        if no_room(error) or not (compilers or (stop and not alone and is_of_others(error))):
            raise error
        if stop and alone:
            return
        if stop:
            # The others wait for this process in the middle of a step, or have gone.
            self.reporter.note(failures.stopped_in_step(self.folder, self.saved))
            raise KeyboardInterrupt from error
        if alone and self.saved < step:
            try:
                self._save(step)
            except Error as unsaved:
                self.reporter.note(str(unsaved))
        raise failures.compiler_failed(self.folder, self.saved, error, self.ranks.rank) from error

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

    def _evaluate(self, step: int, trackers: Trackers, done: int = 0, last: bool = False) -> Evaluation | None:
        """Scores what of the held-out tokens is due after a step, but for what is `done` already, and keeps better
        weights than any before; returns the last evaluation, None if none is due. last: no step comes after it."""
        scored = None
        last = last or step == self.options.steps
        for number, ids in list(enumerate(self.validation.due(step, last)))[done:]:
            try:
                scored = self.validation.score(ids, self.step, self.window)
            except BadData as error:
                # Several processes cannot: the others do not know.
                if self.saved < step and self.ranks.size == 1:
                    self._save(step)
                raise failures.lost(self.folder, self.saved, str(error)) from None
            if not math.isfinite(scored.nats):
                raise failures.diverged(self.folder, step, f"the validation loss is {scored.nats}", step)
            first = number == 0
            better = first and self.ranks.agreed(self.best is None or scored.nats_per_token < self.best)
            if better:
                self.best, self.best_step = scored.nats_per_token, step
                if self.saved == step:
                    self.folder.restate(step, self._state(), self.ranks, self.options.keep)
            self.reporter.evaluation(step, scored)
            line = {
                "step": step,
                "validation_loss": scored.nats_per_token,
                "validation_bits_per_byte": scored.bits_per_byte,
                "validation_tokens": scored.tokens,
            }
            self._log(trackers, line)
            if better and self.saved < step:
                self._save(step)
        return scored

    def _save(self, step: int) -> None:
        optimizer, keep = self.step.optimizer, self.options.keep
        self.folder.save(step, self.network, self.tokenizer, optimizer, self._state(), self.ranks, keep)
        self.saved = step

    def _state(self) -> dict[str, Any]:
        return {
            "data": self.data.fingerprint,
            "best": self.best,
            "best_step": self.best_step,
            "seconds": self.seconds,
            "tokens": self.tokens,
            "tokenizer": self.tokenizer.fingerprint(),
            "options": dataclasses.asdict(self.options),
            "guard": self.step.guard.state(),
        }

    def _sample(self, step: int, trackers: Trackers) -> None:
        if self.sample is None:
            return
        with self.ranks.whole(self.network) as network:
            if network is None:
                return
            network.eval()
            plain = self.folder.work.form.plain(network).eval()
            text = self.sample(LanguageModel(plain, self.tokenizer, source=str(self.folder.path)))
        self.folder.write_sample(step, text)
        self.reporter.sample(step, text)
        trackers.text(step, text)
