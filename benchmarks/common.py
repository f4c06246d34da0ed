"""What the benchmarks share: alternating runs, medians, one JSON line at the end."""

import json
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from transformers import GPT2Config as PeerConfig
from transformers import GPT2LMHeadModel

from gpt2.config import SIZES, GPT2Config
from gpt2.model import GPT2


def shape(name: str) -> GPT2Config:
    """A size of the paper by name, or `small`: 6 layers of width 384 with a vocabulary of 4,096 and a window of 256."""
    if name == "small":
        return GPT2Config(vocab_size=4096, n_positions=256, n_embd=384, n_layer=6, n_head=6)
    return SIZES[name].config


def both(config: GPT2Config) -> tuple[GPT2, GPT2LMHeadModel]:
    """Our model and transformers' with the same random weights."""
    ours = GPT2(config).initialise(0)
    peer = GPT2LMHeadModel(PeerConfig(**config.to_dict()))
    state = {f"transformer.{name}": tensor for name, tensor in ours.state_dict().items()}
    peer.load_state_dict(state | {"lm_head.weight": ours.wte.weight})
    return ours, peer


def alternate(runs: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median seconds of each run, the runs taking turns so that a noisy machine hits all alike; one turn warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(repeats + 1):
        for name, run in runs.items():
            started = time.perf_counter()
            run()
            if turn:
                seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in seconds.items()}


def report(work: str, tokens: int, seconds: dict[str, float], **details: Any) -> None:
    """Prints one JSON line: tokens per second of each, and how many times faster ours is."""
    speeds = {name: round(tokens / value, 1) for name, value in seconds.items()}
    ratios = {f"times_{name}": round(seconds[name] / seconds["ours"], 2) for name in seconds if name != "ours"}
    machine = {"machine": platform.processor() or platform.machine(), "threads": torch.get_num_threads()}
    print(json.dumps({"work": work, "tokens_per_second": speeds, **ratios, **details, **machine}), flush=True)
