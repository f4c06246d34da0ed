"""`gpt2 doctor`: its document, its table, and its exit code."""

import pytest

from gpt2.runners import choose, machine
from tests.doctor_runners import Lying


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("GPT2_CACHE", str(tmp_path / "cache"))
    # Real products take seconds; they are tested by themselves.
    monkeypatch.setattr(machine, "matrix_rate", lambda dtype, threads, device: 1e12)


def test_a_model_that_has_no_stored_figures(gpt2, model_path):
    answer = gpt2("doctor", "--model", model_path, "--no-compile", "--json")
    assert (answer.code, answer.err) == (0, "")
    document = answer.json
    assert document["truthful"] is True
    assert document["verdict"] == "truthful machine"
    assert document["control"]["verdict"] == "true"
    assert document["read_bytes_per_second"] > 0
    assert set(document["matrix_flops_per_second"]) == {"float32", "bfloat16"}
    by_width = {}
    for finding in document["runners"]:
        by_width.setdefault(finding["dtype"], []).append(finding)
    assert list(by_width) == ["float32", "bfloat16", "int8", "int4"]
    for dtype, findings in by_width.items():
        assert sum(finding["chosen"] for finding in findings) == 1, dtype
        assert all(finding["verdict"] in ("true", "absent") for finding in findings), dtype
    plain = next(each for each in by_width["float32"] if each["runner"] == "plain")
    assert plain["nats"] <= plain["allowed"] == 1e-3


def test_the_shipped_model_in_a_table(gpt2):
    answer = gpt2("doctor", "--no-compile", "--dtype", "float32")
    assert answer.code == 0
    assert "bookworm on cpu" in answer.out
    assert "left out by --no-compile" in answer.out
    assert answer.out.rstrip().endswith("truthful machine")
    assert max(map(len, answer.out.splitlines())) <= 80


@pytest.mark.parametrize("by", [0.1, float("nan")])
def test_a_runner_that_lies_is_exit_code_1(gpt2, model_path, monkeypatch, by):
    real = choose._build

    def build(name, model, slots, threads):
        if name == "plain" and model.source == model_path:
            return Lying(model.network, slots, by=by, at=7)
        return real(name, model, slots, threads)

    monkeypatch.setattr(choose, "_build", build)
    answer = gpt2("doctor", "--model", model_path, "--no-compile", "--dtype", "float32")
    assert answer.code == 1
    assert "this machine computes wrongly: plain in float32" in answer.out
    assert "position 7 of the" in " ".join(answer.out.split())
    answer = gpt2("doctor", "--model", model_path, "--no-compile", "--dtype", "float32", "--json")
    assert answer.code == 1
    assert answer.json["truthful"] is False
    assert answer.json["runners"][-1]["verdict"] == "false"


def test_a_device_that_is_not_here_is_told(gpt2):
    answer = gpt2("doctor", "--device", "cuda:99")
    assert answer.code == 2
    assert "cuda:99" in answer.err
