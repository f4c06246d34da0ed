import dataclasses
import math
import subprocess
import sys

import numpy as np
import pytest

from gpt2.errors import BadOption
from gpt2.generation import DEFAULTS, GenerationOptions, SamplingOptions

NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("temperature", value) for value in (-0.1, NAN, INF, 1e-9, "1", None, True)],
        *[("top_k", value) for value in (-1, 1.5, "40", True)],
        *[(name, value) for name in ("top_p", "min_p") for value in (-0.01, 1.01, NAN, "0.5", True)],
        *[("repetition_penalty", value) for value in (0, -1, NAN, INF, None)],
        *[(name, value) for name in ("presence_penalty", "frequency_penalty") for value in (NAN, INF, -INF, "0")],
    ],
)
def test_a_sampling_option_outside_its_range_is_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(BadOption) as refusal:
        SamplingOptions(**{name: value})
    assert name in str(refusal.value)
    assert repr(value).strip("'") in str(refusal.value)
    assert "must" in str(refusal.value)


@pytest.mark.parametrize(
    "bias", [{"5": 1.0}, {-1: 1.0}, {1.5: 1.0}, {5: NAN}, {5: INF}, {5: "x"}, [(5, 1.0)], {True: 1}]
)
def test_a_bad_logit_bias_is_refused(bias: object) -> None:
    with pytest.raises(BadOption, match="logit_bias"):
        SamplingOptions(logit_bias=bias)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("max_tokens", value) for value in (-1, 1.0, None, "5")],
        *[("stop", value) for value in ("", ["a", ""], [b"a"], b"a", 5, None)],
        *[("seed", value) for value in (1.5, 2**63, -(2**63) - 1, "1", [1, 2.5])],
        *[("logprobs", value) for value in (-1, 1.5, True)],
        *[("overflow", value) for value in ("truncate", None)],
        ("sampling", {"top_k": 3}),
    ],
)
def test_a_generation_option_outside_its_range_is_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(BadOption, match=f"(?i){name}"):
        GenerationOptions(**{name: value})


def test_the_ends_of_the_ranges_are_taken() -> None:
    SamplingOptions(temperature=0, top_k=0, top_p=0, min_p=0, repetition_penalty=0.5, presence_penalty=-2)
    SamplingOptions(temperature=1e-6, top_k=None, top_p=1, min_p=1, logit_bias={0: -INF})
    GenerationOptions(max_tokens=0, stop="x", seed=-(2**63), logprobs=0)
    assert SamplingOptions(temperature=np.float32(0.5), top_k=np.int64(3)).top_k == 3


def test_options_do_not_change() -> None:
    bias = {5: 1.0}
    options = SamplingOptions(logit_bias=bias)
    bias[6] = 2.0
    assert options.logit_bias == {5: 1.0}
    with pytest.raises(TypeError):
        options.logit_bias[5] = 3.0
    with pytest.raises(dataclasses.FrozenInstanceError):
        options.top_k = 3
    assert hash(options) is not None
    assert options == SamplingOptions(logit_bias={5: 1})
    assert options != SamplingOptions(logit_bias={5: 2})


def test_one_stop_string_is_not_taken_for_its_letters() -> None:
    assert GenerationOptions(stop="abc").stop == ("abc",)


def test_seeds() -> None:
    assert GenerationOptions(seed=7).seeds(3) == [7, 7, 7]
    assert GenerationOptions(seed=[1, 2]).seeds(2) == [1, 2]
    with pytest.raises(BadOption, match="2 seeds for 3 prompts"):
        GenerationOptions(seed=[1, 2]).seeds(3)
    drawn = GenerationOptions().seeds(50)
    assert len(set(drawn)) > 45


def test_the_defaults() -> None:
    assert (DEFAULTS.max_tokens, DEFAULTS.overflow, DEFAULTS.stop) == (100, "slide", ())
    assert (DEFAULTS.sampling.temperature, DEFAULTS.sampling.top_k, DEFAULTS.sampling.top_p) == (0.8, 40, None)


def test_options_are_there_without_torch() -> None:
    code = "import sys, gpt2.generation as g; g.SamplingOptions(top_k=3); assert 'torch' not in sys.modules; g.generate"
    subprocess.run([sys.executable, "-c", code], check=True)
