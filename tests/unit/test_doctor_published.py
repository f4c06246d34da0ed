"""OpenAI's published figures: a stub that says them passes, anything else does not."""

import json

import pytest
import torch

from gpt2.config import SIZES, GPT2Config
from gpt2.doctor import published
from gpt2.model import GPT2
from gpt2.runners.plain import PlainRunner
from gpt2.tokenizer import Tokenizer
from tests.doctor_runners import Oracle
from tests.helpers import byte_tokenizer

DATA = json.loads(published.FIGURES.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.gpt2()


def oracle(tokenizer, *, off_by=1.0, greedy=", lazy fox and they both fall to the ground", dog=0.05):
    """A runner that gives the published values; the first of them multiplied with `off_by`."""
    runner, encode = Oracle(), tokenizer.encode
    fox = encode(DATA["orderings"]["context"])
    runner.tell(fox, encode(greedy), [torch.tensor(0.6).log().item()] * len(encode(greedy)))
    runner.tell(fox, encode(" dog"), [torch.tensor(dog).log().item()])
    runner.tell(fox, encode(" cat"), [torch.tensor(0.02).log().item()])
    for number, case in enumerate(DATA["loglikelihood"]):
        ids = encode(case["continuation"])
        value = case["logprob"] * (off_by if number == 0 else 1.0)
        runner.tell(encode(case["context"]), ids, [value / len(ids)] * len(ids))
    ids, (whole, windows) = encode(DATA["rolling"]["text"]), DATA["rolling"]["logprobs"]
    before = [50256, *ids]
    # From the second window on, what is read before a token is another text than with the whole context.
    runner.tell([50256], ids, whole)
    for start, context in ((5, before[5:6]), (10, before[10:11]), (15, before[12:16])):
        runner.tell(context, ids[start : start + 5], windows[start : start + 5])
    return runner


def test_the_published_values_are_as_published(tokenizer):
    found = published.compare(oracle(tokenizer), tokenizer)
    assert found.ok
    assert found.greedy
    assert found.relative < 1e-4


@pytest.mark.parametrize("off_by", [1.002, 0.998, 1.5])
def test_one_value_that_is_off_is_found(tokenizer, off_by):
    found = published.compare(oracle(tokenizer, off_by=off_by), tokenizer)
    assert not found.ok
    assert found.relative == pytest.approx(abs(off_by - 1), rel=1e-2)
    assert found.text == DATA["loglikelihood"][0]["continuation"]


def test_another_greedy_text_is_found(tokenizer):
    assert not published.compare(oracle(tokenizer, greedy=", lazy dog and they"), tokenizer).ok
    assert not published.compare(oracle(tokenizer, dog=0.001), tokenizer).ok


def test_random_weights_are_not_openais(tokenizer):
    config = GPT2Config(n_layer=1, n_embd=64, n_head=2)
    found = published.compare(PlainRunner(GPT2(config).initialise(0).eval(), 1), tokenizer)
    assert not found.ok
    assert found.relative > 0.01


def test_not_finite_is_not_as_published(tokenizer):
    network = GPT2(GPT2Config(n_layer=1, n_embd=64, n_head=2)).initialise(0).eval()
    network.ln_f.bias.data[0] = float("nan")
    found = published.compare(PlainRunner(network, 1), tokenizer)
    assert (found.ok, found.relative) == (False, float("inf"))


def test_only_for_openais_shape_and_vocabulary(tokenizer):
    assert published.applies(SIZES["gpt2"].config, tokenizer)
    assert not published.applies(SIZES["gpt2-medium"].config, tokenizer)
    assert not published.applies(SIZES["gpt2"].config, byte_tokenizer())


def test_the_figures_are_the_ones_in_the_source(shared):
    source = json.loads((shared / "data" / "gpt2_reference" / "gpt2_small_logprobs.json").read_text(encoding="utf-8"))
    source["rolling"].pop("note")
    ours = json.loads(published.FIGURES.read_text(encoding="utf-8"))
    ours["rolling"].pop("note")
    assert ours == source
