"""Steps that had better not be taken: what is not finite ends a run, and a spike is skipped.

A spike is a loss or a gradient norm far above those of the last steps, counted in their standard deviations (z-score).
Skipping its update is llm.c's remedy against runs that diverge from one bad batch. Nothing here knows of weights.
"""

import statistics
from collections import deque
from collections.abc import Sequence

WINDOW = 128
"""Steps that a loss and a norm are compared with; before so many have been seen, nothing is skipped."""

MOST_IN_A_ROW = 10
"""Spikes that are skipped one after the other."""

# Below these differences from the mean, in shares of it, nothing is a spike however steady the steps were.
_LEAST_LOSS, _LEAST_NORM = 0.01, 0.1


class SpikeGuard:
    """Tells spikes by the losses and gradient norms of the last `WINDOW` steps. `most`: z-score; 0: nothing is one."""

    def __init__(self, most: float) -> None:
        self.most = most
        self._in_a_row = 0
        self._losses: deque[float] = deque(maxlen=WINDOW)
        self._norms: deque[float] = deque(maxlen=WINDOW)

    def is_spike(self, loss: float, norm: float) -> bool:
        """Whether a step with this loss (nats) and gradient norm had better be skipped; both must be finite.

        Spikes are not remembered, or a few would make themselves the rule. But after `MOST_IN_A_ROW` the level has
        changed for good, and is learnt anew.
        """
        spike = self.most > 0 and (
            _above(self._losses, loss, _LEAST_LOSS) > self.most or _above(self._norms, norm, _LEAST_NORM) > self.most
        )
        self._in_a_row = self._in_a_row + 1 if spike else 0
        if self._in_a_row > MOST_IN_A_ROW:
            spike, self._in_a_row = False, 0
            self._losses.clear()
            self._norms.clear()
        if not spike:
            self._losses.append(loss)
            self._norms.append(norm)
        return spike

    def state(self) -> list[list[float]]:
        """What resuming needs, for JSON."""
        return [list(self._losses), list(self._norms), [self._in_a_row]]

    def restore(self, state: Sequence[Sequence[float]]) -> None:
        """Takes back what `state` gave."""
        losses, norms, (in_a_row,) = state
        self._in_a_row = int(in_a_row)
        self._losses.extend(losses)
        self._norms.extend(norms)


def _above(past: deque[float], value: float, least: float) -> float:
    """Standard deviations that a value lies above the past; 0 while the past is short."""
    if len(past) < WINDOW:
        return 0.0
    mean = statistics.fmean(past)
    if value - mean <= least * abs(mean):
        return 0.0
    return (value - mean) / max(statistics.pstdev(past, mean), 1e-12)
