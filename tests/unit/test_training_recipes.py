"""The recipes in the package: what they promise, and that each can be run and read back."""

import itertools
import math
import tomllib
from dataclasses import asdict, fields

import pytest

from gpt2.errors import BadOption, Notice
from gpt2.training.changes import rate_change
from gpt2.training.options import RECIPES, TrainingOptions, chosen_options, read_recipe, recipe_names

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


@pytest.mark.parametrize("name", ["paper", "fast"])
def test_not_all_that_webtext_holds_out_is_scored_every_time(name):
    options = resolved(name)
    assert options.eval_tokens < options.eval_every * options.batch_size * options.context / 100


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


def test_what_dropout_is_drawn_for_is_told_where_it_is_set():
    told = {item.name: item.metadata["help"] for item in fields(TrainingOptions)}
    assert "set micro_batch_size where the number of processes will change" in told["dropout"]
    assert "With dropout other numbers of processes learn the same only where it divides" in told["micro_batch_size"]


# Warm-up, and rates that change under way


@pytest.mark.parametrize(
    ("recipe", "steps", "typed", "said"),
    [
        (
            "paper",
            500,
            700,
            "warmup_steps = 700 does not fit into a run of 500 steps; choose more --steps, or --warmup-steps 50 "
            r"\(with --resume also --allow-changes\)",
        ),
        ("finetune", 20, 20, "does not fit into a run of 20 steps; choose more --steps, or --warmup-steps 2 "),
        ("fast", 100, 61, "of 100 steps, the last 40 of which decay; choose more --steps, or --warmup-steps 10 "),
        ("shakespeare", 60, 40, "warmup_steps = 40 does not fit into a run of 60 steps, the last 30 of which decay"),
    ],
)
def test_a_typed_warmup_that_fills_the_run_or_reaches_into_the_decay_is_refused_and_the_advice_holds(
    recipe, steps, typed, said
):
    with pytest.raises(BadOption, match=said) as caught:
        chosen_options(recipe, {"steps": steps, "warmup_steps": typed})
    advice = int(str(caught.value).partition("--warmup-steps ")[2].partition(" ")[0])
    options = chosen_options(recipe, {"steps": steps, "warmup_steps": advice})
    rates = [options.learning_rate_at(step) for step in range(steps)]
    assert max(rates) == pytest.approx(options.learning_rate)
    falls = [before - after for before, after in itertools.pairwise(rates)]
    assert max(falls) < 0.3 * options.learning_rate


@pytest.mark.parametrize(
    ("recipe", "steps", "warmup"),
    [("fast", 40, 4), ("paper", 2000, 200), ("shakespeare", 60, 6), ("finetune", 2, 0), ("bookworm", 5, 0)],
)
def test_a_recipes_own_warmup_is_shortened_in_a_short_run_and_that_is_told(recipe, steps, warmup):
    own = read_recipe(recipe)["warmup_steps"]
    with pytest.warns(Notice, match=f"warm-up of {own} steps is long for a run of {steps:,}: it is {warmup} here"):
        options = chosen_options(recipe, {"steps": steps})
    assert options.warmup_steps == warmup
    assert f"warmup_steps = {warmup}\n" in options.to_toml()


@pytest.mark.parametrize("recipe", ["fast", "shakespeare", "paper"])
def test_a_recipes_warmup_stays_where_it_is_a_tenth_or_less(recipe):
    own = read_recipe(recipe)["warmup_steps"]
    assert chosen_options(recipe, {"steps": 10 * own}).warmup_steps == own
    assert chosen_options(recipe, {}).warmup_steps == own


def test_a_run_as_long_as_the_recipe_keeps_a_warmup_of_more_than_a_tenth(tmp_path):
    (tmp_path / "mine.toml").write_text("steps = 100\nwarmup_steps = 30\n")
    for steps in (100, 150):
        assert chosen_options(str(tmp_path / "mine.toml"), {"steps": steps}).warmup_steps == 30
    with pytest.warns(Notice, match="warm-up of 30 steps is long for a run of 99: it is 9 here"):
        chosen_options(str(tmp_path / "mine.toml"), {"steps": 99})
    # A recipe that names no steps has the default's.
    (tmp_path / "mine.toml").write_text("warmup_steps = 300\n")
    assert chosen_options(str(tmp_path / "mine.toml"), {"steps": 1000}).warmup_steps == 300


def test_a_run_that_goes_on_keeps_its_warmup():
    fast = resolved("fast")
    assert fast.changed({"steps": 3 * fast.warmup_steps}).warmup_steps == fast.warmup_steps


def test_a_recipe_that_is_nearly_named_is_offered():
    with pytest.raises(BadOption, match=r"no recipe called 'papre' and no such file; did you mean paper\? the package"):
        read_recipe("papre")
    with pytest.raises(BadOption, match=r"no such file; the package has bookworm"):
        read_recipe("xyzzy")


