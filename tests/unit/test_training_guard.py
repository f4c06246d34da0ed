"""The spike guard: what is told from what is noise, and what survives a stop."""

import json

import pytest

from gpt2.training.guard import MOST_IN_A_ROW, WINDOW, SpikeGuard


def settled(most=6.0):
    """A guard that has seen a full window of losses about 3.0 and norms about 1.0, with a deviation of 0.1 each."""
    guard = SpikeGuard(most)
    for step in range(WINDOW):
        sign = 1 if step % 2 else -1
        assert not guard.is_spike(3 + 0.1 * sign, 1 + 0.1 * sign)
    return guard


def test_a_loss_or_a_norm_far_above_the_last_ones_is_a_spike():
    assert settled().is_spike(3.7, 1.0)
    assert settled().is_spike(3.0, 1.7)
    assert not settled().is_spike(3.5, 1.5)


def test_what_falls_is_no_spike():
    assert not settled().is_spike(0.1, 0.001)


def test_nothing_is_skipped_before_the_window_is_full():
    guard = SpikeGuard(6.0)
    for _ in range(WINDOW - 1):
        guard.is_spike(3.0, 1.0)
    assert not guard.is_spike(1e9, 1e9)


def test_zero_means_never():
    assert not settled(0.0).is_spike(1e9, 1e9)


@pytest.mark.parametrize(("loss", "norm", "spike"), [(3.029, 1.0, False), (3.031, 1.0, True), (3.0, 1.09, False)])
def test_steady_steps_need_a_real_change(loss, norm, spike):
    """With no deviation at all, a hair above the mean would be infinitely many deviations."""
    guard = SpikeGuard(6.0)
    for _ in range(WINDOW):
        guard.is_spike(3.0, 1.0)
    assert guard.is_spike(loss, norm) is spike


def test_spikes_in_a_row_stay_spikes():
    guard = settled()
    assert all(guard.is_spike(30.0, 1.0) for _ in range(MOST_IN_A_ROW))
    assert not guard.is_spike(3.0, 1.0)
    assert guard.is_spike(30.0, 1.0)


def test_a_level_that_stays_is_learnt_anew():
    guard = settled()
    assert all(guard.is_spike(30.0, 1.0) for _ in range(MOST_IN_A_ROW))
    assert not any(guard.is_spike(30.0 + 0.1 * (step % 2), 1.0) for step in range(WINDOW + 10))
    assert guard.is_spike(60.0, 1.0)


def test_old_steps_are_forgotten():
    guard = settled()
    for step in range(WINDOW):
        guard.is_spike(3.0 - 0.01 * step, 1.0)
    assert guard.is_spike(6.0, 1.0)
    # What was a usual loss at first is one no more.
    for _ in range(WINDOW):
        guard.is_spike(1.0, 1.0)
    assert guard.is_spike(3.0, 1.0)


def test_a_restored_guard_decides_as_the_one_that_never_stopped():
    guard, stopped = settled(), SpikeGuard(6.0)
    stopped.restore(json.loads(json.dumps(guard.state())))
    for loss in (3.2, 3.59, 3.61, 4.0, 3.1):
        assert guard.is_spike(loss, 1.0) == stopped.is_spike(loss, 1.0)
    assert guard.state() == stopped.state()
