"""Hugging Face transformers with a static cache and torch.compile, as a worker (`protocol.py`)."""

from typing import Any

import torch

from benchmarks.peers.protocol import serve
from benchmarks.peers.transformers import Transformers


class Compiled(Transformers):
    cache = "static"

    def load(self, model: str, folder: str, width: str, threads: int) -> dict[str, Any]:
        import torch._inductor.config

        # What makes the compiled step as fast as it gets here: weights are constants, and may be repacked.
        torch._inductor.config.freezing = True
        answer = super().load(model, folder, width, threads)
        self.model.requires_grad_(False)
        self.whole = self.model.forward
        self.model.forward = torch.compile(self.whole, dynamic=False)
        return answer

    @torch.inference_mode()
    def prefill(self, ids: list[int], every: bool) -> torch.Tensor:
        logits = self.model.forward(torch.tensor([ids]), logits_to_keep=0 if every else 1, use_cache=False).logits
        return logits[0, -1].float()

    def streams(self, prompts: list[list[int]], tokens: list[int], slots: int) -> list[list[int]]:
        raise NotImplementedError("every shape of a ragged batch would be compiled anew")


if __name__ == "__main__":
    serve(Compiled())
