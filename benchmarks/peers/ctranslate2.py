"""CTranslate2 as a worker (`protocol.py`). It has no bfloat16 on most CPUs."""

from pathlib import Path
from typing import Any

import ctranslate2
import numpy as np

from benchmarks.peers.batches import by_length
from benchmarks.peers.protocol import memory, serve


class CTranslate2:
    def prepare(self, model: str, folder: str, width: str) -> None:
        from ctranslate2.converters import TransformersConverter

        TransformersConverter(model).convert(folder, quantization=width, force=True)

    def load(self, model: str, folder: str, width: str, threads: int) -> dict[str, Any]:
        self.generator = ctranslate2.Generator(
            folder, device="cpu", compute_type=width, inter_threads=1, intra_threads=threads
        )
        import json

        self.words = json.loads((Path(folder) / "vocabulary.json").read_text(encoding="utf-8"))
        return {"version": ctranslate2.__version__}

    def decode(self, prompts: list[list[int]], tokens: int) -> list[list[int]]:
        results = self.generator.generate_batch(
            [[self.words[id] for id in prompt] for prompt in prompts],
            max_length=tokens,
            min_length=tokens,
            sampling_topk=1,
            include_prompt_in_result=False,
        )
        return [list(result.sequences_ids[0]) for result in results]

    def prefill(self, ids: list[int], every: bool) -> np.ndarray:
        if not every:
            # It has no call that returns the last logits alone; this one computes them and picks a token.
            self.decode([ids], 1)
            return np.zeros(0)
        return np.asarray(self.generator.forward_batch([ids]))[0, -1]

    def streams(self, prompts: list[list[int]], tokens: list[int], slots: int) -> list[list[int]]:
        return by_length(self.decode, prompts, tokens, slots)

    def memory(self) -> dict[str, int]:
        return memory()


if __name__ == "__main__":
    serve(CTranslate2())
