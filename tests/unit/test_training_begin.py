"""What is looked at before a run has a folder, and what a run is told that goes on."""

import json
import shutil
from dataclasses import replace

import pytest
import torch

from gpt2.checkpoint import write_directory
from gpt2.config import GPT2Config
from gpt2.errors import BadOption, Unavailable
from gpt2.model import GPT2
from gpt2.training import begin, resume, train
from gpt2.training.loss import Loss
from gpt2.training.options import TrainingOptions, read_recipe
from gpt2.training.ranks import Ranks
from tests.helpers import Recorder, tiny_model
from tests.runs import SHORT, write_text

CPU = torch.device("cpu")


@pytest.fixture
def text(tmp_path):
    return write_text(tmp_path)


@pytest.fixture
def no_compiler(monkeypatch):
    from torch._inductor import config

    monkeypatch.delenv("CXX", raising=False)
    with config.patch({"cpp.cxx": (None, "/nonexistent/compiler")}):
        yield


def test_a_tracker_that_is_missing_leaves_no_folder_in_the_way(text, tmp_path, monkeypatch):
    monkeypatch.setattr("gpt2.training.trackers.find_spec", lambda name: None)
    for _ in range(2):
        with pytest.raises(Unavailable, match="Logging to wandb needs the package wandb"):
            train(replace(SHORT, trackers="wandb"), [text], tmp_path / "run", Recorder())
    assert not (tmp_path / "run").exists()


def test_a_batch_that_cannot_be_shared_is_refused_before_the_data_is_read(tmp_path):
    ranks = Ranks(size=3, kind="ddp")
    with pytest.raises(BadOption, match="A batch of 4 sequences cannot be shared evenly by 3 processes"):
        begin.anew(SHORT, [tmp_path / "nowhere.txt"], print, ranks)


def test_without_a_compiler_the_way_on_is_told_and_there_is_no_folder(text, tmp_path, no_compiler):
    options = replace(SHORT, compile=True, steps=3)
    with pytest.raises(Unavailable, match=r"needs a C\+\+ compiler, which is not found here.*--no-compile"):
        train(options, [text], tmp_path / "run", Recorder())
    assert not (tmp_path / "run").exists()
    assert train(replace(options, compile=False), [text], tmp_path / "run", Recorder()).step == 3
    with pytest.raises(Unavailable, match="--no-compile"):
        resume(tmp_path / "run", Recorder(), changes={"steps": 4, "compile": True})


def test_a_compiler_that_was_named_and_is_not_there_is_named(no_compiler, monkeypatch):
    monkeypatch.setenv("CXX", "/nonexistent/compiler")
    with pytest.raises(Unavailable, match=r"the C\+\+ compiler /nonexistent/compiler \(from CXX\)"):
        begin.anew(replace(SHORT, compile=True), [], print, Ranks())


@pytest.mark.parametrize(
    ("triton", "found", "said"), [(False, "gcc", "Triton"), (True, None, "C compiler"), (True, "gcc", "")]
)
def test_a_gpu_needs_triton_and_what_triton_needs(monkeypatch, triton, found, said):
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr("torch.utils._triton.has_triton", lambda: triton)
    monkeypatch.setattr("shutil.which", lambda name: found)
    assert said in (begin._missing_compiler(torch.device("cuda")) or "")
    assert bool(said) == (begin._missing_compiler(torch.device("cuda")) is not None)


def test_a_text_shorter_than_a_window_is_told(text, tmp_path):
    recorder = Recorder()
    options = replace(SHORT, context=4096, steps=3, batch_size=1, micro_batch_size=0)
    train(options, [text], tmp_path / "run", recorder)
    assert any("shorter than a window of 4,096 tokens: rows have" in note for note in recorder.notes)
    recorder = Recorder()
    train(replace(SHORT, steps=3), [text], tmp_path / "other", recorder)
    assert not any("shorter than a window" in note for note in recorder.notes)


def test_another_number_of_steps_is_told_when_a_run_goes_on(text, tmp_path):
    train(SHORT, [text], tmp_path / "run", Recorder())
    recorder = Recorder()
    resume(tmp_path / "run", recorder, changes={"steps": 12})
    told = [note for note in recorder.notes if "learning rate" in note]
    assert len(told) == 1
    assert "(12 steps, and no longer 10)" in told[0]
    recorder = Recorder()
    resume(tmp_path / "run", recorder)
    assert not any("learning rate" in note for note in recorder.notes)


@pytest.fixture
def small_model(tmp_path):
    model = tiny_model(window=16)
    write_directory(model.network, model.tokenizer, tmp_path / "models" / "small")


