"""Rows to examples: a prompt's ids and a target's, with end of text behind; batches of them; the loss on held-out ones.

Loss is on the target alone: the targets of everything before it, and of the padding behind, are -100. What a step reads
is a pure function of (seed, step), and so is how far it is padded, so a run may be resumed and shared by processes.
"""

import functools
import hashlib
import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gpt2.errors import BadData, BadPrompt
from gpt2.finetuning.rows import Problems, Row, read_rows
from gpt2.model import GPT2
from gpt2.shards import digest, held_out
from gpt2.tasks.template import DoesNotFit, Template
from gpt2.tokenizer import Tokenizer
from gpt2.training.evaluate import Evaluation
from gpt2.training.options import TrainingOptions
from gpt2.training.ranks import Ranks
from gpt2.training.step import Step
from gpt2.training.validation import is_due

Ids = npt.NDArray[np.int32]
Note = Callable[[str], None]

# Rows of a batch are padded to a multiple of this.
_ROUND = 16


@dataclass(frozen=True, slots=True)
class Examples:
    """Examples, one behind the other. ids: (tokens,) int32; starts: (examples + 1,) int64, where each begins; targets:
    (examples,) int64, the place in each of its target's first id; text_bytes: (examples,) int64, the targets' bytes."""

    ids: Ids
    starts: npt.NDArray[np.int64]
    targets: npt.NDArray[np.int64]
    text_bytes: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.targets)

    def example(self, index: int) -> Ids:
        """The ids of one example: prompt, target, end of text."""
        return self.ids[self.starts[index] : self.starts[index + 1]]

    def prompt(self, index: int) -> list[int]:
        """The ids of an example's prompt."""
        found: list[int] = self.example(index)[: self.targets[index]].tolist()
        return found

    def target(self, index: int) -> list[int]:
        """The ids of an example's target, without end of text."""
        found: list[int] = self.example(index)[self.targets[index] : -1].tolist()
        return found

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """(examples,) int64: tokens that a model reads of each, all but the last."""
        return np.diff(self.starts) - 1

    def stacked(self, indices: Sequence[int] | npt.NDArray[np.int64], width: int) -> tuple[Tensor, Tensor]:
        """Inputs and targets of some examples, two (len(indices), width) int64, padded at their ends."""
        inputs = np.zeros((len(indices), width), dtype=np.int64)
        targets = np.full((len(indices), width), -100, dtype=np.int64)
        for row, index in enumerate(indices):
            ids, begin = self.example(int(index)), int(self.targets[index])
            inputs[row, : len(ids) - 1] = ids[:-1]
            targets[row, begin - 1 : len(ids) - 1] = ids[begin:]
        return torch.from_numpy(inputs), torch.from_numpy(targets)


