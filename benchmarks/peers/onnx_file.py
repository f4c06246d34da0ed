"""Writes a Hugging Face GPT-2 directory as ONNX with cache tensors, in float32 or with dynamically quantised int8."""

import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM
from transformers.cache_utils import DynamicCache


class Step(nn.Module):
    """ids (B, T), mask (B, S + T), position (B, T), keys and values of S tokens by layer -> logits, keys, values."""

    def __init__(self, network: nn.Module, every: bool) -> None:
        super().__init__()
        self.body, self.every = network.transformer, every
        # A matrix of its own, (C, V): the embedding transposed in the graph would be widened again at every step.
        self.head = nn.Parameter(network.transformer.wte.weight.detach().T.contiguous())

    def forward(self, ids: Tensor, mask: Tensor, position: Tensor, past: list[Tensor]) -> tuple[Tensor, ...]:
        cache = DynamicCache(zip(past[::2], past[1::2], strict=True))
        out = self.body(ids, attention_mask=mask, position_ids=position, past_key_values=cache, use_cache=True)
        hidden = out.last_hidden_state if self.every else out.last_hidden_state[:, -1:]
        flat = [tensor for layer in out.past_key_values.layers for tensor in (layer.keys, layer.values)]
        return (hidden @ self.head, *flat)


def export(model: Path, path: Path, *, every: bool, int8: bool) -> None:
    """Writes the graph to `path`, its weights beside it."""
    network = AutoModelForCausalLM.from_pretrained(model).eval()
    config = network.config
    rows, new, read = 2, 3, 4
    # Tensors of their own: one and the same in several places would be exported as one input.
    held_shape = (rows, config.n_head, read, config.n_embd // config.n_head)
    past = [torch.zeros(held_shape) for _ in range(2 * config.n_layer)]
    batch, length, held = (torch.export.Dim(name, max=high) for name, high in (("B", 64), ("T", 1024), ("S", 1023)))
    names = [f"{part}.{layer}" for layer in range(config.n_layer) for part in ("key", "value")]
    program = torch.onnx.export(
        Step(network, every),
        (
            torch.zeros(rows, new, dtype=torch.int64),
            torch.ones(rows, read + new, dtype=torch.int64),
            torch.zeros(rows, new, dtype=torch.int64),
            past,
        ),
        dynamo=True,
        input_names=["ids", "mask", "position", *(f"past.{name}" for name in names)],
        output_names=["logits", *(f"present.{name}" for name in names)],
        dynamic_shapes=(
            {0: batch, 1: length},
            {0: batch, 1: torch.export.Dim.AUTO},
            {0: batch, 1: length},
            [{0: batch, 2: held}] * len(past),
        ),
    )
    assert program is not None
    if not int8:
        program.save(str(path), external_data=True)
        return
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        plain = Path(folder) / "plain.onnx"
        program.save(str(plain), external_data=True)
        quantize_dynamic(str(plain), str(path), weight_type=QuantType.QInt8, per_channel=True)
