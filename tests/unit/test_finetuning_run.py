"""Fine-tuning from end to end: resumed bit for bit, one process or two, stopped early, exported, scored."""

import json
import shutil
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.multiprocessing

from gpt2.checkpoint import load, locate, read_directory, write_directory
from gpt2.errors import BadCheckpoint, BadOption, ContextOverflow, Error, Notice
from gpt2.finetuning import (
    FinetuneOptions,
    export,
    finetune,
    go_on,
    read_task,
    read_task_recipe,
    task_recipe_names,
)
from gpt2.finetuning import run as finetuning_run
from gpt2.finetuning.examples import open_rows
from gpt2.finetuning.lora import adapt
from gpt2.finetuning.run import SCORES, _base_name, _with_epochs
from gpt2.tasks.template import Template
from gpt2.training import TrainingOptions, resume
from gpt2.training.ranks import Ranks, started
from gpt2.training.reporter import Result
from gpt2.training.run import RunFolder
from gpt2.training.step import Step
from gpt2.training.work import Work
from tests.helpers import Recorder, byte_tokenizer, tiny_model
from tests.runs import Rank, assert_same, meeting, names

TEMPLATE = "{text}\nLabel: {label}"
NOT_FIRST = (Path("run"), False, False)
LABELS = ("warm", "warmer", "cold")


