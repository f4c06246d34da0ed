"""Writes small checkpoints in every layout that people have, by hand: nothing of the package's own writers is used.

Each writer takes a network's tensors under our names, lying (in, out), and puts them on disk as the other program does.
"""

import functools
import json
import struct
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from gpt2.config import GPT2Config
from gpt2.model import GPT2
from gpt2.tokenizer import Tokenizer, learn, write_tokenizer

State = dict[str, Tensor]

TINY = GPT2Config(vocab_size=300, n_positions=16, n_embd=32, n_layer=2, n_head=2)


@functools.cache
def small_tokenizer() -> Tokenizer:
    """300 tokens: bytes, 43 merges and the end of text."""
    words = "the quick brown fox jumps over the lazy dog while seven small wizards boil pots of ginger and thyme"
    return learn([" ".join(words.split()[start:]) for start in range(len(words.split()))], 300)


def random_network(config: GPT2Config = TINY, seed: int = 0) -> GPT2:
    """A network none of whose tensors is all zeros or ones, so that a mixed-up bias or norm shows in the logits."""
    network = GPT2(config).initialise(seed)
    random = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=random)
    return network.eval().requires_grad_(False)


def state_of(network: GPT2) -> State:
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def is_matrix(name: str) -> bool:
    return name.split(".")[-2] in ("c_attn", "c_proj", "c_fc") and name.endswith("weight")


def peer_config(config: GPT2Config) -> Any:
    """The same shape for transformers, key by key."""
    from transformers import GPT2Config as PeerConfig

    return PeerConfig(
        vocab_size=config.vocab_size,
        n_positions=config.n_positions,
        n_embd=config.n_embd,
        n_layer=config.n_layer,
        n_head=config.n_head,
        n_inner=config.n_inner,
        activation_function=config.activation_function,
        layer_norm_epsilon=config.layer_norm_epsilon,
        scale_attn_weights=config.scale_attn_weights,
        scale_attn_by_inverse_layer_idx=config.scale_attn_by_inverse_layer_idx,
        reorder_and_upcast_attn=config.reorder_and_upcast_attn,
        bos_token_id=None,
        eos_token_id=None,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        resid_pdrop=0.0,
    )


def peer_model(state: State, config: GPT2Config) -> Any:
    """transformers' model with these weights, which is what every layout is compared with."""
    from transformers import GPT2LMHeadModel

    # CRFM's flags are honoured by transformers' plain attention only.
    peer = GPT2LMHeadModel._from_config(peer_config(config), attn_implementation="eager")
    named = {f"transformer.{name}": tensor.float() for name, tensor in state.items()}
    peer.load_state_dict(named | {"lm_head.weight": named["transformer.wte.weight"]})
    return peer.eval()


def some_ids(config: GPT2Config, rows: int = 3, seed: int = 5) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.randint(0, config.vocab_size, (rows, config.n_positions), generator=random)


def config_json(config: GPT2Config, **changes: Any) -> str:
    """A config as the hub's older files have it, with keys that say nothing of the network."""
    data = {
        "activation_function": config.activation_function,
        "architectures": ["GPT2LMHeadModel"],
        "attn_pdrop": 0.1,
        "bos_token_id": config.vocab_size - 1,
        "embd_pdrop": 0.1,
        "eos_token_id": config.vocab_size - 1,
        "initializer_range": 0.02,
        "layer_norm_epsilon": config.layer_norm_epsilon,
        "model_type": "gpt2",
        "n_ctx": config.n_positions,
        "n_embd": config.n_embd,
        "n_head": config.n_head,
        "n_inner": config.n_inner,
        "n_layer": config.n_layer,
        "n_positions": config.n_positions,
        "resid_pdrop": 0.1,
        "scale_attn_weights": config.scale_attn_weights,
        "scale_attn_by_inverse_layer_idx": config.scale_attn_by_inverse_layer_idx,
        "reorder_and_upcast_attn": config.reorder_and_upcast_attn,
        "summary_activation": None,
        "summary_first_dropout": 0.1,
        "summary_type": "cls_index",
        "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}},
        "vocab_size": config.vocab_size,
    }
    return json.dumps({key: value for key, value in (data | changes).items() if value != "left out"})


