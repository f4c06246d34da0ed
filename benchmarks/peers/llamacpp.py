"""llama.cpp as a worker (`protocol.py`), through the C functions that llama-cpp-python passes on."""

import ctypes
import json
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np

from benchmarks.peers.protocol import END, memory, serve

WINDOW = 1024


class LlamaCpp:
    def prepare(self, model: str, folder: str, width: str) -> None:
        from benchmarks.peers.gguf_file import write_gguf

        plain = Path(folder) / "f32.gguf"
        plain.parent.mkdir(parents=True, exist_ok=True)
        write_gguf(Path(model), plain)
        if width == "f32":
            plain.rename(Path(folder) / "model.gguf")
            return
        kinds = {
            "bf16": llama_cpp.LLAMA_FTYPE_MOSTLY_BF16,
            "q8_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0,
            "q4_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0,
        }
        options = llama_cpp.llama_model_quantize_default_params()
        options.ftype = kinds[width]
        code = llama_cpp.llama_model_quantize(
            str(plain).encode(), str(Path(folder) / "model.gguf").encode(), ctypes.byref(options)
        )
        plain.unlink()
        if code:
            raise RuntimeError(f"llama_model_quantize returned {code}")

    def load(self, model: str, folder: str, width: str, threads: int) -> dict[str, Any]:
        from benchmarks.peers.gguf_file import bytes_per_token

        path = Path(folder) / "model.gguf"
        llama_cpp.llama_backend_init()
        self.model = llama_cpp.llama_model_load_from_file(str(path).encode(), llama_cpp.llama_model_default_params())
        if not self.model:
            raise RuntimeError(f"llama.cpp does not read {path}")
        self.vocabulary = json.loads((Path(model) / "config.json").read_text(encoding="utf-8"))["vocab_size"]
        self.threads = threads
        self.context, self.slots = None, 0
        self._open(1)
        return {"version": llama_cpp.__version__, "bytes": bytes_per_token(path)}

    def decode(self, prompts: list[list[int]], tokens: int) -> list[list[int]]:
        return self.streams(prompts, [tokens] * len(prompts), len(prompts))

    def prefill(self, ids: list[int], every: bool) -> np.ndarray:
        self._open(1)
        self._clear()
        self._read([(0, ids, 0, len(ids) if every else 1)])
        return self._logits(len(ids) if every else 1)[-1].copy()

    def streams(self, prompts: list[list[int]], tokens: list[int], slots: int) -> list[list[int]]:
        """Continuous batching: a text that ends makes room for the next in the same step."""
        self._open(slots)
        self._clear()
        answers: list[list[int]] = [[] for _ in prompts]
        waiting = list(range(len(prompts)))[::-1]
        running: dict[int, int] = {}
        held = [0] * slots
        while waiting or running:
            feeds = [(slot, [answers[row][-1]], held[slot], 1) for slot, row in running.items()]
            for slot in range(slots):
                if slot not in running and waiting:
                    running[slot] = waiting.pop()
                    llama_cpp.llama_memory_seq_rm(llama_cpp.llama_get_memory(self.context), slot, -1, -1)
                    feeds.append((slot, prompts[running[slot]], 0, 1))
            self._read(feeds)
            logits = self._logits(len(feeds))
            logits[:, END] = -np.inf
            for (slot, ids, start, _), best in zip(feeds, logits.argmax(axis=1), strict=True):
                row = running[slot]
                held[slot] = start + len(ids)
                answers[row].append(int(best))
                if len(answers[row]) == tokens[row]:
                    del running[slot]
        return answers

    def memory(self) -> dict[str, int]:
        return memory()

    def _open(self, slots: int) -> None:
        if self.slots == slots:
            return
        if self.context:
            llama_cpp.llama_free(self.context)
        options = llama_cpp.llama_context_default_params()
        options.n_ctx = WINDOW * slots if slots == 1 else 512 * slots
        options.n_batch = options.n_ctx
        options.n_seq_max = slots
        options.n_threads = options.n_threads_batch = self.threads
        self.context = llama_cpp.llama_init_from_model(self.model, options)
        if not self.context:
            raise RuntimeError("llama.cpp makes no context")
        self.slots, self.room = slots, int(options.n_batch)
        self.batch = llama_cpp.llama_batch_init(self.room, 0, 1)

    def _clear(self) -> None:
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), True)

    def _read(self, feeds: list[tuple[int, list[int], int, int]]) -> None:
        """Reads (slot, ids, first position, for how many of the last ids logits are wanted)."""
        batch, n = self.batch, 0
        for slot, ids, start, wanted in feeds:
            for place, id in enumerate(ids):
                batch.token[n], batch.pos[n] = id, start + place
                batch.n_seq_id[n] = 1
                batch.seq_id[n][0] = slot
                batch.logits[n] = place >= len(ids) - wanted
                n += 1
        batch.n_tokens = n
        code = llama_cpp.llama_decode(self.context, batch)
        if code:
            raise RuntimeError(f"llama_decode returned {code}")

    def _logits(self, rows: int) -> np.ndarray:
        pointer = llama_cpp.llama_get_logits(self.context)
        return np.ctypeslib.as_array(pointer, (rows, self.vocabulary))


if __name__ == "__main__":
    serve(LlamaCpp())
