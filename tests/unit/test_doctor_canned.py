"""The figures, and what is found to be far from them: every way of reading, every place, NaN, and nothing true."""

import copy
import hashlib
import json

import pytest
import torch

from gpt2.checkpoint import load, locate
from gpt2.doctor import canned
from gpt2.doctor.examine import STORED
from gpt2.errors import Error
from gpt2.runners.plain import PlainRunner
from tests.doctor_runners import Lying, OnlyDecodesWrongly
from tests.helpers import tiny_model


@pytest.fixture(scope="module")
def network():
    return tiny_model(window=64).network


@pytest.fixture(scope="module")
def places(network):
    return canned.figures(PlainRunner(network, 1))


def test_what_is_true_is_near(network, places):
    found = canned.difference(PlainRunner(network, 2), places)
    assert found.nats < 1e-5 < canned.allowed("float32", places)


def test_figures_are_the_models_own(network, places):
    """Against a reading of `model.py` that knows nothing of runners."""
    texts = canned.inputs(network.config)
    assert (len(texts["short"]), len(texts["full"])) == (12, 64)
    for place in places:
        ids = torch.tensor([texts[place.input][: place.position + 1]])
        logprob_V = network(ids)[0, -1].log_softmax(-1)
        assert torch.allclose(logprob_V[list(place.ids)], torch.tensor(place.logprobs), atol=1e-4)
    assert {place.position for place in places if place.input == "full"} >= {0, 1, 31, 32, 63}
    assert {place.position for place in places if place.input == "short"} == set(range(12))


@pytest.mark.parametrize("position", [0, 31, 63])
def test_a_lie_at_one_place_is_found_there(network, places, position):
    found = canned.difference(Lying(network, 2, by=0.02, at=position), places)
    assert found.nats > canned.allowed("float32", places)
    assert f"position {position} of the" in found.where


@pytest.mark.parametrize("by", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_found(network, places, by):
    assert canned.difference(Lying(network, 2, by=by, at=32), places).nats == float("inf")


def test_a_decode_step_that_lies_is_found(network, places):
    found = canned.difference(OnlyDecodesWrongly(network, 2), places)
    assert found.nats > 0.1
    assert "token by token" in found.where


def test_other_weights_are_found_at_every_width(network, places):
    other = canned.difference(PlainRunner(tiny_model(seed=1, window=64).network, 2), places)
    assert all(other.nats > canned.allowed(dtype, places) for dtype in ("float32", "bfloat16", "int8", "int4"))


def test_bfloat16_is_within_its_bound_and_beyond_float32s(network, places):
    found = canned.difference(PlainRunner(copy.deepcopy(network).bfloat16(), 2), places)
    assert canned.allowed("float32", places) < found.nats < canned.allowed("bfloat16", places)


def test_a_window_of_one_token():
    network = tiny_model(window=1).network
    assert canned.difference(PlainRunner(network, 2), canned.figures(PlainRunner(network, 1))).nats < 1e-5


def test_damaged_weights_have_no_figures(network):
    broken = copy.deepcopy(network)
    broken.ln_f.weight.data[0] = float("nan")
    with pytest.raises(Error, match="weights are damaged"):
        canned.figures(PlainRunner(broken, 1))


def test_stored_and_read_back(tmp_path, places):
    canned.write_figures(tmp_path / "figures.json", places, {"model": "tiny"})
    assert canned.read_figures(tmp_path / "figures.json") == places
    assert json.loads((tmp_path / "figures.json").read_text())["model"] == "tiny"


def test_the_stored_figures_are_the_shipped_models():
    """If this fails after the model changed: scripts/make_doctor_figures.py makes them anew."""
    weights = locate("bookworm") / "model.safetensors"
    assert json.loads(STORED.read_text())["sha256"] == hashlib.sha256(weights.read_bytes()).hexdigest()
    model = load("bookworm")
    assert canned.difference(PlainRunner(model.network, 2), canned.read_figures(STORED)).nats < canned.FLOAT32_BOUND
