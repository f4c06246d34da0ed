"""What bfloat16, int8 and int4 weights cost in perplexity, on text files: one JSON line for each width and file.

python -m benchmarks.perplexity --text wiki.test.raw valid.jsonl.zst [--model bookworm] [--tokens N]

The arithmetic between the weights is float32, so the figures are those of the weights alone. Text files are one
document each; of `.jsonl` and `.jsonl.zst` files every line is one (its field `text`). Documents are joined by end of
text, which is read and not scored. Windows do not overlap.
"""

import argparse
import json
import math
import subprocess
from pathlib import Path

import numpy as np
import torch

from gpt2.checkpoint import LanguageModel, load
from gpt2.evaluation.perplexity import Protocol, token_nats
from gpt2.model import GPT2
from gpt2.runners.calibrate import rounded
from gpt2.training.data import to_ids


def documents(path: Path) -> list[str]:
    if ".jsonl" not in path.suffixes:
        return [path.read_text(encoding="utf-8")]
    data = path.read_bytes()
    if path.suffix == ".zst":
        data = subprocess.run(["zstd", "-dc", path], check=True, capture_output=True).stdout
    return [json.loads(line)["text"] for line in data.splitlines()]


def narrowed(network: GPT2, dtype: str) -> GPT2:
    """A float32 network with the weights that a model of this dtype computes with."""
    if dtype in ("int8", "int4"):
        return rounded(network, dtype)
    made = GPT2(network.config)
    made.load_state_dict({name: tensor.bfloat16().float() for name, tensor in network.state_dict().items()})
    return made.requires_grad_(False).eval()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="bookworm")
    parser.add_argument("--text", type=Path, nargs="+", required=True)
    parser.add_argument("--tokens", type=int, help="of each file, the first so many tokens (default: all)")
    options = parser.parse_args()

    model = load(options.model)
    texts = {}
    for path in options.text:
        texts[path.name] = to_ids(documents(path), model.tokenizer)[: options.tokens]
    base: dict[str, float] = {}
    for dtype in ("float32", "bfloat16", "int8", "int4"):
        narrow = LanguageModel(narrowed(model.network, dtype), model.tokenizer)
        for name, ids in texts.items():
            [nats] = token_nats(narrow, [ids], Protocol(stride=model.config.n_positions))
            nats = nats[ids[1:] != model.tokenizer.end_of_text]
            perplexity = math.exp(np.mean(nats))
            base.setdefault(name, perplexity)
            line = {
                "model": model.source,
                "text": name,
                "dtype": dtype,
                "perplexity": round(perplexity, 3),
                "cost_percent": round(100 * (perplexity / base[name] - 1), 3),
                "tokens": len(nats),
                "protocol": f"windows of {model.config.n_positions} without overlap",
                "threads": torch.get_num_threads(),
            }
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
