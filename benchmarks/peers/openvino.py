"""OpenVINO as a worker (`protocol.py`).

One text goes through its runtime, many through openvino-genai, which batches continuously.
"""

from pathlib import Path
from typing import Any

import numpy as np
import openvino

from benchmarks.peers.protocol import END, memory, serve

# The widths whose arithmetic is narrower than the weights in the file; the others take what is fastest here.
_PRECISION = {"f32": "f32", "bf16": "bf16"}


class OpenVINO:
    def prepare(self, model: str, folder: str, width: str) -> None:
        from optimum.exporters.openvino import main_export

        main_export(model, folder, task="text-generation-with-past", convert_tokenizer=False)
        if width in _PRECISION:
            return
        import nncf

        file = Path(folder) / "openvino_model.xml"
        network = openvino.Core().read_model(file)
        if width == "int8 weights":
            network = nncf.compress_weights(network, mode=nncf.CompressWeightsMode.INT8_ASYM)
        else:
            mode = nncf.CompressWeightsMode.INT4_SYM
            network = nncf.compress_weights(network, mode=mode, group_size=32, ratio=1.0)
        # The file that is read is mapped, so the new one takes its place afterwards.
        openvino.save_model(network, file.with_name("narrow.xml"), compress_to_fp16=False)
        del network
        for suffix in (".xml", ".bin"):
            file.with_name("narrow.xml").with_suffix(suffix).replace(file.with_suffix(suffix))

    def load(self, model: str, folder: str, width: str, threads: int) -> dict[str, Any]:
        self.folder = Path(folder)
        self.properties = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
        if width in _PRECISION:
            self.properties["INFERENCE_PRECISION_HINT"] = _PRECISION[width]
        self.requests: dict[bool, Any] = {}
        self.pipeline: Any = None
        self._request(False)
        return {"version": openvino.__version__.split("-")[0]}

    def decode(self, prompts: list[list[int]], tokens: int) -> list[list[int]]:
        request = self._request(False)
        request.reset_state()
        rows = len(prompts)
        ids, start, answers = np.array(prompts, dtype=np.int64), 0, []
        for _ in range(tokens):
            logits = self._read(request, ids, start)[:, -1].copy()
            logits[:, END] = -np.inf
            start += ids.shape[1]
            ids = logits.argmax(axis=1).reshape(rows, 1)
            answers.append(ids[:, 0])
        return np.stack(answers, axis=1).tolist()

    def prefill(self, ids: list[int], every: bool) -> np.ndarray:
        request = self._request(every)
        request.reset_state()
        return self._read(request, np.array([ids], dtype=np.int64), 0)[0, -1]

    def streams(self, prompts: list[list[int]], tokens: list[int], slots: int) -> list[list[int]]:
        import openvino_genai as genai

        if self.pipeline is None:
            scheduler = genai.SchedulerConfig()
            scheduler.max_num_seqs = slots
            scheduler.dynamic_split_fuse = True
            scheduler.enable_prefix_caching = False
            scheduler.cache_size = 2
            self.pipeline = genai.ContinuousBatchingPipeline(str(self.folder), scheduler, "CPU", self.properties)
        settings = []
        for wanted in tokens:
            config = genai.GenerationConfig()
            config.max_new_tokens = config.min_new_tokens = wanted
            config.ignore_eos = True
            config.do_sample = False
            settings.append(config)
        rows = [openvino.Tensor(np.array([prompt], dtype=np.int64)) for prompt in prompts]
        results = self.pipeline.generate(rows, settings)
        return [list(result.m_generation_ids[0]) for result in results]

    def memory(self) -> dict[str, int]:
        return memory()

    def _read(self, request: Any, ids: np.ndarray, start: int) -> np.ndarray:
        rows, length = ids.shape
        position = np.broadcast_to(np.arange(start, start + length, dtype=np.int64), (rows, length))
        request.infer(
            {
                "input_ids": ids,
                "attention_mask": np.ones((rows, start + length), dtype=np.int64),
                "position_ids": np.ascontiguousarray(position),
                "beam_idx": np.arange(rows, dtype=np.int32),
            }
        )
        return request.get_tensor("logits").data

    def _request(self, every: bool) -> Any:
        """The compiled network; the one that gives every position's logits is made when it is first asked for."""
        if every not in self.requests:
            network = openvino.Core().read_model(self.folder / "openvino_model.xml")
            if not every:
                _keep_last(network)
            compiled = openvino.Core().compile_model(network, "CPU", self.properties)
            self.requests[every] = compiled.create_infer_request()
        return self.requests[every]


def _keep_last(network: Any) -> None:
    """Puts a slice of the last position in front of the head."""
    from openvino import opset13

    head = network.output("logits").get_node().input_value(0).get_node()
    while head.get_type_name() != "MatMul":
        head = head.input_value(0).get_node()
    one = [np.array([value], dtype=np.int64) for value in (-1, 2**31, 1, 1)]
    last = opset13.slice(head.input_value(0), *one)
    head.input(0).replace_source_output(last.output(0))
    network.validate_nodes_and_infer_types()


if __name__ == "__main__":
    serve(OpenVINO())
