import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from gpt2.errors import BadData
from gpt2.finetuning.examples import evaluate_examples, open_rows
from gpt2.tasks.template import Template
from gpt2.training.options import TrainingOptions
from gpt2.training.step import accumulate_gradients
from tests.helpers import byte_tokenizer, tiny_model

TEMPLATE = Template("{text}\nLabel: {label}")
OPTIONS = TrainingOptions(context=32, batch_size=4, validation=0.25, n_embd=32, n_head=2, n_layer=2)


def table(tmp_path, rows, name="data.jsonl"):
    path = tmp_path / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def opened(tmp_path, rows, options=OPTIONS, notes=None, **more):
    note = (lambda _: None) if notes is None else notes.append
    return open_rows([table(tmp_path, rows)], TEMPLATE, options, byte_tokenizer(), note, **more)


def some(count):
    return [{"text": "x" * (n % 9) + str(n), "label": "ab" * (1 + n % 3)} for n in range(count)]


def test_an_example_is_its_prompt_its_target_and_end_of_text(tmp_path):
    found = opened(tmp_path, [{"text": "red", "label": "warm"}], replace(OPTIONS, validation=0))
    tokenizer = byte_tokenizer()
    examples = found.training
    assert tokenizer.decode(examples.prompt(0)) == "red\nLabel:"
    assert tokenizer.decode(examples.target(0)) == " warm"
    assert examples.example(0)[-1] == tokenizer.end_of_text
    inputs, targets = examples.stacked([0], 20)
    assert (targets != -100).sum() == len(" warm") + 1
    assert tokenizer.decode(targets[targets != -100][:-1]) == " warm"
    # The first of them is learnt where the prompt's last id is read.
    assert tokenizer.decode([int(inputs[0, int((targets[0] != -100).nonzero()[0])])]) == ":"


def test_the_loss_is_on_the_target_alone_as_computed_by_hand(tmp_path):
    """Against transformers' own loss with the same labels, example by example and unpadded."""
    from transformers import GPT2Config, GPT2LMHeadModel

    found = opened(tmp_path, some(12), replace(OPTIONS, validation=0))
    network = tiny_model().network
    peer = GPT2LMHeadModel(GPT2Config(**network.config.to_dict())).eval()
    state = {f"transformer.{name}": tensor for name, tensor in network.state_dict().items()}
    peer.load_state_dict(state | {"lm_head.weight": network.wte.weight})
    nats, tokens = 0.0, 0
    for n in range(12):
        ids = torch.tensor(found.training.prompt(n) + found.training.target(n) + [byte_tokenizer().end_of_text])
        scored = len(found.training.target(n)) + 1
        logits = peer(ids[None]).logits[0, :-1]
        nats += float(F.cross_entropy(logits[-scored:], ids[-scored:], reduction="sum").detach())
        tokens += scored
    batches = found.batches(replace(OPTIONS, batch_size=12))
    inputs, targets = batches.rows(0, range(12))
    assert float(network.loss(inputs, targets)) == pytest.approx(nats, rel=1e-6)
    assert int((targets != -100).sum()) == tokens
    scored = evaluate_examples(network, found.training, 12, network.loss, 5)
    assert scored.nats == pytest.approx(nats, rel=1e-6)
    assert scored.tokens == tokens
    assert scored.text_bytes == sum(len(row["label"]) + 1 for row in some(12))


def test_micro_batches_of_ragged_targets_are_one_batch(tmp_path):
    found = opened(tmp_path, some(12), replace(OPTIONS, validation=0))
    network = tiny_model().network.double().requires_grad_(True)
    batch = found.batches(replace(OPTIONS, batch_size=12)).rows(0, range(12))
    gradients = []
    for rows in (12, 3, 1):
        network.zero_grad()
        accumulate_gradients(network.loss, *batch, rows)
        gradients.append(torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None]))
    for other in gradients[1:]:
        assert float((other - gradients[0]).norm() / gradients[0].norm()) < 1e-6


