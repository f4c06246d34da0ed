"""Hugging Face transformers, eager, as a worker (`protocol.py`)."""

from typing import Any

import torch
from transformers import AutoModelForCausalLM, __version__

from benchmarks.peers.batches import by_length, left_padded
from benchmarks.peers.protocol import END, memory, serve


class Transformers:
    cache: str | None = None

    def prepare(self, model: str, folder: str, width: str) -> None:
        pass

    def load(self, model: str, folder: str, width: str, threads: int) -> dict[str, Any]:
        torch.set_num_threads(threads)
        self.model = AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, width)).eval()
        return {"version": __version__}

    @torch.inference_mode()
    def decode(self, prompts: list[list[int]], tokens: int) -> list[list[int]]:
        ids, mask = (torch.tensor(each) for each in left_padded(prompts))
        out = self.model.generate(
            ids,
            attention_mask=mask,
            max_new_tokens=tokens,
            min_new_tokens=tokens,
            do_sample=False,
            pad_token_id=END,
            cache_implementation=self.cache,
        )
        return out[:, ids.shape[1] :].tolist()

    @torch.inference_mode()
    def prefill(self, ids: list[int], every: bool) -> torch.Tensor:
        logits = self.model(torch.tensor([ids]), logits_to_keep=0 if every else 1).logits
        return logits[0, -1].float()

    def streams(self, prompts: list[list[int]], tokens: list[int], slots: int) -> list[list[int]]:
        """Batches of texts that end at about the same time; each runs until its longest has ended."""
        return by_length(self.decode, prompts, tokens, slots)

    def memory(self) -> dict[str, int]:
        return memory()


if __name__ == "__main__":
    serve(Transformers())