def test_a_run_that_began_with_a_folder_begins_again_from_anywhere(text, tmp_path, small_model, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = replace(SHORT, init="models/small", vocab_size=0, steps=4)
    train(options, [text], tmp_path / "run", Recorder())
    assert read_recipe(str(tmp_path / "run" / "recipe.toml"))["init"] == str(tmp_path / "models" / "small")
    # As if it had been killed before its first checkpoint.
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    (tmp_path / "run" / "latest").unlink()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert resume(tmp_path / "run", Recorder()).step == 4


def test_a_model_of_the_package_keeps_its_name(tmp_path, monkeypatch):
    (tmp_path / "gpt2").mkdir()
    monkeypatch.chdir(tmp_path)
    assert [begin._from_anywhere(name) for name in ("gpt2", "bookworm", "owner/name")] == [
        "gpt2",
        "bookworm",
        "owner/name",
    ]


def test_the_shape_of_a_model_decides_and_its_vocabulary_is_what_is_weighed(text, tmp_path, small_model, monkeypatch):
    weighed = []
    real = begin.check_memory

    def heard(options, device, vocab_size, *rest, **named):
        weighed.append((options.n_layer, vocab_size))
        real(options, device, vocab_size, *rest, **named)

    monkeypatch.setattr("gpt2.training.begin.check_memory", heard)
    options = TrainingOptions(init=str(tmp_path / "models" / "small"), n_layer=9, context=8, steps=2, batch_size=2)
    start = begin.anew(options, [text], lambda _: None, Ranks())
    assert set(weighed) == {(2, 257)}
    assert (start.options.n_layer, start.options.n_embd, start.options.micro_batch_size) == (2, 32, 2)
    with pytest.raises(BadOption, match=r"context is 32, but .*small has a window of 16"):
        begin.anew(replace(options, context=32), [text], lambda _: None, Ranks())


def test_what_ended_before_its_first_step_does_not_bar_the_next_try(text, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("gpt2.training.loss.Loss.forward", lambda *_: torch.empty(2**50))
        with pytest.raises(BadOption, match="memory"):
            train(SHORT, [text], tmp_path / "run", Recorder())
    assert (tmp_path / "run" / "recipe.toml").is_file()
    assert train(replace(SHORT, steps=3), [text], tmp_path / "run", Recorder()).step == 3
    with pytest.raises(BadOption, match="is there already"):
        train(SHORT, [text], tmp_path / "run", Recorder())


def test_a_run_goes_on_with_the_batch_that_was_typed(text, tmp_path):
    options = replace(SHORT, batch_tokens=64, steps=4)
    train(options, [text], tmp_path / "run", Recorder())
    resume(tmp_path / "run", Recorder(), changes={"batch_size": 6, "steps": 6}, allow_changes=True)
    recipe = read_recipe(str(tmp_path / "run" / "recipe.toml"))
    assert (recipe["batch_size"], recipe["batch_tokens"], recipe["micro_batch_size"]) == (6, 0, 2)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["tokens"] for line in lines if "tokens" in line] == [64, 128, 192, 256, 352, 448]


def two_processes(monkeypatch):
    """As the first of two sees it, without the other."""
    monkeypatch.setattr(Ranks, "agreed", lambda self, value: value)
    return Ranks(size=2, kind="ddp")


def test_the_micro_batch_of_two_processes_is_that_of_one_that_goes_on(text, tmp_path, monkeypatch):
    notes = []
    options = replace(SHORT, micro_batch_size=0)
    start = begin.anew(options, [text], notes.append, two_processes(monkeypatch))
    assert start.options.micro_batch_size == start.options.rows_at_once(2) == start.options.rows_at_once(1) == 2
    assert not any("dropout" in note for note in notes)


def test_dropout_that_more_processes_draw_otherwise_is_told(text, monkeypatch):
    ranks = two_processes(monkeypatch)
    alone = begin.anew(replace(SHORT, micro_batch_size=0), [text], print, Ranks()).options
    assert alone.micro_batch_size == 4
    notes = []
    begin.anew(alone, [text], notes.append, ranks)
    told = [note for note in notes if "dropout" in note]
    assert len(told) == 1
    assert "drawn for 4 sequences at a time, but each of 2 processes has 2, so it is drawn for 2" in told[0]
    assert "--micro-batch-size 2 from the start" in told[0]
    notes = []
    begin.anew(replace(alone, dropout=0.0, attention_dropout=0.0), [text], notes.append, ranks)
    assert not any("dropout" in note for note in notes)


def test_a_run_that_has_no_room_to_go_on_is_told_where_to_change_it(text, tmp_path, monkeypatch):
    train(SHORT, [text], tmp_path / "run", Recorder())
    monkeypatch.setattr("gpt2.training.memory.room", lambda *_: 60_000)
    with pytest.raises(BadOption, match=r"Change it in .*recipe\.toml, and go on with `.* --allow-changes`\.$"):
        resume(tmp_path / "run", Recorder(), changes={"steps": 12})


def test_layers_with_scales_of_their_own_are_compiled_once(monkeypatch):
    programs = []

    def counted(graph, examples):
        programs.append(graph)
        return graph.forward

    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, **named: real(function, backend=counted, **named))
    shape = {"vocab_size": 61, "n_positions": 16, "n_embd": 16, "n_layer": 10, "n_head": 2}
    network = GPT2(GPT2Config(**shape, scale_attn_by_inverse_layer_idx=True)).initialise(1)
    ids = torch.randint(61, (2, 16), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(Loss(network, "float32", True)(ids, ids), network.loss(ids, ids))
    assert len(programs) == 2  # a block, and the loss
