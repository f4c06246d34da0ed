"""Floating-point operations of training: the formula that model-FLOP utilisation is stated by, and what a pass does.

The formula is PaLM's (appendix B of its paper) as nanoGPT has it, so that figures can be laid side by side. Beside it
stands the count of the products that our pass computes. A multiplication with its addition counts as two. Nothing here
knows a device or a clock.
"""

from dataclasses import dataclass

from gpt2.config import GPT2Config
from gpt2.training.words import counted, figure

FORMULA = "6 N + 12 L T C"


def counted_parameters(config: GPT2Config) -> int:
    """N of the formula: all parameters but the positions, which are looked up and multiply nothing.

    The token embedding counts, once: it is the head. Norms and biases count too, as nanoGPT has it (0.1 % of 124M).
    """
    return config.parameters - config.n_positions * config.n_embd


def block_matrices(config: GPT2Config) -> int:
    """Parameters in the matrices of all blocks: what multiplies, and what Muon moves."""
    return config.n_layer * (4 * config.n_embd**2 + 2 * config.n_embd * config.mlp_width)


def flops_per_token(config: GPT2Config, window: int) -> int:
    """FLOPs of one training token, forward and backward, by the formula; `window` is T, the tokens in a row.

    6 N: two operations for each parameter forward and four backward. 12 L T C: the same three for the products of
    queries with keys and of weights with values, all T x T of them, although half are masked.
    """
    return 6 * counted_parameters(config) + 12 * config.n_layer * window * config.n_embd


def explain(config: GPT2Config, window: int) -> str:
    """The formula with its numbers, for people: what a token costs, and by which count."""
    return (
        f"{figure(flops_per_token(config, window) / 1e9)} GFLOP a token by {FORMULA}: N = "
        f"{counted_parameters(config):,} (parameters without positions), L = {counted(config.n_layer, 'block')}, "
        f"T = {counted(window, 'token')}, C = width {config.n_embd:,}"
    )


@dataclass(frozen=True, slots=True)
class Products:
    """FLOPs of a token's matrix products, in the pass's forward and backward part."""

    forward: int
    backward: int

    @property
    def total(self) -> int:
        """Both ways."""
        return self.forward + self.backward


def products(config: GPT2Config, window: int, padding: int = 64) -> Products:
    """FLOPs of the matrix products that a training token takes in our pass; element-wise work is left out.

    padding: what the head's rows are a multiple of. The loss takes the head's gradients with its logits, so all three
    products of the head are in the forward part. Attention's way back computes the scores once more: five products of
    T x T for the two before. Masked ones count, although good kernels skip them.
    """
    width, layers = config.n_embd, config.n_layer
    matrices = 2 * block_matrices(config)
    head = 2 * -(-config.vocab_size // padding) * padding * width
    attention = 2 * layers * window * width  # one product of T x T, for one token
    return Products(forward=matrices + 3 * head + 2 * attention, backward=2 * matrices + 5 * attention)
