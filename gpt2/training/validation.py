"""What a run scores of its held-out tokens, and when: a part on the way, all at the end.

It decides before the first step that there is something to score; `evaluate.py` has the protocol. It remembers nothing.
"""

import functools

from gpt2.errors import BadData, BadOption
from gpt2.training.data import Data, Part, Tokens
from gpt2.training.evaluate import Evaluation, count_bytes, evaluate, nothing_to_score, scores_something
from gpt2.training.options import TrainingOptions
from gpt2.training.step import Step


class Validation:
    """The held-out tokens of a run. Raises BadOption or BadData if there are some and nothing in them can be scored."""

    def __init__(self, data: Data, options: TrainingOptions) -> None:
        self._data, self._options = data, options
        self._whole, most = data.validation, options.eval_tokens
        self._part: Tokens = Part(self._whole, 0, most) if 0 < most < len(self._whole) else self._whole
        end = data.tokenizer.end_of_text
        assert end is not None, "data without a separator is refused when it is opened"
        self._end = end
        if len(self._whole) and not scores_something(self._whole, end):
            raise BadData(f"{nothing_to_score(self._whole)} Hold out more, or nothing (--validation 0).")
        if len(self._whole) and not scores_something(self._part, end):
            raise BadOption(
                f"eval_tokens is {most}, and of so few held-out tokens none is text behind another token; choose more, "
                "or 0 for all."
            )

    def due(self, step: int, last: bool) -> list[Tokens]:
        """What is scored after a step: the part, by whose losses checkpoints are compared, and after the last one
        all."""
        if not len(self._whole) or not (last or is_due(step, self._options.eval_every)):
            return []
        return [self._part, self._whole] if last and self._part is not self._whole else [self._part]

    def score(self, ids: Tokens, step: Step, window: int) -> Evaluation:
        """The loss of what `due` gave, with the weights of `step`; every process calls it. window: that of training."""
        network = step.network
        # As many tokens at a time as training has, or fewer: what fits there fits here.
        rows = max(1, step.micro_batch_size * window // network.config.n_positions)
        text_bytes = self._whole_bytes if ids is self._whole else self._part_bytes
        return evaluate(
            network, ids, self._end, text_bytes, batch_size=rows, loss=step.evaluation_loss, ranks=step.ranks
        )

    @functools.cached_property
    def _whole_bytes(self) -> int:
        known = self._data.validation_bytes
        return count_bytes(self._whole, self._data.tokenizer) if known is None else known

    @functools.cached_property
    def _part_bytes(self) -> int:
        return count_bytes(self._part, self._data.tokenizer)


def is_due(step: int, every: int) -> bool:
    """Whether a step is one of every so many; 0: none is."""
    return every > 0 and step > 0 and step % every == 0
