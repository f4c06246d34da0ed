"""Puts a run's checkpoint into the package as a shipped model, in bfloat16.

    python scripts/ship_model.py runs/bookworm gpt2/models/bookworm

The folder's README.md (the model card) is written by hand and kept.
"""

import sys
from pathlib import Path

import torch

from gpt2.checkpoint import load, write_directory


def main() -> None:
    run, out = sys.argv[1:]
    card = Path(out) / "README.md"
    text = card.read_bytes() if card.is_file() else None
    model = load(run)
    write_directory(model.network, model.tokenizer, Path(out), dtype=torch.bfloat16)
    if text is not None:
        card.write_bytes(text)
    size = sum(file.stat().st_size for file in Path(out).iterdir())
    print(f"{out}: {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
