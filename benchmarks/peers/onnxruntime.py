"""ONNX Runtime as a worker (`protocol.py`): transformers' network with cache tensors, exported by PyTorch.

Two graphs are written: one gives every position's logits, the other the last one's.
"""

import os
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from benchmarks.peers.batches import by_length, left_padded
from benchmarks.peers.protocol import END, memory, serve

GRAPHS = {True: "every.onnx", False: "last.onnx"}


class OnnxRuntime:
    def prepare(self, model: str, folder: str, width: str) -> None:
        from benchmarks.peers.onnx_file import export

        Path(folder).mkdir(parents=True, exist_ok=True)
        for every, name in GRAPHS.items():
            export(Path(model), Path(folder) / name, every=every, int8=width != "fp32")

    def load(self, model: str, folder: str, width: str, threads: int) -> dict[str, Any]:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        if os.environ.get("OMP_WAIT_POLICY") == "passive":
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self.folder, self.options = Path(folder), options
        self.sessions: dict[bool, onnxruntime.InferenceSession] = {}
        self._session(False)
        return {"version": onnxruntime.__version__}

    def decode(self, prompts: list[list[int]], tokens: int) -> list[list[int]]:
        ids, mask = (np.array(each, dtype=np.int64) for each in left_padded(prompts))
        session = self._session(False)
        binding = session.io_binding()
        past_names = [each.name for each in session.get_inputs() if each.name.startswith("past")]
        _, heads, _, width = session.get_inputs()[-1].shape
        empty = np.zeros((len(prompts), heads, 0, width), dtype=np.float32)
        past = [onnxruntime.OrtValue.ortvalue_from_numpy(empty)] * len(past_names)
        position = np.maximum(mask.cumsum(axis=1) - 1, 0)
        answers = []
        for step in range(tokens):
            binding.clear_binding_inputs()
            binding.clear_binding_outputs()
            binding.bind_cpu_input("ids", ids)
            binding.bind_cpu_input("mask", mask)
            binding.bind_cpu_input("position", position)
            for name, value in zip(past_names, past, strict=True):
                binding.bind_ortvalue_input(name, value)
            for output in session.get_outputs():
                binding.bind_output(output.name)
            session.run_with_iobinding(binding)
            logits, *past = binding.get_outputs()
            last = logits.numpy()[:, -1]
            last[:, END] = -np.inf
            ids = last.argmax(axis=1)[:, None]
            answers.append(ids[:, 0])
            if step + 1 < tokens:
                mask = np.concatenate([mask, np.ones((len(prompts), 1), dtype=np.int64)], axis=1)
                position = position[:, -1:] + 1
        return np.stack(answers, axis=1).tolist()

    def prefill(self, ids: list[int], every: bool) -> np.ndarray:
        session = self._session(every)
        row = np.array([ids], dtype=np.int64)
        feeds = {"ids": row, "mask": np.ones_like(row), "position": np.arange(len(ids), dtype=np.int64)[None]}
        for each in session.get_inputs():
            if each.name.startswith("past"):
                feeds[each.name] = np.zeros((1, each.shape[1], 0, each.shape[3]), dtype=np.float32)
        return session.run(["logits"], feeds)[0][0, -1]

    def streams(self, prompts: list[list[int]], tokens: list[int], slots: int) -> list[list[int]]:
        return by_length(self.decode, prompts, tokens, slots)

    def memory(self) -> dict[str, int]:
        return memory()

    def _session(self, every: bool) -> onnxruntime.InferenceSession:
        """The graph that gives every position's logits is loaded when it is first asked for."""
        if every not in self.sessions:
            self.sessions[every] = onnxruntime.InferenceSession(
                str(self.folder / GRAPHS[every]), self.options, providers=["CPUExecutionProvider"]
            )
        return self.sessions[every]


if __name__ == "__main__":
    serve(OnnxRuntime())
