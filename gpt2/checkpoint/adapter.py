"""LoRA adapters in peft's layout: adapter_config.json and adapter_model.safetensors beside a base model's name.

An adapter is read, checked and added to its base's weights; what comes out is a plain GPT-2 like any other. Nothing
here trains. peft's kinds that are no sum of weights (DoRA, prompts, vectors) are refused by name.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpt2.errors import BadCheckpoint, Notice
from gpt2.files import new_directory
from gpt2.tokenizer import write_tokenizer

if TYPE_CHECKING:
    from torch import Tensor

    from gpt2.checkpoint.weights import Weights
    from gpt2.model import GPT2
    from gpt2.tokenizer import Tokenizer

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
_BASE = "gpt2_base"

_KEY = re.compile(r"(?:base_model\.model\.)?(?:transformer\.)?(.+)\.lora_([AB])(?:\.default)?\.weight")


@dataclass(frozen=True, slots=True)
class Adapter:
    """An adapter as its files have it. pairs: lora_A (rank, in) and lora_B (out, rank) by our name of the projection
    (h.0.attn.c_attn), float32; scales: what each product is multiplied with; base: the base's name or path ("": none
    is named); mark: of the base's weights that it was made for ("": not known)."""

    config: Mapping[str, Any]
    pairs: Mapping[str, tuple[Tensor, Tensor]]
    scales: Mapping[str, float]
    source: str
    mark: str = ""

    @classmethod
    def made(
        cls, pairs: Mapping[str, tuple[Tensor, Tensor]], rank: int, alpha: float, targets: Sequence[str], base: str
    ) -> Adapter:
        """An adapter that was trained here."""
        config = {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": base,
            "r": rank,
            "lora_alpha": alpha,
            "lora_dropout": 0.0,
            "target_modules": sorted(targets),
            # GPT-2's matrices lie (in, out).
            "fan_in_fan_out": True,
            "bias": "none",
            "inference_mode": True,
        }
        return cls(config, dict(pairs), dict.fromkeys(pairs, alpha / rank), "memory")

    @property
    def base(self) -> str:
        """The base's name or path; empty if the files name none."""
        return str(self.config.get("base_model_name_or_path") or "")

    def parts(self, name: str) -> tuple[Tensor, Tensor]:
        """lora_A and lora_B of a projection. Raises BadCheckpoint if there are none."""
        if name not in self.pairs:
            raise BadCheckpoint(f"{self.source} has no adapter for {name}.")
        return self.pairs[name]

    def added(self, weights: Weights) -> Weights:
        """The base's weights with the adapter added, computed in float32. Raises BadCheckpoint where they do not fit
        each other; warns (Notice) about a base that is not the one that the adapter was made for."""
        from gpt2.checkpoint.weights import Stored

        base = {name: tensor for name, tensor in weights.read() if name.removesuffix(".weight") in self.pairs}
        if self.mark and self.mark != base_mark(base):
            warnings.warn(
                f"{self.source} was made for other weights than these; answers may be poor.", Notice, stacklevel=2
            )
        changed = {}
        for name, (lora_a, lora_b) in self.pairs.items():
            tensor = base.get(f"{name}.weight")
            if tensor is None:
                raise BadCheckpoint(f"{self.source} adapts {name}, which the base model does not have.")
            if (lora_a.shape[1], lora_b.shape[0]) != tuple(tensor.shape):
                raise BadCheckpoint(
                    f"{self.source}: the adapter of {name} is for a matrix of shape "
                    f"{(lora_a.shape[1], lora_b.shape[0])}, and the base's is {tuple(tensor.shape)}."
                )
            delta = (lora_b @ lora_a).t() * self.scales[name]
            changed[f"{name}.weight"] = Stored(Path(self.source), name, tensor.float() + delta)
        return weights.changed(changed)


def is_adapter(path: Path) -> bool:
    """Whether a folder holds an adapter and no model of its own."""
    return (path / CONFIG).is_file() and not (path / "config.json").is_file()


