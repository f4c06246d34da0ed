"""Writes a Hugging Face GPT-2 directory as float32 GGUF, for llama.cpp; it quantises from there itself."""

import json
from pathlib import Path

import numpy as np
from gguf import GGUFReader, GGUFWriter
from safetensors import safe_open

_NAMES = {
    "wte.weight": "token_embd.weight",
    "wpe.weight": "position_embd.weight",
    "ln_f": "output_norm",
    "ln_1": "attn_norm",
    "ln_2": "ffn_norm",
    "attn.c_attn": "attn_qkv",
    "attn.c_proj": "attn_output",
    "mlp.c_fc": "ffn_up",
    "mlp.c_proj": "ffn_down",
}


def write_gguf(model: Path, path: Path) -> None:
    """Reads `config.json`, `model.safetensors` and `tokenizer.json`; writes one GGUF file."""
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    bpe = json.loads((model / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    writer = GGUFWriter(path, "gpt2")
    writer.add_block_count(config["n_layer"])
    writer.add_context_length(config["n_positions"])
    writer.add_embedding_length(config["n_embd"])
    writer.add_feed_forward_length(config.get("n_inner") or 4 * config["n_embd"])
    writer.add_head_count(config["n_head"])
    writer.add_layer_norm_eps(config["layer_norm_epsilon"])
    words = dict.fromkeys(range(config["vocab_size"]), "<|endoftext|>") | {
        id: word for word, id in bpe["vocab"].items()
    }
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([words[id] for id in range(config["vocab_size"])])
    writer.add_token_merges([each if isinstance(each, str) else " ".join(each) for each in bpe["merges"]])
    writer.add_bos_token_id(config["bos_token_id"])
    writer.add_eos_token_id(config["eos_token_id"])
    with safe_open(str(model / "model.safetensors"), framework="numpy") as file:
        for name in file.keys():  # noqa: SIM118
            tensor = file.get_tensor(name)
            if name.split(".")[-2].startswith("c_") and tensor.ndim == 2:
                tensor = np.ascontiguousarray(tensor.T)
            writer.add_tensor(_new_name(name.removeprefix("transformer.")), tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def bytes_per_token(path: Path) -> int:
    """Bytes of the matrices that one token reads: all but the positions. The embedding is the head too."""
    tensors = GGUFReader(path).tensors
    return sum(int(each.n_bytes) for each in tensors if len(each.shape) == 2 and each.name != "position_embd.weight")


def _new_name(name: str) -> str:
    if name in _NAMES:
        return _NAMES[name]
    if name.startswith("h."):
        _, block, *middle, end = name.split(".")
        return f"blk.{block}.{_NAMES['.'.join(middle)]}.{end}"
    start, _, end = name.rpartition(".")
    return f"{_NAMES[start]}.{end}"
