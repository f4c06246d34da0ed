"""What can be asked of generation, as two frozen dataclasses, and its defaults, which stand nowhere else.

Every value is checked when the options are made. No torch here, so that a command line can show the defaults and
refuse a wrong flag without loading it. What the numbers do to the logits is in `sampling.py`; what the rest does to
a text is in `request.py`.
"""

import math
import numbers
import operator
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, Protocol, get_args

from gpt2.errors import BadOption

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

Overflow = Literal["slide", "stop", "error"]


class Grammar(Protocol):
    """What may be written: it decides, for one text, which tokens can come next."""

    def allowed(self, output: Sequence[int]) -> "npt.NDArray[np.bool_]":
        """(V,) bool for the V ids of the vocabulary, at least one of them true. output: the ids generated so far.

        A step that was stopped (Ctrl-C) is made again: the same output may be asked about twice.
        """
        ...


# Lowest and highest seed.
SEEDS = (-(2**63), 2**63 - 1)


def whole_number(name: str, value: Any, low: int, high: int | None = None) -> int:
    """`value` as an int from `low` to `high` (both included); raises BadOption, naming it, for anything else."""
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = None
    if number is None or number < low or (high is not None and number > high):
        span = f"of at least {low}" if high is None else f"from {low} to {high}"
        raise BadOption(f"{name} is {value!r}, but it must be a whole number {span}.")
    return number


def _real_number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or math.isnan(value):
        raise BadOption(f"{name} is {value!r}, but it must be a number.")
    return float(value)


@dataclass(frozen=True, slots=True)
class SamplingOptions:
    """How a token is chosen from logits. `sampling.py` says in which order these act.

    temperature: 0 takes the most likely token (greedy), 1 leaves the model's distribution as it is; at least 1e-6 if
        it is not 0.
    top_k: keep this many tokens, and all that tie with the last of them; None or 0 keeps all.
    top_p: keep the most likely tokens that together reach this probability, 0 to 1; None or 1 keeps all.
    min_p: keep tokens at least this fraction as likely as the most likely one, 0 to 1; None or 0 keeps all.
    repetition_penalty: above 0; above 1 makes tokens of the prompt and the output less likely (the CTRL paper's,
        section 4.1, and Hugging Face's); 1 is off.
    presence_penalty, frequency_penalty: taken off the logit of a generated token, once and once per occurrence
        (OpenAI's); finite, 0 is off.
    logit_bias: token id to what is added to its logit; finite, or -inf to forbid the token.

    Raises BadOption, naming the field, its value and its range.
    """

    temperature: float = 0.8
    top_k: int | None = 40
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=lambda: MappingProxyType({}), hash=False)

    def __post_init__(self) -> None:
        temperature = _real_number("temperature", self.temperature)
        # Below 1e-6 a division could overflow float32, and the answer is the greedy one anyway.
        if temperature != 0 and not 1e-6 <= temperature < math.inf:
            raise BadOption(
                f"temperature is {temperature!r}, but it must be 0 (greedy) or a finite number from 1e-6 up."
            )
        self._set("temperature", temperature)
        if self.top_k is not None:
            self._set("top_k", whole_number("top_k", self.top_k, 0))
        for name in ("top_p", "min_p"):
            value = getattr(self, name)
            if value is None:
                continue
            number = _real_number(name, value)
            if not 0 <= number <= 1:
                raise BadOption(f"{name} is {value!r}, but it must lie between 0 and 1.")
            self._set(name, number)
        penalty = _real_number("repetition_penalty", self.repetition_penalty)
        if not 0 < penalty < math.inf:
            raise BadOption(f"repetition_penalty is {penalty!r}, but it must be a finite number above 0 (1 is off).")
        self._set("repetition_penalty", penalty)
        for name in ("presence_penalty", "frequency_penalty"):
            number = _real_number(name, getattr(self, name))
            if math.isinf(number):
                raise BadOption(f"{name} is {number!r}, but it must be finite.")
            self._set(name, number)
        self._set("logit_bias", self._checked_bias())

    def _checked_bias(self) -> Mapping[int, float]:
        if not isinstance(self.logit_bias, Mapping):
            raise BadOption(f"logit_bias is {self.logit_bias!r}, but it must map token ids to numbers.")
        checked = {}
        for id, value in self.logit_bias.items():
            bias = _real_number(f"logit_bias[{id!r}]", value)
            if bias == math.inf:
                raise BadOption(f"logit_bias[{id!r}] is inf, but it must be finite, or -inf to forbid the token.")
            checked[whole_number("A token id in logit_bias", id, 0)] = bias
        return MappingProxyType(checked)

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)