@pytest.mark.parametrize("steps", [1, 2, 5, 20, 999, 5000])
@pytest.mark.parametrize("schedule", ["cosine", "wsd"])
@pytest.mark.parametrize("decay_share", [0.0, 0.3, 1.0])
def test_a_warmup_that_nobody_named_fits_any_run(steps, schedule, decay_share):
    options = TrainingOptions(steps=steps, schedule=schedule, decay_share=decay_share)
    assert 0 <= options.warmup_steps <= min(100, steps // 10)
    assert max(map(options.learning_rate_at, range(steps))) == pytest.approx(options.learning_rate, rel=0.01)


def test_another_number_of_steps_tells_what_becomes_of_the_rate():
    paper = resolved("paper")
    longer = paper.changed({"steps": 36_000})
    told = rate_change(paper, longer, 18_000)
    before, after = paper.learning_rate_at(18_000), longer.learning_rate_at(18_000)
    assert after > 60 * before
    assert told == (
        f"the learning rate goes on at {after:.3g}, where it would have been {before:.3g} "
        "(36,000 steps, and no longer 18,865)"
    )
    assert rate_change(paper, longer, 300) is None  # still warming up
    assert rate_change(paper, paper.changed({"eval_every": 7}), 18_000) is None
    fast = resolved("fast")
    assert rate_change(fast, fast.changed({"steps": 20_000}), 5000) is None  # stable in both
    assert rate_change(fast, fast.changed({"steps": 20_000}), 9000) is not None


# What was typed, over a recipe


@pytest.mark.parametrize("shape", [{"n_layer": 3}, {"n_head": 2}, {"n_embd": 64}, {"vocab_size": 300}])
def test_a_shape_beside_a_model_to_begin_with_is_refused(shape):
    flag = f"--{next(iter(shape)).replace('_', '-')}"
    with pytest.raises(BadOption, match=f"{flag} is for a new model, but init = 'bookworm' brings"):
        chosen_options(None, {"init": "bookworm", **shape})
    with pytest.raises(BadOption, match=f"{flag} is for a new model, but init = 'gpt2'"):
        chosen_options("finetune", shape)
    # A recipe's own shape gives way, and random weights were asked for here.
    assert chosen_options("shakespeare", {"init": "bookworm"}).init == "bookworm"
    assert chosen_options("finetune", {"init": "", "n_layer": 3}).n_layer == 3


def test_a_batch_is_said_in_one_way(tmp_path):
    with pytest.raises(BadOption, match="two ways to say the same"):
        chosen_options(None, {"batch_size": 8, "batch_tokens": 8192})
    tokens = tmp_path / "tokens.toml"
    tokens.write_text("batch_tokens = 8192\n")
    assert chosen_options(str(tokens), {"batch_size": 4}).batch_size == 4
    # A run that goes on with changes has the resolved recipe, which says both.
    run = chosen_options(str(tokens), {})
    assert (run.batch_size, run.batch_tokens) == (32, 8192)
    assert run.changed({"batch_size": 4}).batch_size == 4
    assert run.changed({"batch_tokens": 2048}).batch_size == 8
    assert run.changed({"steps": 700}).batch_size == 32


@pytest.mark.parametrize(
    ("recipe", "typed", "micro"),
    [
        ("shakespeare", {"batch_size": 12}, 0),
        ("shakespeare", {"batch_size": 24}, 8),
        ("finetune", {"batch_size": 2}, 0),
        ("finetune", {"batch_tokens": 2048}, 0),
        ("shakespeare", {"batch_size": 12, "micro_batch_size": 6}, 6),
    ],
)
def test_a_recipes_micro_batch_gives_way_to_a_batch_that_was_typed(recipe, typed, micro):
    assert chosen_options(recipe, typed).micro_batch_size == micro


def test_a_micro_batch_that_was_typed_does_not():
    with pytest.raises(BadOption, match="micro_batch_size = 5 does not divide batch_size = 12"):
        chosen_options("shakespeare", {"batch_size": 12, "micro_batch_size": 5})


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"compile": "no"}, "compile is 'no', but it must be true or false"),
        ({"compile": 1}, "compile is 1, but it must be true or false"),
        ({"device": 3}, "device is 3, but it must be text"),
        ({"init": 7}, "init is 7, but it must be text"),
        ({"dtype": 16}, "dtype is 16, but it must be text"),
        ({"steps": "9"}, "steps is '9', but it must be a whole number of at least 1"),
        ({"steps": True}, "steps is True"),
        ({"seed": -1}, "seed is -1, but it must be a whole number of at least 0"),
        ({"warmup_steps": -2}, "warmup_steps is -2"),
        ({"learning_rate": math.nan}, "learning_rate is nan, but it must be a finite number of at least 0"),
        ({"learning_rate": math.inf}, "learning_rate is inf, but it must be a finite number of at least 0"),
        ({"dropout": 1.0}, "dropout is 1.0, but it must be a number of at least 0 and below 1"),
        ({"decay_share": 1.5}, "decay_share is 1.5, but it must be a number of at least 0 and at most 1"),
        ({"dtype": "float16"}, "gradients vanish"),
        ({"dtype": "int8"}, "must be one of float32, bfloat16"),
    ],
)
def test_a_value_of_another_kind_is_refused_by_name(values, said):
    with pytest.raises(BadOption, match=said):
        TrainingOptions.from_mapping(values, "a recipe")


def test_whole_numbers_are_numbers_and_bounds_belong_to_the_range():
    options = TrainingOptions(learning_rate=1, decay_share=1, min_learning_rate=0, dropout=0)
    assert options.learning_rate_at(options.steps - 1) > 0
