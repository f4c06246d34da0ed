"""The noise of a draw, as a function of tensors: what `generation/sampling.py` adds to scores, made on any device.

Gumbel noise for (seed, number of the token, token id), from splitmix64's hash (Steele, Lea and Flood, "Fast
Splittable Pseudorandom Number Generators", 2014), twice. int64 stands for 64 bits and wraps around.
"""

import torch
from torch import Tensor

STEP = 0x9E3779B97F4A7C15
FACTORS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
_MASK = 2**64 - 1


def mixed_seed(seed: int) -> int:
    """A seed's hash, as the int64 with the same 64 bits: what `gumbel_noise` takes."""
    x = seed & _MASK
    x = ((x ^ (x >> 30)) * FACTORS[0]) & _MASK
    x = ((x ^ (x >> 27)) * FACTORS[1]) & _MASK
    return _signed(x ^ (x >> 31))


def gumbel_noise(mixed_seeds_B: Tensor, numbers_B: Tensor, ids_BK: Tensor) -> Tensor:
    """Standard Gumbel noise (B, K), float64, from whole numbers (int64) that lie on one device."""
    key_B1 = _mixed(mixed_seeds_B + numbers_B * _signed(STEP))[:, None]
    bits_BK = _mixed(_mixed(key_B1 + (ids_BK + 1) * _signed(STEP)))
    # An odd multiple of 2^-53: uniform, never 0 and never 1.
    uniform_BK = (_shifted(bits_BK, 12).to(torch.float64) + 0.5) * 2.0**-52
    noise_BK: Tensor = -((-uniform_BK.log()).log())
    return noise_BK


def _mixed(x: Tensor) -> Tensor:
    x = (x ^ _shifted(x, 30)) * _signed(FACTORS[0])
    x = (x ^ _shifted(x, 27)) * _signed(FACTORS[1])
    return x ^ _shifted(x, 31)


def _shifted(x: Tensor, places: int) -> Tensor:
    """A shift to the right that fills with zeros; int64's own copies the sign."""
    shifted: Tensor = (x >> places) & ((1 << (64 - places)) - 1)
    return shifted


def _signed(x: int) -> int:
    """The int64 with the same 64 bits."""
    return x - 2**64 if x >= 2**63 else x
