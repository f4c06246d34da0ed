"""This package as a worker (`protocol.py`), through what a user calls."""

from collections.abc import Sequence
from typing import Any

import torch

import gpt2
from benchmarks.peers.protocol import END, memory, serve

NEVER = {END: float("-inf")}


class Ours:
    def prepare(self, model: str, folder: str, width: str) -> None:
        pass

    def load(self, model: str, folder: str, width: str, threads: int) -> dict[str, Any]:
        torch.set_num_threads(threads)
        self.model = gpt2.load(model, dtype=width)
        self.runner: Any = None
        self.engine: Any = None
        return {"version": gpt2.__version__}

    def decode(self, prompts: list[list[int]], tokens: int) -> list[list[int]]:
        completions = gpt2.generate(self.model, prompts, max_tokens=tokens, temperature=0, logit_bias=NEVER)
        assert isinstance(completions, list)
        return [completion.ids for completion in completions]

    def prefill(self, ids: list[int], every: bool) -> torch.Tensor:
        from gpt2.runners.choose import runner
        from gpt2.runners.runner import Feed

        if self.runner is None:
            self.runner = runner(self.model, 1)
        self.runner.rewind(0, 0)
        return self.runner.read([Feed(0, ids, len(ids) if every else 1)])[-1]

    def streams(self, prompts: list[list[int]], tokens: list[int], slots: int) -> list[list[int]]:
        from gpt2.generation import Engine, GenerationOptions, SamplingOptions

        if self.engine is None:
            self.engine = Engine(self.model, slots=slots)
        greedy = SamplingOptions(temperature=0, logit_bias=NEVER)
        requests = [
            self.engine.submit(prompt, GenerationOptions(max_tokens=wanted, sampling=greedy))
            for prompt, wanted in zip(prompts, tokens, strict=True)
        ]
        while self.engine.step():
            pass
        return [request.output for request in requests]

    def calls(self, prompt: list[int], tokens: int, count: int, every: int) -> list[int]:
        """Resident bytes after each `every` of `count` calls."""
        readings = []
        for call in range(count):
            # Prompts differ, so that nothing is answered from what was read before.
            self.decode([[*prompt, call % 50000]], tokens)
            if (call + 1) % every == 0:
                readings.append(memory()["now"])
        return readings

    def limits(self, size: int, dtypes: Sequence[str], threads: int) -> dict[str, float]:
        """The machine's rates: bytes/s of reading a buffer of `size`, and operations/s of matrix products."""
        from gpt2.runners.machine import matrix_rate, read_rate

        rates = {dtype: matrix_rate(dtype, threads) for dtype in dtypes}
        return {"read": read_rate(size, threads), **rates}

    def memory(self) -> dict[str, int]:
        return memory()


if __name__ == "__main__":
    serve(Ours())