@dataclass(frozen=True, slots=True)
class GenerationOptions:
    """What is asked of one call of generation, for each of its prompts.

    max_tokens: most tokens to generate per prompt; 0 gives empty text.
    stop: strings that end the text where they begin (one may be given bare).
    seed: a whole number of 64 bits, used by every prompt as it is; one for each prompt; or None, which draws from the
        operating system.
    logprobs: None, or how many likely alternatives to report beside each token's own log-probability (0: only that).
    overflow: what happens where prompt and output outgrow the model's window. "slide" keeps the newest half of the
        window, reads it again, goes on, and says so once (Notice); "stop" ends the text there; "error" refuses
        before anything runs if it could happen.
    sampling: how each token is chosen.
    grammar: None, or a function that is given a prompt's ids and makes the `Grammar` of its text. What it does not
        allow is never drawn; log-probabilities stay the model's own.

    Raises BadOption, naming the field, its value and its range.
    """

    max_tokens: int = 100
    stop: str | Sequence[str] = ()
    seed: int | Sequence[int] | None = None
    logprobs: int | None = None
    overflow: Overflow = "slide"
    sampling: SamplingOptions = field(default_factory=SamplingOptions)
    grammar: Callable[[Sequence[int]], Grammar] | None = None

    def __post_init__(self) -> None:
        self._set("max_tokens", whole_number("max_tokens", self.max_tokens, 0))
        stop = (self.stop,) if isinstance(self.stop, str) else self.stop
        if not isinstance(stop, Sequence) or not all(isinstance(text, str) and text for text in stop):
            raise BadOption(f"stop is {self.stop!r}, but it must be a text or several, none of them empty.")
        self._set("stop", tuple(stop))
        if isinstance(self.seed, Sequence) and not isinstance(self.seed, str):
            self._set("seed", tuple(whole_number("A seed", seed, *SEEDS) for seed in self.seed))
        elif self.seed is not None:
            self._set("seed", whole_number("seed", self.seed, *SEEDS))
        if self.logprobs is not None:
            self._set("logprobs", whole_number("logprobs", self.logprobs, 0))
        if self.overflow not in get_args(Overflow):
            raise BadOption(f"overflow is {self.overflow!r}, but it must be one of {', '.join(get_args(Overflow))}.")
        if not isinstance(self.sampling, SamplingOptions):
            raise BadOption(f"sampling is {self.sampling!r}, but it must be SamplingOptions.")
        if self.grammar is not None and not callable(self.grammar):
            raise BadOption(f"grammar is {self.grammar!r}, but it must be a function from a prompt's ids to a Grammar.")

    def seeds(self, prompts: int) -> list[int]:
        """One seed for each of so many prompts; where none was given, each is drawn on its own.

        Raises BadOption if there are more or fewer seeds than prompts.
        """
        if self.seed is None:
            # 32 bits: enough to be unlike, and short enough to be typed again.
            return [secrets.randbits(32) for _ in range(prompts)]
        if isinstance(self.seed, int):
            return [self.seed] * prompts
        if len(self.seed) != prompts:
            raise BadOption(
                f"seed holds {len(self.seed)} seeds for {prompts} prompts; give one for each, or one for all."
            )
        return list(self.seed)

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)


DEFAULTS = GenerationOptions()
