"""How fast a runner is: tokens a second read at once and one by one, with the clock of the wall.

It times what it is given and compares nothing; the limits of the machine are in `machine.py`.
"""

import statistics
import time
from dataclasses import dataclass

import torch
from torch import Tensor

from gpt2.config import GPT2Config
from gpt2.errors import BadOption
from gpt2.runners.runner import Feed, Runner


@dataclass(frozen=True, slots=True)
class Speed:
    """Medians of several runs, in tokens a second.

    prefill: a prompt read in one piece, with the logits of its last token. decode: one token after another, each the
    likeliest after those before it; choosing it counts.
    """

    prefill: float
    decode: float


def speed(runner: Runner, prompt: int = 32, tokens: int = 128, repeats: int = 3) -> Speed:
    """Times one text of `prompt` + `tokens` tokens in slot 0, which is empty afterwards, after one run to warm up.

    Raises BadOption if the text does not fit in the window.
    """
    window = runner.config.n_positions
    if prompt + tokens > window:
        raise BadOption(
            f"A prompt of {prompt} tokens and {tokens} new ones do not fit in this model's window of {window}."
        )
    ids = some_ids(runner.config, prompt)
    _run(runner, ids, min(tokens, 4))
    times = [_run(runner, ids, tokens) for _ in range(repeats)]
    return Speed(
        prefill=prompt / statistics.median(prefill for prefill, _ in times),
        decode=tokens / statistics.median(decode for _, decode in times),
    )


def some_ids(config: GPT2Config, n: int) -> list[int]:
    """`n` token ids that look random and are always the same."""
    state, ids = 1, []
    for _ in range(n):
        # Knuth's linear congruential generator (MMIX); its upper bits are the good ones.
        state = (state * 6364136223846793005 + 1442695040888963407) % 2**64
        ids.append((state >> 33) % config.vocab_size)
    return ids


def weight_bytes(config: GPT2Config, dtype: str) -> int:
    """Bytes of weights that one decode step reads: all of them but the position table, at this width.

    int8 and int4 matrices come with their scales, the embedding (which is the head) has 8 bits in both, and norms and
    biases 32.
    """
    width, inner = config.n_embd, config.mlp_width
    columns = 3 * width + width + inner + width
    matrices = config.n_layer * (width * 4 * width + 2 * width * inner)
    head = config.vocab_size * width
    vectors = config.n_layer * (columns + 4 * width) + 2 * width
    match dtype:
        case "float32":
            return 4 * (matrices + head + vectors)
        case "bfloat16":
            return 2 * (matrices + head + vectors)
        case "int8":
            return matrices + 4 * config.n_layer * columns + head + 4 * config.vocab_size + 4 * vectors
        case "int4":
            # 4 bits a weight, and for 32 of them a scale of 16.
            return matrices // 2 + matrices // 16 + head + 4 * config.vocab_size + 4 * vectors
    raise BadOption(f"dtype is {dtype!r}; a model runs in float32, bfloat16, int8 or int4.")


@torch.inference_mode()
def _run(runner: Runner, ids: list[int], tokens: int) -> tuple[float, float]:
    """Seconds for the prompt, and for the tokens behind it."""
    runner.rewind(0, 0)
    start = time.perf_counter()
    next_id = _likeliest(runner.read([Feed(0, ids)]))
    read = time.perf_counter()
    for _ in range(tokens):
        next_id = _likeliest(runner.read([Feed(0, [next_id])]))
    end = time.perf_counter()
    runner.rewind(0, 0)
    return read - start, end - read


def _likeliest(logits_1V: Tensor) -> int:
    # Asking for the number waits for the device.
    return int(logits_1V[0].argmax())