@dataclass(frozen=True, slots=True)
class ExampleBatches:
    """Batches of examples, each epoch in an order that the seed decides; every example is read once an epoch.

    A step's rows are padded to the longest of all of its rows, whoever reads which. whole: to the longest of all
    instead, so that a compiled pass has one shape.
    """

    examples: Examples
    batch_size: int
    seed: int
    whole: bool = False

    @property
    def window(self) -> int:
        """Tokens in the longest row."""
        return int(self.examples.lengths.max())

    @property
    def tokens(self) -> int:
        """Tokens of a step on average, without padding."""
        return round(self.batch_size * float(self.examples.lengths.mean()))

    def epochs(self, steps: int) -> float:
        """How many times so many steps read the examples."""
        return steps * self.batch_size / len(self.examples)

    def rows(self, step: int, rows: range) -> tuple[Tensor, Tensor]:
        """Some rows of a step's batch: inputs and targets, two (len(rows), width) int64."""
        count = len(self.examples)
        first = step * self.batch_size
        chosen = [
            int(_order(self.seed, index // count, count)[index % count])
            for index in range(first, first + self.batch_size)
        ]
        longest = self.window if self.whole else int(self.examples.lengths[chosen].max())
        width = min(self.window, -(-longest // _ROUND) * _ROUND)
        return self.examples.stacked([chosen[row] for row in rows], width)


@functools.lru_cache(maxsize=2)
def _order(seed: int, epoch: int, count: int) -> npt.NDArray[np.int64]:
    """The order of an epoch: a pure function, kept because every step asks for it."""
    return np.random.default_rng([seed, epoch]).permutation(count)


@dataclass(frozen=True, slots=True)
class Rows:
    """What a run learns from rows, as the trainer takes it (`training/work.py`). shown: values of the first held-out
    rows, to be answered."""

    training: Examples
    held: Examples
    tokenizer: Tokenizer
    fingerprint: str
    shown: tuple[Row, ...] = ()

    def batches(self, options: TrainingOptions) -> ExampleBatches:
        """The batches of a run."""
        return ExampleBatches(self.training, options.batch_size, options.seed, options.compile)

    def scoring(self, options: TrainingOptions) -> "HeldOut":
        """The held-out examples."""
        return HeldOut(self.held, options)


class HeldOut:
    """The loss on held-out targets, on the way of the first examples with about `eval_tokens` target tokens."""

    def __init__(self, examples: Examples, options: TrainingOptions) -> None:
        self._examples, self._every = examples, options.eval_every
        self._part = _first(examples, options.eval_tokens)

    def due(self, step: int, last: bool) -> list[int]:
        """Numbers of examples that are scored after a step; all after the last one."""
        whole = len(self._examples)
        if not whole or not (last or is_due(step, self._every)):
            return []
        return [self._part, whole] if last and self._part < whole else [self._part]

    def score(self, part: int, step: Step, window: int) -> Evaluation:
        """The loss of the first `part` examples with the weights of `step`; every process calls it, and they share
        the work."""
        return evaluate_examples(
            step.network, self._examples, part, step.evaluation_loss, step.micro_batch_size, step.ranks
        )


@torch.no_grad()
def evaluate_examples(
    network: GPT2,
    examples: Examples,
    count: int,
    loss: Callable[[Tensor, Tensor], Tensor],
    rows: int,
    ranks: Ranks | None = None,
) -> Evaluation:
    """The summed loss of the first `count` examples' targets, their end of text included.

    loss: gives the sum over (inputs, targets); rows: examples at a time.
    """
    ranks = ranks or Ranks()
    training = network.training
    network.eval()
    nats, tokens = 0.0, 0
    # Rows of like length together, so that little is padded.
    order = np.argsort(examples.lengths[:count], kind="stable")[::-1]
    # Every process makes as many passes: where weights are sharded, a pass is everybody's.
    portions = [order[start : start + rows] for start in range(0, count, rows)]
    for first in range(0, len(portions), ranks.size):
        mine = first + ranks.rank
        chosen = portions[mine] if mine < len(portions) else portions[first]
        inputs, targets = examples.stacked(chosen, int(examples.lengths[chosen].max()))
        found = float(loss(inputs.to(network.device), targets.to(network.device)))
        if mine < len(portions):
            nats += found
            tokens += int((targets != -100).sum())
    network.train(training)
    if ranks.size > 1:
        both = ranks.total(torch.tensor([nats, tokens], dtype=torch.float64, device=network.device)).tolist()
        nats, tokens = both[0], int(both[1])
    return Evaluation(nats, tokens, int(examples.text_bytes[:count].sum()))


def _first(examples: Examples, most: int) -> int:
    """How many of the first examples have `most` target tokens together (0: all of them)."""
    if not most:
        return len(examples)
    tokens = np.cumsum(np.diff(examples.starts) - examples.targets)
    return min(len(examples), int(np.searchsorted(tokens, most)) + 1)


def open_rows(
    places: Sequence[str],
    template: Template,
    options: TrainingOptions,
    tokenizer: Tokenizer,
    note: Note,
    *,
    held: str | None = None,
    skip_bad: bool = False,
    most: int = 0,
    shown: int = 0,
) -> Rows:
    """Examples from files of rows (see rows.py; `most` of them at most, 0: all), some of them held out: those of the
    file `held`, or a share (options.validation) by the hash of their prompts: rows with one prompt stay together.

    What is cut, and what is left out, is told to `note`. Raises BadData for rows that cannot be used (unless
    `skip_bad`), for columns that are not there, and where nothing is left; BadOption for a template without use.
    """
    if tokenizer.end_of_text is None:
        raise BadData("This tokenizer has no <|endoftext|>, which ends a target.")
    made = _Making(template, tokenizer, options.context)
    training = made.read(places, skip_bad, note, most)
    if held is not None:
        validation = made.read([held], skip_bad, note)
        known = {found.prompt for found in training}
        if both := sum(found.prompt in known for found in validation):
            note(f"{both:,} of {len(validation):,} held-out examples have a prompt that is trained on, too")
    elif options.validation:
        hashes = np.array([digest(found.prompt.encode())[0] for found in training], dtype=np.uint64)
        out = held_out(hashes, options.validation)
        if out.all():
            out = hashes == hashes.min()
        if out.all():
            raise BadData(
                f"All {len(training)} examples have the same prompt, so none can be held out; give more, or "
                "--validation 0."
            )
        validation = [found for found, is_out in zip(training, out, strict=True) if is_out]
        training = [found for found, is_out in zip(training, out, strict=True) if not is_out]
    else:
        validation = []
    examples, apart = _packed(training), _packed(validation)
    note(
        f"{len(examples):,} examples to train on ({_target_tokens(examples):,} of their {len(examples.ids):,} tokens "
        f"are learnt), {len(apart):,} held out"
    )
    fingerprint = hashlib.sha256(examples.ids.tobytes() + examples.targets.tobytes())
    fingerprint.update(apart.ids.tobytes() + apart.targets.tobytes())
    rows = tuple(found.row for found in validation[:shown])
    return Rows(examples, apart, tokenizer, fingerprint.hexdigest(), rows)


def _target_tokens(examples: Examples) -> int:
    return int((np.diff(examples.starts) - examples.targets).sum())


@dataclass(slots=True)
class _Made:
    """An example on its way: its row, its prompt's text, and its ids."""

    row: Row
    prompt: str
    ids: Ids
    target: int
    text_bytes: int


@dataclass(slots=True)
class _Making:
    """Makes examples of rows, and counts what it cuts and leaves out."""

    template: Template
    tokenizer: Tokenizer
    context: int

    def read(self, places: Sequence[str], skip_bad: bool, note: Note, most: int = 0) -> list[_Made]:
        """The examples of files. Raises BadData."""
        problems = Problems(skip_bad)
        found, empty, alone, long, cut = [], 0, 0, 0, 0
        for source, number, row in itertools.islice(read_rows(places, self.template.fields, problems), most or None):
            if self.template.is_empty(row):
                empty += 1
                continue
            if self.template.has_no_prompt(row):
                alone += 1
                continue
            try:
                made = self._example(row)
            except DoesNotFit:
                long += 1
                continue
            except BadPrompt as error:
                problems.add(source, number, str(error))
                continue
            cut += made[1]
            found.append(made[0])
        fit = f"fit into {self.context} tokens"
        if told := problems.check():
            note(told)
        if empty:
            note(f"left out: {empty:,} examples with an empty target")
        if alone:
            note(f"left out: {alone:,} examples with an empty prompt")
        if long:
            note(f"left out: {long:,} examples whose target does not {fit} with the template")
        if cut:
            note(f"cut: {cut:,} prompts at the end of their longest field, to {fit}")
        if not found:
            names = ", ".join(places[:3])
            if not problems.rows:
                raise BadData(f"{names}: there are no rows.")
            raise BadData(
                f"{names}: of {problems.rows:,} rows none can be learnt from ({problems.count:,} cannot be used, "
                f"{empty:,} have an empty target, {alone:,} an empty prompt, {long:,} a target that does not {fit})"
                + (f": {next(iter(problems.said.values()))[0]}." if problems.said else ".")
            )
        return found

    def _example(self, row: Row) -> tuple[_Made, bool]:
        target = self.template.target(row)
        # A target of hours to tokenise does not fit either: no token has more than some hundred bytes.
        ids = self.tokenizer.encode(target)
        # The last id is learnt and not read, so that there is room for one more than the window.
        room = self.context + 1 - len(ids) - 1
        if room < 1:
            raise DoesNotFit
        prompt, cut = self.template.prompt_ids(row, self.tokenizer, room)
        whole = np.array([*prompt, *ids, self.tokenizer.end_of_text], dtype=np.int32)
        return _Made(row, self.template.prompt(row), whole, len(prompt), len(target.encode())), cut


def _packed(found: Iterable[_Made]) -> Examples:
    found = list(found)
    starts = np.zeros(len(found) + 1, dtype=np.int64)
    np.cumsum([len(made.ids) for made in found], out=starts[1:])
    return Examples(
        np.concatenate([made.ids for made in found]) if found else np.zeros(0, dtype=np.int32),
        starts,
        np.array([made.target for made in found], dtype=np.int64),
        np.array([made.text_bytes for made in found], dtype=np.int64),
    )
