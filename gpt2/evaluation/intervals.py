"""95 % intervals by the bootstrap: what a figure would be on other documents or items of the same kind.

Units (documents, items) are drawn with replacement, as many as there are, again and again. Units of one author or one
series are not independent, so the truth is somewhat wider.
"""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from gpt2.errors import BadOption

Floats = npt.NDArray[np.float64]
SAMPLES = 2000
# Numbers that are gathered at once.
_AT_ONCE = 2**22


def ratio(sums_SK: Floats) -> Floats:
    """The first sum by the second, (S,): a mean loss, an accuracy."""
    return np.asarray(sums_SK[:, 0] / sums_SK[:, 1])


def resampled(
    values: Sequence[Sequence[float]] | Floats,
    statistic: Callable[[Floats], Floats] = ratio,
    *,
    seed: int = 1,
    samples: int = SAMPLES,
) -> Floats:
    """The statistic of so many samples of the units, (samples,) float64.

    values: (units, K), numbers of each unit that add up over units: (nats, tokens), (correct, 1), counts of n-grams.
    statistic: from sums (S, K) to (S,). The draws depend on the seed and the number of units alone, so two models'
    samples over the same units can be compared one by one. Raises BadOption where there are no units.
    """
    values_UK = np.asarray(values, dtype=np.float64)
    if values_UK.ndim != 2 or not len(values_UK):
        raise BadOption(
            f"An interval needs a list of numbers for each unit, and the values have shape {values_UK.shape}."
        )
    units = len(values_UK)
    random = np.random.default_rng(seed)
    sums_SK = np.empty((samples, values_UK.shape[1]))
    step = max(1, _AT_ONCE // values_UK.size)
    for start in range(0, samples, step):
        part = sums_SK[start : start + step]
        part[:] = values_UK[random.integers(units, size=(len(part), units))].sum(axis=1)
    return statistic(sums_SK)


def interval(
    values: Sequence[Sequence[float]] | Floats,
    statistic: Callable[[Floats], Floats] = ratio,
    *,
    seed: int = 1,
    samples: int = SAMPLES,
) -> tuple[float, float]:
    """The 95 % interval of a statistic: percentiles 2.5 and 97.5 of `resampled`, whose arguments these are."""
    low, high = np.percentile(resampled(values, statistic, seed=seed, samples=samples), (2.5, 97.5))
    return float(low), float(high)
