"""Law `quantise`: int8 costs at most 0.5 % of perplexity and int4 at most 4 %, on a trained model and real text.

And every runner that computes with quantised weights gives what the plain model gives with the weights they stand for.
"""

import json
import math
import subprocess
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch

from gpt2.checkpoint import LanguageModel, load
from gpt2.config import GPT2Config
from gpt2.errors import Notice
from gpt2.model import GPT2
from gpt2.runners.aten import AtenRunner
from gpt2.runners.calibrate import rounded
from gpt2.runners.plain import PlainRunner
from gpt2.runners.quantise import dequantise, int4_groups, kind
from gpt2.runners.runner import Feed, Runner
from tests.layouts import random_network, small_tokenizer

BUDGET = {"int8": 0.005, "int4": 0.04}


def _native(model: LanguageModel) -> Runner:
    native = pytest.importorskip("gpt2.runners.native", reason="the native runner is not here")
    if reason := native.reason(model.config, model.dtype):
        pytest.skip(f"left out: {reason}")
    runner: Runner = native.NativeRunner(model, 2)
    return runner


# Name: (the runner, the share of the largest logit by which its logits may be off). aten rounds rows to bfloat16,
# native to bytes with a scale for each group.
RUNNERS: dict[str, tuple[Callable[[LanguageModel], Runner], float]] = {
    "aten, widened": (lambda model: AtenRunner(model, 2, exact=True), 1e-5),
    "aten, kernels": (lambda model: AtenRunner(model, 2), 0.02),
    "native": (_native, 0.05),
}


