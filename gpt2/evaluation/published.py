"""Figures that others published, as they stand there; nothing is computed here.

The paper: Radford et al. 2019, "Language Models are Unsupervised Multitask Learners", Table 3 and section 3, zero-shot.
lm-evaluation-harness: what its users report for OpenAI's weights, in the threads named below.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

# The paper's names for its sizes, and what they really have.
PARAMETERS: Mapping[str, int] = MappingProxyType(
    {"117M": 124_439_808, "345M": 354_823_168, "762M": 774_030_080, "1542M": 1_557_611_200}
)
# Of this one alone it reports the tasks of its section 3.
LARGEST = "1542M"


def _sizes(*values: float) -> Mapping[str, float]:
    return MappingProxyType(dict(zip(PARAMETERS, values, strict=True)))


def _every(value: float) -> Mapping[str, float]:
    """A baseline that has no size: it stands beside them all."""
    return MappingProxyType(dict.fromkeys(PARAMETERS, value))


def _largest(value: float) -> Mapping[str, float]:
    return MappingProxyType({LARGEST: value})


PAPER: Mapping[str, Mapping[str, float]] = MappingProxyType(
    {
        "LAMBADA perplexity": _sizes(35.13, 15.60, 10.87, 8.63),
        "LAMBADA accuracy": _sizes(45.99, 55.48, 60.12, 63.24),
        "CBT-CN": _sizes(87.65, 92.35, 93.45, 93.30),
        "CBT-NE": _sizes(83.4, 87.1, 88.0, 89.05),
        "WikiText-2": _sizes(29.41, 22.76, 19.93, 18.34),
        "PTB": _sizes(65.85, 47.33, 40.31, 35.76),
        "enwik8": _sizes(1.16, 1.01, 0.97, 0.93),
        "text8": _sizes(1.17, 1.06, 1.02, 0.98),
        "WikiText-103": _sizes(37.50, 26.37, 22.05, 17.48),
        "1BW": _sizes(75.20, 55.72, 44.575, 42.16),
        # Beyond Table 3 the text gives the largest model's figures.
        "Winograd": _largest(70.70),
        "CoQA F1": _largest(55.0),
        "Natural Questions exact match": _largest(4.1),
        "Natural Questions, most confident 1 %": _largest(63.1),
        "CNN/Daily Mail ROUGE-1": _largest(29.34),
        "CNN/Daily Mail ROUGE-2": _largest(8.27),
        "CNN/Daily Mail ROUGE-L": _largest(26.58),
        "CNN/Daily Mail ROUGE mean": _largest(21.40),
        "CNN/Daily Mail without a hint, ROUGE-1": _largest(21.58),
        "CNN/Daily Mail without a hint, ROUGE-2": _largest(4.03),
        "CNN/Daily Mail without a hint, ROUGE-L": _largest(19.47),
        "CNN/Daily Mail without a hint, ROUGE mean": _largest(15.03),
        "CNN/Daily Mail random-3, ROUGE-1": _every(28.78),
        "CNN/Daily Mail random-3, ROUGE-2": _every(8.63),
        "CNN/Daily Mail random-3, ROUGE-L": _every(25.52),
        "CNN/Daily Mail random-3, ROUGE mean": _every(20.98),
        "CNN/Daily Mail lead-3, ROUGE-1": _every(40.38),
        "CNN/Daily Mail lead-3, ROUGE-2": _every(17.66),
        "CNN/Daily Mail lead-3, ROUGE-L": _every(36.62),
        "CNN/Daily Mail lead-3, ROUGE mean": _every(31.55),
        "WMT14 En-Fr BLEU": _largest(5.0),
        "WMT14 Fr-En BLEU": _largest(11.5),
    }
)


@dataclass(frozen=True, slots=True)
class Reported:
    """What somebody got with lm-evaluation-harness: the size's name in the paper, the figure, and where it stands."""

    size: str
    value: float
    source: str


# By (task, metric), metrics as `rows.py` names them.
HARNESS: Mapping[tuple[str, str], tuple[Reported, ...]] = MappingProxyType(
    {
        ("lambada_openai", "perplexity"): (
            Reported("117M", 40.0554, "EleutherAI/lm-evaluation-harness#2159"),
            Reported("1542M", 10.63, "EleutherAI/lm-evaluation-harness#911"),
        ),
        ("lambada_openai", "accuracy %"): (Reported("117M", 32.56, "EleutherAI/lm-evaluation-harness#2159"),),
        ("wikitext", "perplexity"): (Reported("117M", 37.37, "huggingface/transformers#13761"),),
    }
)


def nearest(parameters: int) -> str:
    """The paper's size that is nearest in parameters, by their ratio."""
    return min(PARAMETERS, key=lambda size: abs(math.log(PARAMETERS[size] / max(1, parameters))))
