"""The recipes in the package: what they promise, and that each can be run and read back."""

import math
import tomllib
from dataclasses import asdict, fields

import pytest

from gpt2.errors import BadOption
from gpt2.training.options import RECIPES, TrainingOptions, read_recipe, recipe_names

# Fields in which `fast` may differ from `paper`: how it learns, and for how long.
HOW_IT_LEARNS = {
    *("optimizer", "learning_rate", "adamw_share", "min_learning_rate", "schedule", "decay_share"),
    *("warmup_steps", "steps"),
}


def resolved(name: str) -> TrainingOptions:
    return TrainingOptions.from_mapping(read_recipe(name), name)


def test_the_recipes_that_the_readme_names_are_there():
    assert set(recipe_names()) >= {"paper", "fast", "shakespeare", "finetune", "bookworm"}


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_is_a_short_commented_file_of_known_options(name):
    text = (RECIPES / f"{name}.toml").read_text(encoding="utf-8")
    assert text.startswith("# ")
    assert len(text.splitlines()) <= 40
    assert set(tomllib.loads(text)) <= {field.name for field in fields(TrainingOptions)}


@pytest.mark.parametrize("name", recipe_names())
def test_a_resolved_recipe_reads_back_as_itself(name, tmp_path):
    path = tmp_path / "recipe.toml"
    path.write_text(resolved(name).to_toml(), encoding="utf-8")
    assert resolved(str(path)) == resolved(name)


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_warms_up_and_ends_low(name):
    options = resolved(name)
    rates = [options.learning_rate_at(step) for step in range(options.steps)]
    assert rates[0] < options.learning_rate / 10
    assert max(rates) == pytest.approx(options.learning_rate)
    assert rates[-1] <= options.learning_rate * max(0.11, options.min_learning_rate)
    assert options.warmup_steps < options.steps * (1 - options.decay_share)


@pytest.mark.parametrize("name", recipe_names())
def test_two_processes_share_a_batch_evenly(name):
    options = resolved(name)
    share, rest = divmod(options.batch_size, 2)
    assert rest == 0
    # Micro-batches that lie within one process: then dropout is the same with one process and with two.
    assert not options.micro_batch_size or share % options.micro_batch_size == 0


@pytest.mark.parametrize("name", ["paper", "fast"])
def test_the_paper_and_fast_are_the_124m_in_the_papers_batches(name):
    options = resolved(name)
    config = options.model_config(50257)
    assert config.parameters == 124_439_808
    assert options.vocab_size == 0
    assert (options.batch_size, options.context) == (512, 1024)


def test_fast_differs_from_paper_in_how_it_learns_alone():
    paper, fast = asdict(resolved("paper")), asdict(resolved("fast"))
    assert {name for name in paper if paper[name] != fast[name]} <= HOW_IT_LEARNS
    assert fast["optimizer"] == "muon"
    assert fast["steps"] <= paper["steps"] / 2


def test_papers_rate_is_a_cosine_down_to_nothing():
    options = resolved("paper")
    middle = options.warmup_steps + (options.steps - options.warmup_steps) // 2
    assert options.learning_rate_at(options.warmup_steps) == pytest.approx(6e-4)
    assert options.learning_rate_at(middle) == pytest.approx(3e-4, rel=1e-3)
    assert options.learning_rate_at(options.steps) == pytest.approx(0, abs=1e-12)


def test_a_fast_run_made_longer_has_the_same_past():
    fast = asdict(resolved("fast"))
    longer = TrainingOptions(**(fast | {"steps": fast["steps"] * 3 // 2}))
    options = TrainingOptions(**fast)
    before_the_decay = math.floor(options.steps * (1 - options.decay_share))
    assert [options.learning_rate_at(s) for s in range(before_the_decay)] == [
        longer.learning_rate_at(s) for s in range(before_the_decay)
    ]
    assert options.learning_rate_at(options.steps - 1) < longer.learning_rate_at(options.steps - 1)


def test_finetune_begins_with_a_model_and_small_steps():
    options = resolved("finetune")
    assert options.init
    assert options.learning_rate <= 1e-4


def test_a_batch_is_scaled_by_its_tokens():
    options = TrainingOptions.from_mapping(read_recipe("paper") | {"batch_tokens": 8192}, "the command line")
    assert options.batch_size == 8
    with pytest.raises(BadOption, match="multiple of context"):
        TrainingOptions.from_mapping(read_recipe("paper") | {"batch_tokens": 8191}, "the command line")
