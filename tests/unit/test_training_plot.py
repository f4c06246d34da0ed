"""The picture of the losses says what was measured."""

import math

import matplotlib.figure
import pytest

from gpt2.training.options import TrainingOptions
from gpt2.training.plot import draw_losses, title


@pytest.fixture
def lines(tmp_path, monkeypatch):
    """Draws metrics, and gives the lines of the picture by their labels."""
    figures = []
    real = matplotlib.figure.Figure.savefig

    def savefig(self, *arguments, **options):
        figures.append(self)
        real(self, *arguments, **options)

    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", savefig)

    def draw(metrics, title=""):
        draw_losses(metrics, tmp_path / "loss.png", pytest.fail, title)
        assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
        axes = figures[-1].axes[0]
        drawn = {line.get_label(): list(zip(*line.get_data(), strict=True)) for line in axes.get_lines()}
        return drawn, [text.get_text() for text in axes.texts]

    draw.figures = figures
    return draw


def validation(step, loss, tokens):
    return {"step": step, "validation_loss": loss, "validation_tokens": tokens, "validation_bits_per_byte": 1.0}


def test_the_mean_does_not_lag_behind_the_losses(lines):
    falling = [{"step": step, "train_loss": 1000.0 - step} for step in range(1, 501)]
    drawn, _ = lines(falling)
    mean = next(points for label, points in drawn.items() if label.startswith("training, mean of"))
    # A straight line's mean is the line, but for the end, where there is nothing ahead to take in.
    assert all(loss == pytest.approx(1000 - step) for step, loss in mean[:480])
    assert mean[-1][1] == pytest.approx(500, abs=10)


def test_a_score_of_more_tokens_at_the_end_is_no_part_of_the_line(lines):
    training = [{"step": step, "train_loss": 3.0} for step in range(1, 5)]
    drawn, texts = lines([*training, validation(2, 3.5, 100), validation(4, 3.2, 100), validation(4, 2.5, 9000)])
    assert drawn["validation"] == [(2, 3.5), (4, 3.2)]
    assert drawn["validation, all 9,000 tokens"] == [(4, 2.5)]
    assert texts == ["2.500"]


def test_one_step_and_no_validation(lines):
    drawn, texts = lines([{"step": 1, "train_loss": 3.0}])
    assert drawn["training, each batch"] == [(1, 3.0)]
    assert texts == [" 3.000"]


def falling(steps):
    """Losses as they fall: from 11 to 4 at once, then slowly to 3, with one spike."""
    losses = [3 + 8 * math.exp(-step / 20) + (1 - step / steps) for step in range(steps)]
    losses[steps // 2] = 9.0
    return [{"step": step + 1, "train_loss": loss, "tokens": 1000 * (step + 1)} for step, loss in enumerate(losses)]


def test_many_steps_are_drawn_as_few_points_and_lose_nothing(lines):
    metrics = falling(20_000)
    lines(metrics)
    axes = lines.figures[-1].axes[0]
    (band,) = axes.collections
    corners = band.get_paths()[0].vertices
    assert len(corners) < 5000
    assert len(axes.get_lines()[0].get_xdata()) < 2000
    # The spike is there, and so is the last step.
    assert corners[:, 1].max() == pytest.approx(max(line["train_loss"] for line in metrics))
    assert 9.0 in corners[:, 1]
    assert axes.get_lines()[0].get_xdata()[-1] == 20_000
    assert axes.get_xlabel() == "step (20 million tokens in all)"


@pytest.mark.parametrize("steps", [500, 20_000])
def test_the_fall_of_the_first_steps_leaves_room_for_the_rest(lines, steps):
    lines([*falling(steps), validation(steps // 2, 3.6, 100), validation(steps, 3.1, 100)])
    low, high = lines.figures[-1].axes[0].get_ylim()
    assert 2.5 < low < 3.0
    assert 4.0 < high < 5.5


def test_the_best_validation_is_marked_where_the_last_is_worse(lines):
    training = [{"step": step, "train_loss": 3.0} for step in range(1, 5)]
    drawn, texts = lines([*training, validation(2, 3.2, 100), validation(4, 3.5, 100)])
    assert drawn["best, 3.200"] == [(2, 3.2)]
    assert texts == ["3.500"]
    low, high = lines.figures[-1].axes[0].get_ylim()
    assert low < 3.0
    assert high > 3.5


def test_a_picture_of_three_steps(lines):
    """Whole steps on the axis, all of it inside, no mean of what is hardly there, and nothing over the curves."""
    training = [{"step": step, "train_loss": 5.0 - step, "tokens": 2048 * step} for step in range(1, 4)]
    drawn, _ = lines([*training, validation(3, 2.5, 100)], "mine: 2 x 32, muon")
    figure = lines.figures[-1]
    axes = figure.axes[0]
    left, right = axes.get_xlim()
    shown = [tick.get_text() for tick in axes.get_xticklabels() if left <= tick.get_position()[0] <= right]
    assert shown == ["0", "1", "2", "3"]
    assert right > 3.02
    assert axes.get_xlabel() == "step (6.14 thousand tokens in all)"
    assert axes.get_title(loc="left") == "mine: 2 x 32, muon"
    assert set(drawn) == {"training, each batch", "validation"}
    (legend,) = figure.legends
    assert axes.get_legend() is None
    assert not legend.get_window_extent().overlaps(axes.get_window_extent())


def test_a_mean_is_of_as_many_as_its_label_says_and_there_are_enough(lines):
    for steps, label in ((99, None), (100, "training, mean of up to 5"), (500, "training, mean of up to 21")):
        drawn, _ = lines([{"step": step, "train_loss": 3.0} for step in range(1, steps + 1)])
        assert [name for name in drawn if "mean" in name] == ([label] if label else [])


def test_one_loss_is_written_whole_on_its_axis(lines):
    lines([{"step": 1, "train_loss": 10.803}])
    axes = lines.figures[-1].axes[0]
    assert axes.yaxis.get_offset_text().get_text() == ""


def test_a_name_is_no_formula_and_fits(lines):
    options = TrainingOptions()
    config = options.model_config(300)
    for name, shown in ((r"a$\foo$", r"a$\foo$"), ("x" * 60, "x" * 39 + "…")):
        lines([{"step": 1, "train_loss": 3.0}], title(name, config, options, 256))
        written = lines.figures[-1].axes[0].get_title(loc="left")
        assert written == f"{shown}: 6 x 384, adamw, cosine, rate 0.001, 32 x 256 tokens a step"


@pytest.mark.parametrize("broken", ["matplotlib.figure.Figure.savefig", "gpt2.training.plot.write_atomically"])
def test_what_cannot_be_drawn_or_written_is_a_note(tmp_path, monkeypatch, broken):
    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(broken, fail)
    notes = []
    draw_losses([{"step": 1, "train_loss": 3.0}], tmp_path / "loss.png", notes.append)
    assert len(notes) == 1
    assert notes[0].startswith(f"{tmp_path / 'loss.png'} was left out: ")
    assert "No space left on device" in notes[0]
