"""What a run scores of its held-out tokens: when, how many at a time, shared out, and refused if there is nothing."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from gpt2.errors import BadData, BadOption
from gpt2.training import validation
from gpt2.training.data import Data, as_tokens, to_ids
from gpt2.training.evaluate import _windows, evaluate
from gpt2.training.options import TrainingOptions
from gpt2.training.ranks import Ranks
from gpt2.training.step import Step
from gpt2.training.validation import Validation
from tests.helpers import tiny_model

OPTIONS = TrainingOptions(
    n_layer=2, n_head=2, n_embd=32, context=8, vocab_size=257, batch_size=8, steps=10, warmup_steps=2, eval_every=4
)
END = 256


def data_of(ids, text_bytes=None):
    tokens = as_tokens(np.array(ids, dtype=np.int32))
    return Data(tokens, tokens, text_bytes, "fingerprint", tiny_model().tokenizer)


def test_a_part_is_scored_on_the_way_and_all_at_the_end():
    part = Validation(data_of(range(100)), replace(OPTIONS, eval_tokens=20))
    assert [len(ids) for ids in part.due(4, last=False)] == [20]
    assert [len(ids) for ids in part.due(10, last=True)] == [20, 100]
    assert part.due(5, last=False) == part.due(0, last=False) == []
    whole = Validation(data_of(range(100)), OPTIONS)
    assert [len(ids) for ids in whole.due(10, last=True)] == [100]
    assert Validation(data_of([]), OPTIONS).due(10, last=True) == []


@pytest.mark.parametrize("eval_tokens", [2, 3])
def test_a_part_in_which_nothing_can_be_scored_is_refused(eval_tokens):
    ids = [END, END, END, *range(50)]
    with pytest.raises(BadOption, match=f"eval_tokens is {eval_tokens}"):
        Validation(data_of(ids), replace(OPTIONS, eval_tokens=eval_tokens))
    Validation(data_of(ids), replace(OPTIONS, eval_tokens=4))


def test_held_out_tokens_of_which_none_can_be_scored_are_refused():
    with pytest.raises(BadData, match="none of the 3 held-out tokens"):
        Validation(data_of([END] * 3), OPTIONS)


def test_no_more_tokens_at_a_time_than_training_has(monkeypatch):
    """A model to begin with may have a longer window than the run, and evaluation takes the whole of it."""
    seen = []
    monkeypatch.setattr(validation, "evaluate", lambda *_, **named: seen.append(named["batch_size"]))
    network = tiny_model(window=32).network.requires_grad_(True)
    held = Validation(data_of(range(100), 100), OPTIONS)
    for rows in (8, 2):
        held.score(
            held.due(4, last=False)[0], Step(network, replace(OPTIONS, micro_batch_size=rows), Ranks()), window=8
        )
    assert seen == [2, 1]


def test_bytes_are_counted_once(monkeypatch):
    real, counted = validation.count_bytes, []
    monkeypatch.setattr(validation, "count_bytes", lambda *values: counted.append(1) or real(*values))
    step = Step(tiny_model(window=8).network.requires_grad_(True), OPTIONS, Ranks())
    held = Validation(data_of(range(100)), replace(OPTIONS, eval_tokens=20))
    due = [ids for number, last in ((4, False), (8, False), (10, True)) for ids in held.due(number, last)]
    results = [held.score(ids, step, 8) for ids in due]
    assert [result.text_bytes for result in results] == [19, 19, 19, 99]
    assert len(counted) == 2


@pytest.mark.parametrize("length", [0, 1, 2, 9, 30, 200])
@pytest.mark.parametrize("stride", [3, 8])
def test_processes_share_the_windows(length, stride):
    ids = np.arange(length, dtype=np.int32)
    shares = [list(_windows(ids, 8, stride, 2, Ranks(rank, 3))) for rank in range(3)]
    assert len({len(share) for share in shares}) == 1, "a sharded network takes all processes for each pass"
    scored = [int(id) for share in shares for _, targets in share for id in targets[targets != -100]]
    assert sorted(scored) == list(range(1, length))
    if length == 200:
        assert max(int((targets != -100).sum()) for share in shares for _, targets in share) <= 16
        sums = [sum(int((targets != -100).sum()) for _, targets in share) for share in shares]
        assert max(sums) < 100, "one process has most of the work"


def test_what_processes_score_adds_up(monkeypatch):
    model = tiny_model(window=16)
    ids = to_ids(["a text that is shared out by some processes"] * 5, model.tokenizer)
    whole = evaluate(model.network, ids, END, 100, batch_size=2)
    shares = []
    for rank in range(3):
        ranks = Ranks(rank, 3)
        monkeypatch.setattr(Ranks, "total", lambda _, value: shares.append(value) or value)
        evaluate(model.network, ids, END, 100, batch_size=2, ranks=ranks)
    nats, tokens = torch.stack(shares).sum(0).tolist()
    assert tokens == whole.tokens
    assert nats == pytest.approx(whole.nats, rel=1e-6)