def read_adapter(path: Path) -> Adapter:
    """The adapter in a folder. Raises BadCheckpoint for one that is damaged or of a kind that is not read here."""
    import torch
    from safetensors import SafetensorError, safe_open

    config = _config(path / CONFIG)
    file = path / WEIGHTS
    if not file.is_file():
        raise BadCheckpoint(f"{path} has no {WEIGHTS}; an adapter is read from safetensors alone.")
    halves: dict[str, dict[str, Tensor]] = {}
    try:
        with safe_open(file, framework="pt") as opened:
            mark = str((opened.metadata() or {}).get(_BASE, ""))
            for key in opened.keys():  # noqa: SIM118 (it is no dictionary)
                found = _KEY.fullmatch(key)
                if found is None:
                    raise BadCheckpoint(f"{file}: {key} is no part of a LoRA adapter on GPT-2's matrices.")
                tensor = opened.get_tensor(key).to(torch.float32, copy=True)
                if tensor.ndim != 2 or not bool(torch.isfinite(tensor).all()):
                    raise BadCheckpoint(f"{file}: {key} is no finite matrix; the adapter is damaged.")
                halves.setdefault(found[1], {})[found[2]] = tensor
    except (SafetensorError, OSError) as error:
        raise BadCheckpoint(f"{file} is no readable safetensors file ({error}).") from None
    pairs = {}
    for name, both in sorted(halves.items()):
        if len(both) != 2 or both["A"].shape[0] != both["B"].shape[1]:
            raise BadCheckpoint(f"{file}: lora_A and lora_B of {name} do not belong together.")
        pairs[name] = (both["A"], both["B"])
    if not pairs:
        raise BadCheckpoint(f"{file} holds no tensors.")
    return Adapter(config, pairs, {name: _scale(config, name) for name in pairs}, str(path), mark)


def _config(file: Path) -> dict[str, Any]:
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadCheckpoint(f"{file} cannot be read as JSON ({error}).") from None
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        kind = config.get("peft_type") if isinstance(config, dict) else None
        raise BadCheckpoint(f"{file} describes an adapter of the kind {kind!r}; LORA is read here.")
    for key in ("use_dora", "modules_to_save", "layer_replication", "lora_bias", "trainable_token_indices"):
        if config.get(key):
            raise BadCheckpoint(
                f"{file} sets {key} = {config[key]!r}, which is not read here; merge it with peft first."
            )
    if config.get("bias", "none") != "none":
        raise BadCheckpoint(f"{file} sets bias = {config['bias']!r}, which is not read here; merge it by peft first.")
    return config


def _scale(config: Mapping[str, Any], name: str) -> float:
    """alpha / rank of a projection, by peft's rules."""
    rank = _by_pattern(config.get("rank_pattern"), name, config.get("r", 8))
    alpha = _by_pattern(config.get("alpha_pattern"), name, config.get("lora_alpha", 8))
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _by_pattern(patterns: Any, name: str, usual: Any) -> float:
    for pattern, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", f"transformer.{name}"):
            return float(value)
    return float(usual)


def base_mark(tensors: Mapping[str, Tensor]) -> str:
    """Marks a base by the first rows of the matrices that are adapted: whoever trains them changes those."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(name.encode() + tensor.detach()[0].float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def write_adapter(
    adapter: Adapter, network: GPT2, tokenizer: Tokenizer, path: Path, beside: Callable[[Path], None]
) -> None:
    """Writes a directory with the adapter and the tokenizer, whole or not at all; `beside` puts more into it.

    network: the one with the adapter in it, whose base the file marks.
    """
    from safetensors.torch import save_file

    state = network.state_dict()
    base = {f"{name}.weight": state[f"{name}.base.weight"] for name in adapter.pairs}
    tensors = {
        f"base_model.model.transformer.{name}.lora_{half}.weight": tensor.detach().cpu().contiguous()
        for name, pair in adapter.pairs.items()
        for half, tensor in zip("AB", pair, strict=True)
    }
    with new_directory(Path(path).absolute()) as folder:
        text = json.dumps(dict(adapter.config), indent=2, sort_keys=True) + "\n"
        (folder / CONFIG).write_text(text, encoding="utf-8")
        # One entry: of several the library writes down the order of its hash table, which is another each time.
        save_file(tensors, folder / WEIGHTS, metadata={_BASE: base_mark(base)})
        write_tokenizer(tokenizer, folder, model_max_length=network.config.n_positions)
        beside(folder)