@pytest.fixture(autouse=True)
def cache_folder(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPT2_CACHE", str(tmp_path_factory.getbasetemp() / "packed-cache"))


@cache
def quantised(dtype: str) -> GPT2:
    """bookworm with the float32 weights that the quantised ones stand for."""
    return rounded(load().network, dtype)


@pytest.fixture(scope="module", params=["wikitext", "held-out corpus"])
def texts(request: pytest.FixtureRequest, shared: Path) -> list[list[int]]:
    """Token ids of 15 texts or more, each of at most a window."""
    if request.param == "wikitext":
        whole = (shared / "data" / "eval" / "wikitext2" / "wiki.test.raw").read_text(encoding="utf-8")
        documents = [whole[start : start + 5_000] for start in range(0, 300_000, 20_000)]
    else:
        path = shared / "data" / "corpus" / "valid.jsonl.zst"
        try:
            data = subprocess.run(["zstd", "-dc", path], check=True, capture_output=True).stdout
        except FileNotFoundError:
            pyarrow = pytest.importorskip("pyarrow", reason="left out: neither zstd nor pyarrow is here")
            data = pyarrow.input_stream(str(path), compression="zstd").read()
        # Books are long: a piece of each.
        documents = [json.loads(line)["text"][:5_000] for line in data.splitlines()[::2]]
    tokenizer = load().tokenizer
    return [tokenizer.encode(document)[:1024] for document in documents]


def nats(runner: Runner, texts: list[list[int]]) -> float:
    """Nats a token over the texts' first windows, each token but the first scored once."""
    total, count = 0.0, 0
    for ids in texts:
        runner.rewind(0, 0)
        logprobs_TV = runner.read([Feed(0, ids, len(ids))])[:-1].log_softmax(-1)
        total -= float(logprobs_TV.gather(1, torch.tensor(ids[1:])[:, None]).sum())
        count += len(ids) - 1
    return total / count


@pytest.fixture(scope="module")
def plain_nats(texts: list[list[int]]) -> float:
    return nats(PlainRunner(load().network, 1), texts)


@pytest.mark.parametrize("dtype", ["int8", "int4"])
@pytest.mark.parametrize("name", ["aten, kernels", "native"])
def test_the_cost_on_real_text(name: str, dtype: str, texts: list[list[int]], plain_nats: float) -> None:
    assert sum(map(len, texts)) > 10_000
    cost = math.exp(nats(RUNNERS[name][0](load(dtype=dtype)), texts) - plain_nats) - 1
    assert cost <= BUDGET[dtype], f"{dtype} costs {cost:.2%}"
    # Unless something was rounded, this would measure nothing.
    assert abs(cost) > 1e-6


def test_int4_rounded_by_its_inputs_costs_less(texts: list[list[int]]) -> None:
    trained = load().network
    alone = GPT2(trained.config)
    alone.load_state_dict(trained.state_dict())
    for name, weight in alone.state_dict().items():
        if kind(name, "int4") == "int4":
            weight.copy_(dequantise(*int4_groups(weight)))
    plain, rounded_alone, together = (
        nats(PlainRunner(network, 1), texts[:8]) for network in (trained, alone.eval(), quantised("int4"))
    )
    assert together - plain < 0.6 * (rounded_alone - plain)


@pytest.mark.parametrize("dtype", ["int8", "int4"])
@pytest.mark.parametrize("name", RUNNERS)
def test_runners_compute_with_these_weights(name: str, dtype: str) -> None:
    model = load(dtype=dtype)
    make, share = RUNNERS[name]
    ids = model.tokenizer.encode("The old house stood at the end of the road, and nobody had seen its owner. " * 6)
    truth = quantised(dtype)(torch.tensor([ids]))[0]
    runner = make(model)
    assert runner.dtype == dtype
    got = torch.cat(
        [runner.read([Feed(1, ids[:-4], len(ids) - 4)]), *[runner.read([Feed(1, [id])]) for id in ids[-4:]]]
    )
    assert float((got - truth).abs().max()) <= share * float(truth.abs().max())
    if dtype == "int4":
        # Near the quantised model, not merely near the float32 one. (int8 is so near that rounded rows hide it.)
        plain = load().network(torch.tensor([ids]))[0]
        assert float((got - truth).square().mean()) < 0.25 * float((plain - truth).square().mean())


@pytest.mark.parametrize("dtype", ["int8", "int4"])
@pytest.mark.parametrize("name", RUNNERS)
def test_random_weights_of_another_shape(name: str, dtype: str) -> None:
    config = GPT2Config(vocab_size=300, n_positions=64, n_embd=128, n_layer=3, n_head=4)
    network = random_network(config)
    make, share = RUNNERS[name]
    runner = make(LanguageModel(network, small_tokenizer(), dtype=dtype))
    oracle = rounded(network, dtype)
    random = torch.Generator().manual_seed(1)
    rows = [torch.randint(300, (length,), generator=random).tolist() for length in (40, 17)]
    runner.read([Feed(slot, ids[:-1], 0) for slot, ids in enumerate(rows)])
    got = runner.read([Feed(slot, ids[-1:]) for slot, ids in enumerate(rows)])
    for logits, ids in zip(got, rows, strict=True):
        truth = oracle(torch.tensor([ids]))[0, -1].detach()
        assert float((logits - truth).abs().max()) <= share * float(truth.abs().max())


@pytest.mark.parametrize("dtype", ["int8", "int4"])
@pytest.mark.parametrize("name", RUNNERS)
def test_a_second_runner_starts_from_the_cache(name: str, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make, _ = RUNNERS[name]
    first = make(load(dtype=dtype)).read([Feed(0, [1, 2, 3])])

    def refuse(*_: object) -> None:
        raise AssertionError("weights were packed again")

    for function in ("_write", "_in_memory"):
        monkeypatch.setattr(f"gpt2.runners.packed.{function}", refuse)
    assert torch.equal(make(load(dtype=dtype)).read([Feed(0, [1, 2, 3])]), first)


def test_without_a_place_to_write_it_runs_all_the_same(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    first = AtenRunner(load(dtype="int8"), 1).read([Feed(0, [1, 2, 3])])
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("GPT2_CACHE", str(tmp_path / "file"))
    with pytest.warns(Notice, match="packs them again"):
        second = AtenRunner(load(dtype="int8"), 1).read([Feed(0, [1, 2, 3])])
    assert torch.equal(first, second)