def hub_state(
    state: State,
    config: GPT2Config,
    *,
    prefix: bool = True,
    masks: bool = False,
    head: Literal["absent", "tied", "copied"] = "absent",
) -> State:
    """Names as a file on the hub has them; masks are the buffers of transformers before version 4.32."""
    front = "transformer." if prefix else ""
    named = {front + name: tensor for name, tensor in state.items()}
    if masks:
        size = config.n_positions
        for layer in range(config.n_layer):
            named[f"{front}h.{layer}.attn.bias"] = torch.ones(size, size).tril().view(1, 1, size, size)
            named[f"{front}h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)
    if head != "absent":
        embedding = named[f"{front}wte.weight"]
        named["lm_head.weight"] = embedding if head == "tied" else embedding.clone()
    return named


def write_hub(
    path: Path,
    named: State,
    config: GPT2Config,
    *,
    kind: Literal["safetensors", "bin", "old bin"] = "safetensors",
    shards: int = 1,
    tokenizer: Tokenizer | None = None,
    **changes: Any,
) -> Path:
    """A Hugging Face directory in one of its forms; "old bin" is the pickle of PyTorch before 1.6, no zip archive."""
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(config_json(config, **changes))
    write_tokenizer(tokenizer or small_tokenizer(), path)
    stem, end = ("model", "safetensors") if kind == "safetensors" else ("pytorch_model", "bin")
    if shards == 1:
        _write_tensors(path / f"{stem}.{end}", named, kind)
        return path
    names = sorted(named)
    weight_map: dict[str, str] = {}
    for shard in range(shards):
        file = f"{stem}-{shard + 1:05d}-of-{shards:05d}.{end}"
        mine = names[shard::shards]
        _write_tensors(path / file, {name: named[name] for name in mine}, kind)
        weight_map |= dict.fromkeys(mine, file)
    total = sum(tensor.nbytes for tensor in named.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (path / f"{stem}.{end}.index.json").write_text(json.dumps(index))
    return path


def _write_tensors(file: Path, named: State, kind: str) -> None:
    if kind == "safetensors":
        save_file({name: tensor.contiguous().clone() for name, tensor in named.items()}, file, {"format": "pt"})
    else:
        torch.save(named, file, _use_new_zipfile_serialization=kind == "bin")


def linear(state: State) -> State:
    """Projections as `nn.Linear` keeps them, (out, in)."""
    return {name: tensor.t().contiguous() if is_matrix(name) else tensor for name, tensor in state.items()}


def write_nanogpt(file: Path, state: State, config: GPT2Config, *, wrapper: str = "", bias: bool | None = True) -> Path:
    """nanoGPT's `ckpt.pt` as its train.py saves it. bias None: from before that argument existed."""
    named = {f"{wrapper}transformer.{name}": tensor for name, tensor in linear(state).items()}
    if bias is False:
        named = {name: tensor for name, tensor in named.items() if not name.endswith(".bias")}
    named[f"{wrapper}lm_head.weight"] = named[f"{wrapper}transformer.wte.weight"]
    arguments = {
        "n_layer": config.n_layer,
        "n_head": config.n_head,
        "n_embd": config.n_embd,
        "block_size": config.n_positions,
        "bias": bias,
        "vocab_size": config.vocab_size,
        "dropout": 0.2,
    }
    if bias is None:
        del arguments["bias"]
    weight = nn.Parameter(torch.ones(3))
    optimiser = torch.optim.AdamW([weight])
    weight.grad = torch.ones(3)
    optimiser.step()
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save(
        {
            "model": named,
            "optimizer": optimiser.state_dict(),
            "model_args": arguments,
            "iter_num": 250,
            "best_val_loss": torch.tensor(1.7),
            "config": {"dataset": "shakespeare", "device": "cpu", "beta2": 0.99, "compile": True},
        },
        file,
    )
    return file


def write_llmc(file: Path, state: State, config: GPT2Config, *, version: int = 3) -> Path:
    """llm.c's model file: 256 integers, then every kind of tensor for all layers, the embedding padded to 128 rows."""
    padded = -(-config.vocab_size // 128) * 128
    numbers = [20240326, version, config.n_positions, config.vocab_size, config.n_layer, config.n_head, config.n_embd]
    parts = [struct.pack("<256i", *numbers, padded, *[0] * 248)]
    dtype = torch.bfloat16 if version == 5 else torch.float32

    def put(tensor: Tensor) -> None:
        parts.append(tensor.to(dtype).contiguous().view(torch.uint8).numpy().tobytes())

    theirs = linear(state)
    # Rows of padding that are not zero: reading them by mistake must show.
    put(torch.cat([theirs["wte.weight"], torch.full((padded - config.vocab_size, config.n_embd), 9.0)]))
    put(theirs["wpe.weight"])
    for part in ("ln_1", "attn.c_attn", "attn.c_proj", "ln_2", "mlp.c_fc", "mlp.c_proj"):
        for kind in ("weight", "bias"):
            for layer in range(config.n_layer):
                put(theirs[f"h.{layer}.{part}.{kind}"])
    put(theirs["ln_f.weight"])
    put(theirs["ln_f.bias"])
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(b"".join(parts))
    return file


def openai_variables(state: State) -> dict[str, Tensor]:
    """OpenAI's variable names; its projections are convolutions of width 1, so (1, in, out)."""
    kinds = {"weight": "w", "bias": "b"}
    variables = {}
    for name, tensor in state.items():
        *parts, kind = name.split(".")
        if parts[0] in ("wte", "wpe"):
            variables[f"model/{parts[0]}"] = tensor
            continue
        letter = "g" if parts[-1].startswith("ln_") and kind == "weight" else kinds[kind]
        place = "/".join([f"h{parts[1]}", *parts[2:]] if parts[0] == "h" else parts)
        variables[f"model/{place}/{letter}"] = tensor[None] if letter == "w" else tensor
    return variables


def write_openai(path: Path, state: State, config: GPT2Config, tokenizer: Tokenizer | None = None) -> Path:
    """OpenAI's folder, its variables made and saved by TensorFlow's own Saver, as OpenAI's training did."""
    import tensorflow as tf

    path.mkdir(parents=True, exist_ok=True)
    hparams = {
        "n_vocab": config.vocab_size,
        "n_ctx": config.n_positions,
        "n_embd": config.n_embd,
        "n_head": config.n_head,
        "n_layer": config.n_layer,
    }
    (path / "hparams.json").write_text(json.dumps(hparams))
    write_tokenizer(tokenizer or small_tokenizer(), path, layout="openai")
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        for name, tensor in openai_variables(state).items():
            tf.compat.v1.get_variable(name, initializer=tensor.numpy(), use_resource=False)
        session.run(tf.compat.v1.global_variables_initializer())
        tf.compat.v1.train.Saver().save(session, str(path / "model.ckpt"))
    return path
