"""The bootstrap: against scipy's, against theory, and paired draws."""

import numpy as np
import pytest
from scipy import stats

from gpt2.errors import BadOption
from gpt2.evaluation.intervals import interval, resampled


def units(count: int = 200, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    sizes = random.integers(1, 100, count).astype(float)
    return np.stack([sizes * random.gamma(3, 1, count), sizes], axis=1)


def test_the_interval_of_a_ratio_is_about_scipys() -> None:
    values = units()
    theirs = stats.bootstrap(
        (values[:, 0], values[:, 1]),
        lambda nats, tokens, axis: nats.sum(axis) / tokens.sum(axis),
        paired=True,
        method="percentile",
        n_resamples=4000,
        rng=5,
    ).confidence_interval
    low, high = interval(values, samples=4000)
    width = theirs.high - theirs.low
    assert abs(low - theirs.low) < 0.06 * width
    assert abs(high - theirs.high) < 0.06 * width


def test_the_interval_of_a_share_is_about_the_normal_one() -> None:
    values = [(float(number < 300), 1.0) for number in range(1000)]
    low, high = interval(values)
    spread = 1.96 * (0.3 * 0.7 / 1000) ** 0.5
    assert low == pytest.approx(0.3 - spread, abs=0.15 * spread)
    assert high == pytest.approx(0.3 + spread, abs=0.15 * spread)


def test_any_statistic_of_sums() -> None:
    values = units()
    low, high = interval(values, lambda sums: np.exp(sums[:, 0] / sums[:, 1]))
    assert np.log([low, high]) == pytest.approx(interval(values), rel=1e-3)
    three = np.concatenate([values, np.ones((200, 1))], axis=1)
    assert (resampled(three, lambda sums: sums[:, 2]) == 200).all()


def test_the_seed_decides_and_models_share_their_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    values = units()
    assert interval(values) == interval(values)
    assert interval(values) != interval(values, seed=2)
    twice = values * [2, 1]
    np.testing.assert_allclose(resampled(twice), 2 * resampled(values), rtol=1e-12)
    # However many samples are made at once, they are those of one table of draws.
    whole = resampled(values)
    monkeypatch.setattr("gpt2.evaluation.intervals._AT_ONCE", 1000)
    np.testing.assert_allclose(resampled(values), whole, rtol=1e-12)
    draws = np.random.default_rng(1).integers(200, size=(2000, 200))
    sums = values[draws].sum(1)
    np.testing.assert_allclose(whole, sums[:, 0] / sums[:, 1], rtol=1e-12)


@pytest.mark.parametrize("values", [[], np.zeros(3)])
def test_no_units_are_an_error(values: object) -> None:
    with pytest.raises(BadOption, match="numbers for each unit"):
        interval(values)


def test_one_unit_has_no_width() -> None:
    assert interval([(3.0, 2.0)]) == (1.5, 1.5)
