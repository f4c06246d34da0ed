"""Scores that are kept: what is read back, what a crash leaves, and what tells models apart."""

import pytest
import torch

from gpt2.errors import Busy
from gpt2.evaluation.store import Store, key_of, model_fingerprint, path_for
from tests.helpers import tiny_model


def test_what_was_put_is_there_when_the_file_is_opened_again(tmp_path):
    path = tmp_path / "some" / "scores.jsonl"
    with Store(path) as store:
        assert store.done("a") is None
        store.put("a", {"total": -1.25, "greedy": True})
    with Store(path) as store:
        assert store.done("a") == {"total": -1.25, "greedy": True}
        assert len(store) == 1


def test_a_half_written_last_line_is_dropped_and_what_follows_is_whole(tmp_path):
    path = tmp_path / "scores.jsonl"
    with Store(path) as store:
        store.put("a", {"total": 1.0})
    with path.open("ab") as file:
        file.write(b'{"key":"b","value":{"tot')
    with Store(path) as store:
        assert store.done("a") == {"total": 1.0}
        assert store.done("b") is None
        store.put("c", {"total": 3.0})
    with Store(path) as store:
        assert store.done("c") == {"total": 3.0}
        assert len(store) == 2


def test_a_line_that_is_no_record_is_passed_over(tmp_path):
    path = tmp_path / "scores.jsonl"
    path.write_bytes(b'nonsense\n[1]\n{"key":"a","value":{"x":1}}\n')
    with Store(path) as store:
        assert store.done("a") == {"x": 1}


def test_a_result_is_on_its_way_to_the_disk_before_put_returns(tmp_path):
    path = tmp_path / "scores.jsonl"
    with Store(path) as store:
        store.put("a", {"x": 1})
        assert path.read_bytes().endswith(b"\n")


def test_a_second_writer_is_refused(tmp_path):
    with Store(tmp_path / "scores.jsonl"), pytest.raises(Busy, match="Another process"):
        Store(tmp_path / "scores.jsonl")
    Store(tmp_path / "scores.jsonl").close()


def test_keys_tell_apart_what_is_joined_alike():
    keys = {key_of([1, 2], [3]), key_of([1], [2, 3]), key_of([12], [3]), key_of([1, 2, 3]), key_of("1,2", "3", "")}
    assert len(keys) == 5
    assert key_of([1, 2], "x") == key_of((1, 2), "x")


def test_a_fingerprint_is_of_the_numbers_and_not_of_the_place():
    one, same, other = tiny_model(seed=0), tiny_model(seed=0), tiny_model(seed=1)
    same.source = "elsewhere"
    assert model_fingerprint(one) == model_fingerprint(same) != model_fingerprint(other)
    changed = tiny_model(seed=0)
    with torch.no_grad():
        changed.network.state_dict()["h.0.mlp.c_fc.bias"][3] += 1e-6
    assert model_fingerprint(changed) != model_fingerprint(one)


def test_scores_of_another_width_lie_elsewhere(tmp_path):
    model = tiny_model()
    narrow = tiny_model()
    narrow.network.to(torch.bfloat16)
    assert path_for(model, "x", tmp_path) != path_for(narrow, "x", tmp_path)
    assert path_for(model, "x", tmp_path).is_relative_to(tmp_path)