@pytest.mark.parametrize("compile", [False, True])
def test_a_step_is_a_pure_function_and_an_epoch_reads_every_example_once(tmp_path, compile):
    found = opened(tmp_path, some(10), replace(OPTIONS, validation=0))
    batches = found.batches(replace(OPTIONS, batch_size=4, compile=compile))
    seen = []
    for step in range(5):
        inputs, targets = batches.rows(step, range(4))
        assert inputs.shape == targets.shape
        assert inputs.shape[1] <= batches.window
        assert not compile or inputs.shape[1] == batches.window
        for rank in (0, 1):
            # Whoever reads half a batch reads it padded as all of it: dropout is drawn by shape.
            rows = range(rank * 2, rank * 2 + 2)
            mine = batches.rows(step, rows)
            assert torch.equal(mine[0], inputs[rows.start : rows.stop])
            assert torch.equal(mine[1], targets[rows.start : rows.stop])
        seen += [tuple(row.tolist()) for row in inputs]
    bare = [tuple(value for value in row if value) for row in seen]
    assert sorted(bare[:10]) == sorted(set(bare[:10])) == sorted(set(bare[10:]))
    assert bare[:10] != bare[10:]


def test_what_is_held_out_has_prompts_of_its_own(tmp_path):
    rows = [{"text": str(n // 3), "label": str(n)} for n in range(90)]
    found = opened(tmp_path, rows)
    training = {tuple(found.training.prompt(n)) for n in range(len(found.training))}
    held = {tuple(found.held.prompt(n)) for n in range(len(found.held))}
    assert training
    assert held
    assert not training & held
    assert len(found.training) + len(found.held) == 90
    again = opened(tmp_path, list(reversed(rows)))
    assert {tuple(again.held.prompt(n)) for n in range(len(again.held))} == held
    assert again.fingerprint != found.fingerprint


def test_a_file_may_be_held_out(tmp_path):
    held = table(tmp_path, some(3), "held.jsonl")
    found = opened(tmp_path, some(20), held=held, shown=2)
    assert (len(found.training), len(found.held)) == (20, 3)
    assert found.shown == tuple(some(3)[:2])


def test_prompts_that_are_trained_on_and_held_out_are_told(tmp_path):
    notes: list[str] = []
    held = table(tmp_path, [*some(3), {"text": "new", "label": "a"}], "held.jsonl")
    opened(tmp_path, some(20), notes=notes, held=held)
    assert "3 of 4 held-out examples have a prompt that is trained on, too" in notes


def test_long_articles_are_cut_and_counted_and_the_target_never(tmp_path):
    notes: list[str] = []
    rows = [{"text": "y" * n, "label": "abc"} for n in (5, 20, 21, 22, 400)]
    found = opened(tmp_path, rows, replace(OPTIONS, validation=0), notes)
    assert any(note.startswith("cut: 2 prompts") for note in notes), notes
    tokenizer = byte_tokenizer()
    for n in range(5):
        assert tokenizer.decode(found.training.example(n)[:-1]).endswith("\nLabel: abc")
    # The last id is learnt and not read, so 33 fit into a window of 32.
    assert found.training.lengths.tolist() == [5 + 11, 20 + 11, 32, 32, 32]


def test_empty_targets_and_targets_that_do_not_fit_are_left_out_and_counted(tmp_path):
    notes: list[str] = []
    rows = [{"text": "a", "label": ""}, {"text": "b", "label": " \n"}, {"text": "c", "label": "z" * 40}]
    found = opened(tmp_path, [*rows, *some(4)], replace(OPTIONS, validation=0), notes)
    assert len(found.training) == 4
    assert "left out: 2 examples with an empty target" in notes
    assert any(note.startswith("left out: 1 examples whose target does not fit into 32 tokens") for note in notes)
    found = opened(tmp_path, [{"text": " ", "label": "d"}, *some(4)], replace(OPTIONS, validation=0), notes)
    assert len(found.training) == 4
    assert "left out: 1 examples with an empty prompt" in notes
    with pytest.raises(BadData, match=r"of 3 rows none can be learnt from \(0 cannot be used, 2 have an empty"):
        opened(tmp_path, rows)


def test_rows_of_one_prompt_cannot_be_held_out(tmp_path):
    with pytest.raises(BadData, match="same prompt"):
        opened(tmp_path, [{"text": "same", "label": str(n)} for n in range(4)])


def test_scoring_on_the_way_and_at_the_end(tmp_path):
    found = opened(tmp_path, some(60))
    options = replace(OPTIONS, steps=10, warmup_steps=0, eval_every=4, eval_tokens=12)
    due = [found.scoring(options).due(step, last=step == 10) for step in range(11)]
    assert [step for step, parts in enumerate(due) if parts] == [4, 8, 10]
    assert len(due[4]) == 1
    assert due[10] == [*due[4], len(found.held)]
    counted = np.diff(found.held.starts) - found.held.targets
    assert counted[: due[4][0]].sum() >= 12 > counted[: due[4][0] - 1].sum()