def options_for(base: Path) -> TrainingOptions:
    return TrainingOptions(
        init=str(base),
        context=48,
        dropout=0.1,
        attention_dropout=0.1,
        steps=12,
        warmup_steps=2,
        batch_size=4,
        micro_batch_size=2,
        learning_rate=0.01,
        eval_every=3,
        eval_tokens=20,
        sample_every=0,
        save_every=2,
        keep=0,
        threads=1,
        validation=0.2,
        trackers="none",
    )


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finetuning")
    model = tiny_model(window=48)
    write_directory(model.network, model.tokenizer, folder / "base")
    rows = [{"text": "ab"[n % 2] * (1 + n % 30) + str(n), "label": LABELS[n % 3], "n": 1} for n in range(60)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def run(place, out, recorder=None, tuning=None, **changes):
    options = replace(options_for(place / "base"), **changes)
    tuning = tuning or FinetuneOptions(template=TEMPLATE, examples=1)
    return finetune(options, tuning, [place / "rows.jsonl"], out, recorder or Recorder())


def measured(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


class Breaking(Recorder):
    """Fails in the middle of a run, as a kill would."""

    def step(self, step, loss, tokens_per_second, facts):
        if step == 8:
            raise KeyError("broken")
        super().step(step, loss, tokens_per_second, facts)


@pytest.mark.parametrize("lora", [0, 2])
def test_resumed_is_never_stopped(place, tmp_path, lora):
    tuning = FinetuneOptions(template=TEMPLATE, examples=1, lora=lora)
    whole = Recorder()
    run(place, tmp_path / "whole", whole, tuning)
    with pytest.raises(KeyError):
        run(place, tmp_path / "run", Breaking(), tuning)
    going = Recorder()
    outcome = go_on(tmp_path / "run", going)
    assert going.first_step == 6
    assert outcome.result.step == 12
    assert_same(tmp_path / "run", tmp_path / "whole")
    assert going.losses == {step: loss for step, loss in whole.losses.items() if step > 6}
    assert len(set(whole.losses.values())) > 8
    # Fewer than the recipe warms up for, too: that they are made already is what is wrong.
    with pytest.raises(BadOption, match="at step 12 already, past 1 steps"):
        go_on(tmp_path / "run", Recorder(), changes={"steps": 1})


def test_resumed_beside_a_base_with_another_dropout_of_its_own(place, tmp_path):
    """An adapter's checkpoint has no configuration: the base's own dropout must not come back."""
    config = json.loads((place / "base" / "config.json").read_text()) | {"embd_pdrop": 0.1, "attn_pdrop": 0.1}
    shutil.copytree(place / "base", tmp_path / "base")
    (tmp_path / "base" / "config.json").write_text(json.dumps(config | {"resid_pdrop": 0.0}))
    tuning, options = FinetuneOptions(template=TEMPLATE, examples=0, lora=2), options_for(tmp_path / "base")
    data, whole, going = [place / "rows.jsonl"], Recorder(), Recorder()
    finetune(options, tuning, data, tmp_path / "whole", whole)
    with pytest.raises(KeyError):
        finetune(options, tuning, data, tmp_path / "run", Breaking())
    go_on(tmp_path / "run", going)
    assert going.losses == {step: loss for step, loss in whole.losses.items() if step > 6}


def test_messages_name_the_command_that_goes_on(place, tmp_path):
    with pytest.raises(Error, match="At step") as caught:
        run(place, tmp_path / "run", learning_rate=1e30, warmup_steps=0, skip_spikes=0.0)
    assert f"`gpt2 finetune --resume {tmp_path / 'run'}" in str(caught.value)
    with pytest.raises(BadOption, match="`gpt2 finetune --resume"):
        run(place, tmp_path / "run")
    checkpoints = RunFolder(tmp_path / "run", Work(command="gpt2 finetune")).checkpoints
    with pytest.raises(Error, match="go on with `gpt2 finetune --resume"), checkpoints.writing("A file"):
        raise OSError(28, "No space left on device")


def test_a_base_that_is_a_name_stays_one_beside_a_folder_of_that_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("bookworm").mkdir()
    assert _base_name("bookworm", FinetuneOptions(lora=2)) == "bookworm"


def test_the_base_stays_and_only_the_adapter_is_written(place, tmp_path):
    before = {file.name: file.read_bytes() for file in (place / "base").iterdir()}
    outcome = run(place, tmp_path / "run", tuning=FinetuneOptions(template=TEMPLATE, lora=2, examples=0))
    assert {file.name: file.read_bytes() for file in (place / "base").iterdir()} == before
    files = {file.name for file in outcome.best.iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "task.json"} <= files
    assert "model.safetensors" not in files
    config = json.loads((outcome.best / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(place / "base")
    ids = torch.arange(40)[None]
    learnt = load(tmp_path / "run").network(ids)
    assert (learnt - load(place / "base").network(ids)).abs().max() > 1e-3
    export(tmp_path / "run", tmp_path / "whole")
    assert (read_directory(tmp_path / "whole")[0](ids) - load(outcome.best).network(ids)).abs().max() < 1e-5
    assert read_task(tmp_path / "whole") == read_task(outcome.best)
    with pytest.raises(BadOption, match="there already"):
        export(tmp_path / "run", tmp_path / "whole")
    with pytest.raises(BadOption, match="an adapter itself"):
        finetune(
            replace(options_for(outcome.best), init=str(outcome.best)),
            FinetuneOptions(template=TEMPLATE, lora=2),
            [place / "rows.jsonl"],
            tmp_path / "second",
            Recorder(),
        )


def test_an_adapter_may_be_what_all_weights_begin_from(place, tmp_path):
    first = run(place, tmp_path / "run", tuning=FinetuneOptions(template=TEMPLATE, lora=2, examples=0), steps=4)
    second = finetune(
        replace(options_for(first.best), steps=2, warmup_steps=0),
        FinetuneOptions(template=TEMPLATE, examples=0),
        [place / "rows.jsonl"],
        tmp_path / "second",
        Recorder(),
    )
    assert (second.best / "model.safetensors").is_file()


def test_examples_before_and_after_and_labels_scored_whole(place, tmp_path):
    recorder = Recorder()
    tuning = FinetuneOptions(name="heat", template=TEMPLATE, classify=True, examples=2)
    outcome = run(place, tmp_path / "run", recorder, tuning, steps=60, dropout=0.0, attention_dropout=0.0)
    assert any("labels share their first token" in note for note in recorder.notes), recorder.notes
    before = next(note for note in recorder.notes if note.startswith("before:"))
    after = next(note for note in recorder.notes if note.startswith("after (step-"))
    assert before.count("wanted:") == after.count("wanted:") == 2
    task = read_task(outcome.best)
    assert task is not None
    assert task.name == "heat"
    assert task.labels == (" cold", " warm", " warmer")
    assert task.max_tokens == len(" warmer") + 1
    assert outcome.scores == json.loads((tmp_path / "run" / SCORES).read_text())
    assert 0 <= outcome.scores["accuracy"] <= 1


def test_labels_that_were_never_seen_or_differ_in_spaces_are_told(place, tmp_path):
    rows = [{"text": f"t{n}", "label": ("yes", "no", "Yes")[n % 3]} for n in range(30)]
    held = [{"text": f"u{n}", "label": ("yes", "maybe", "yes", "yes")[n]} for n in range(4)]
    for name, each in (("rows", rows), ("held", held)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in each))
    recorder = Recorder()
    tuning = FinetuneOptions(template=TEMPLATE, classify=True, examples=0, held_out=str(tmp_path / "held.jsonl"))
    options = replace(options_for(place / "base"), steps=2, warmup_steps=0)
    outcome = finetune(options, tuning, [tmp_path / "rows.jsonl"], tmp_path / "run", recorder)
    assert any("1 held-out row of 4 have labels that no row to learn from has" in note for note in recorder.notes)
    assert "labels that differ in spaces or capitals alone: ' Yes', ' yes'" in recorder.notes
    assert outcome.scores["commonest_label"] == 0.75
    assert outcome.scores["accuracy"] <= 0.75


def test_a_base_with_other_weights_is_not_gone_on_with(place, tmp_path):
    base = tmp_path / "base"
    model = load(place / "base")
    write_directory(model.network, model.tokenizer, base)
    tuning = FinetuneOptions(template=TEMPLATE, lora=2, examples=0)
    options = replace(options_for(base), steps=2, warmup_steps=0)
    finetune(options, tuning, [place / "rows.jsonl"], tmp_path / "run", Recorder())
    with torch.no_grad():
        model.network.h[0].attn.c_attn.weight.add_(0.1)
    write_directory(model.network, model.tokenizer, base)
    with pytest.raises(BadCheckpoint, match="was learnt on other weights than"):
        go_on(tmp_path / "run", Recorder(), changes={"steps": 4}, allow_changes=True)


def test_a_run_that_is_there_is_told_before_the_data_are_read(place, tmp_path):
    run(place, tmp_path / "run", steps=1, warmup_steps=0)
    recorder = Recorder()
    with pytest.raises(BadOption, match="is there already"):
        finetune(
            options_for(place / "base"),
            FinetuneOptions(template=TEMPLATE),
            ["no/rows.jsonl"],
            tmp_path / "run",
            recorder,
        )
    assert not recorder.notes


def test_accuracy_is_counted_over_whole_labels(place, tmp_path):
    """By the network itself, label by label; two of the labels begin alike, and one is the other's beginning."""
    from gpt2.finetuning.measure import accuracy
    from gpt2.tasks.template import Task

    model = load(place / "base")
    task = Task("t", Template(TEMPLATE), (), 8, tuple(f" {label}" for label in LABELS))
    rows = [{"text": "ab" * (n % 7) + str(n), "label": LABELS[n % 3]} for n in range(12)]
    right = 0
    for row in rows:
        totals = []
        prompt = model.tokenizer.encode(task.template.prompt(row))
        for label in task.labels:
            ending = [*model.tokenizer.encode(label), model.tokenizer.end_of_text]
            ids = torch.tensor([[*prompt, *ending]])
            logprobs = model.network(ids).log_softmax(-1)[0, len(prompt) - 1 : -1]
            totals.append(float(logprobs.gather(1, torch.tensor(ending)[:, None]).sum()))
        right += task.labels[totals.index(max(totals))] == f" {row['label']}"
    assert accuracy(model, task, rows) == right / len(rows)


def test_labels_longer_than_half_the_window_are_scored_and_words_that_do_not_fit_are_told(place):
    from gpt2.finetuning.measure import accuracy, answers
    from gpt2.tasks.template import Task

    model = load(place / "base")
    labels = (" " + "x" * 40, " y")
    task = Task("t", Template(TEMPLATE), (), 24, labels)
    assert accuracy(model, task, [{"text": "ab" * 50, "label": "y"}]) in (0.0, 1.0)
    long = Task("t", Template("{text} " + "so " * 12 + "{label}"), (), 24, ())
    with pytest.raises(ContextOverflow, match="own words and 24 tokens"):
        answers(model, long, [{"text": "ab", "label": "y"}])


def test_early_stopping_ends_a_run_and_the_best_is_named(place, tmp_path):
    # So high a rate that nothing gets better for long.
    recorder = Recorder()
    outcome = run(place, tmp_path / "run", recorder, steps=90, learning_rate=0.5, patience=2, keep=1)
    part, *others = (line for line in measured(tmp_path / "run") if "validation_loss" in line)
    best = min((line for line in (part, *others[:-1])), key=lambda line: line["validation_loss"])["step"]
    assert outcome.result.step == best + 2 * 3 < 90
    # All that is held out is scored at the end, this one as any other.
    assert others[-1]["step"] == others[-2]["step"] == outcome.result.step
    assert {line["validation_tokens"] for line in others[:-1]} == {part["validation_tokens"]}
    full = run(place, tmp_path / "full", steps=1, warmup_steps=0).result.validation
    assert (
        outcome.result.validation.tokens == full.tokens == others[-1]["validation_tokens"] > part["validation_tokens"]
    )
    assert not outcome.result.interrupted
    assert outcome.best.name == f"step-{best:06d}"
    assert any("no better validation since" in note for note in recorder.notes)
    # Who asks the run asks its best, and not its last.
    assert locate(tmp_path / "run") == outcome.best
    assert (tmp_path / "run" / "latest").read_text().strip() != outcome.best.name
    before = measured(tmp_path / "run")
    again = go_on(tmp_path / "run", Recorder())
    assert again.result.step == outcome.result.step
    assert not again.result.interrupted
    assert measured(tmp_path / "run") == before
    longer = go_on(tmp_path / "run", Recorder(), changes={"patience": 3})
    assert longer.result.step > outcome.result.step


def test_plain_text_in_a_style_with_and_without_an_adapter(place, tmp_path):
    (tmp_path / "style.txt").write_text("to be or not to be, that is the question. " * 40)
    for lora in (0, 2):
        outcome = finetune(
            options_for(place / "base"),
            FinetuneOptions(lora=lora),
            [tmp_path / "style.txt"],
            tmp_path / f"run-{lora}",
            Recorder(),
        )
        assert outcome.task is None
        assert outcome.result.validation is not None
        assert names(tmp_path / f"run-{lora}")
        assert go_on(tmp_path / f"run-{lora}", Recorder(), changes={"steps": 14}).result.step == 14


def test_of_several_processes_one_says_what_is_read(place, tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(
        finetuning_run, "train", lambda *values: made.append(values) or Result(0, None, None, *NOT_FIRST)
    )
    monkeypatch.setenv("WORLD_SIZE", "2")
    said = {}
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        recorder = Recorder()
        run(place, tmp_path / "run", recorder)
        said[rank] = recorder.notes
    assert len(made) == 2
    assert any(note.startswith("before:") for note in said["0"])
    assert said["1"] == []


def test_nothing_held_out_is_told_where_something_was_to_be_scored(place, tmp_path):
    recorder = Recorder()
    run(place, tmp_path / "run", recorder, steps=2, warmup_steps=0, validation=0.0, patience=1)
    assert any(note.startswith("no rows are held out") for note in recorder.notes)


def test_epochs_are_steps(place, tmp_path):
    recorder = Recorder()
    outcome = run(place, tmp_path / "run", recorder, FinetuneOptions(template=TEMPLATE, epochs=2, examples=0))
    said = next(note for note in recorder.notes if "examples to train on" in note)
    assert outcome.result.step == round(2 * int(said.split()[0]) / 4)


@pytest.mark.parametrize(("epochs", "cut"), [(0.5, True), (4, False)])
def test_epochs_that_are_fewer_steps_have_a_shorter_warmup_and_that_is_told(place, tmp_path, epochs, cut):
    options, tuning = options_for(place / "base"), FinetuneOptions(template=TEMPLATE, epochs=epochs)
    said = "warm-up of 2 steps is long for a run of 5: it is 0 here$"
    with pytest.warns(Notice, match=said) if cut else nullcontext():
        changed = _with_epochs(options, tuning, 40)
    assert (changed.steps, changed.warmup_steps) == ((5, 0) if cut else (40, 2))


def test_what_cannot_be(place, tmp_path):
    for changes, tuning, said in [
        ({"init": ""}, {}, "begins from a model"),
        ({}, {"template": "{text}\n{missing}"}, "no column 'missing'; there are 'text', 'label', 'n'"),
        ({"validation": 0.0}, {"template": "{label}\n{n}", "classify": True}, "have 1 different targets"),
        ({"optimizer": "muon"}, {"lora": 2}, "trained with adamw"),
        ({"parallel": "fsdp"}, {"lora": 2}, "use ddp"),
    ]:
        tuned = FinetuneOptions(**({"template": TEMPLATE, "examples": 0} | tuning))
        with pytest.raises(Exception, match=said) as caught:
            run(place, tmp_path / "run", tuning=tuned, **changes)
        assert type(caught.value).__name__ in ("BadOption", "BadData")
    assert not (tmp_path / "run").exists()
    for values in ({"lora": -1}, {"epochs": 1.0}, {"score": "f1", "template": TEMPLATE}, {"lora_targets": "wte"}):
        with pytest.raises(BadOption):
            FinetuneOptions(**values)
    run(place, tmp_path / "run", steps=2, warmup_steps=0)
    with pytest.raises(BadOption, match="gpt2 finetune --resume"):
        resume(tmp_path / "run", Recorder())


# One process and two


def losses(ranks: Ranks, place: Path, lora: bool) -> list[float]:
    options = replace(options_for(place / "base"), steps=12, parallel=ranks.kind if ranks.size > 1 else "auto")
    rows = open_rows([str(place / "rows.jsonl")], Template(TEMPLATE), options, byte_tokenizer(), lambda _: None)
    network = read_directory(place / "base")[0].requires_grad_(True)
    if lora:
        adapt(network, 2, 4.0, ("c_attn", "c_fc"), seed=1)
    step = Step(network, options, ranks)
    batches, scoring = rows.batches(options), rows.scoring(options)
    found = [step(number, *batches.rows(number, step.rows)).loss for number in range(12)]
    return [*found, scoring.score(len(rows.held), step, batches.window).nats_per_token]


def one_of_two(rank: int, port: int, place: Path, out: Path) -> None:
    torch.set_num_threads(1)
    Rank(rank, 2, port)()
    with started("ddp", torch.device("cpu")) as ranks:
        found = {"full": losses(ranks, place, False), "lora": losses(ranks, place, True)}
        fsdp = replace(ranks, kind="fsdp")
        found["fsdp"] = losses(fsdp, place, False)
    if rank == 0:
        out.write_text(json.dumps(found))


def test_two_processes_lose_what_one_does(place, tmp_path):
    store = meeting()
    torch.multiprocessing.spawn(one_of_two, (store.port, place, tmp_path / "found.json"), nprocs=2)
    found = json.loads((tmp_path / "found.json").read_text())
    for kind, lora in (("full", False), ("lora", True), ("fsdp", False)):
        one = losses(Ranks(), place, lora)
        assert one[-2] < one[0] - 0.1
        assert found[kind] == pytest.approx(one, abs=1e-4), kind


@pytest.mark.parametrize("name", task_recipe_names())
def test_a_recipe_is_options_that_exist(name):
    training, task = read_task_recipe(name)
    options, tuning = TrainingOptions.from_mapping(training, name), FinetuneOptions.from_mapping(task, name)
    assert options.init
    assert tuning.name == name
    assert bool(tuning.template) == (name != "style")


def test_a_run_is_a_recipe_for_the_next(place, tmp_path):
    run(place, tmp_path / "run", steps=2, warmup_steps=0)
    training, task = read_task_recipe(str(tmp_path / "run" / "recipe.toml"))
    assert training["steps"] == 2
    assert FinetuneOptions.from_mapping(task, "run").template == TEMPLATE
