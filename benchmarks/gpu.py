"""The GPU table: decode of one row and of 64, and prefill of 32 x 1,024 tokens, beside transformers and the limits.

python -m benchmarks.gpu [--sizes gpt2 gpt2-medium gpt2-large gpt2-xl] [--dtype bfloat16] [--tokens 128] [--repeats 5]

Ours: `GraphRunner`, the whole token step with its draw in one graph. The peer: transformers with its static cache and
torch.compile (mode "reduce-overhead", which captures graphs too), greedy, on the same random weights. Decode's limit is
reading the weights once a token at the rate that this device reads; prefill's is the device's measured matrix rate.
One JSON line for each piece of work; a peer that fails is left out, and the line says why.
"""

import argparse
import json
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.common import both, shape
from gpt2.model import GPT2
from gpt2.runners import Feed, machine
from gpt2.runners.graph import GraphRunner

PROMPT = 32


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--sizes", nargs="+", default=["gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl"])
    parser.add_argument("--dtype", default="bfloat16", choices=["float32", "bfloat16"])
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--no-peer", action="store_true", help="only ours, without the minutes that compiling takes")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("no CUDA device is here: the GPU table is left out")
        return
    device, dtype = torch.device("cuda"), getattr(torch, options.dtype)
    # float32 as such: no shorter factors in its matrix products, neither ours nor the peer's.
    torch.set_float32_matmul_precision("highest")
    rate = machine.matrix_rate(options.dtype, device=device)
    for name in options.sizes:
        measure(name, device, dtype, options, rate)


def measure(name: str, device: torch.device, dtype: torch.dtype, options: argparse.Namespace, rate: float) -> None:
    """All the lines of one size."""
    config = shape(name)
    ours, peer = both(config)
    ours = ours.eval().requires_grad_(False).to(device, dtype)
    peer = peer.eval().to(device, dtype)
    n_bytes = sum(each.numel() for each in ours.parameters()) * dtype.itemsize
    # A step reads one row of the positions, and all else.
    n_bytes -= ours.wpe.weight.numel() * dtype.itemsize
    read_rate = machine.read_rate(n_bytes, device=device)
    about = {"device": torch.cuda.get_device_name(device), "torch": torch.__version__, "dtype": options.dtype}

    for rows in (1, 64):
        runner = GraphRunner(ours, rows)
        ways = {"ours": our_decode(runner, rows, options.tokens, 0.0, None)}
        ways["ours, temperature 0.8, top_k 40"] = our_decode(runner, rows, options.tokens, 0.8, 40)
        left_out = None
        if not options.no_peer:
            try:
                ways["transformers"] = peer_decode(peer, rows, options.tokens)
            except Exception as error:
                left_out = f"transformers: {str(error).splitlines()[0][:120]}"
        seconds = alternate(ways, options.repeats)
        speeds = {way: rows * options.tokens / value for way, value in seconds.items()}
        report(
            f"decode, {name}, {rows} row{'s' * (rows > 1)}, prompt {PROMPT} + {options.tokens}",
            speeds,
            limit_share=speeds["ours"] / rows * n_bytes / read_rate,
            read_gb_per_second=read_rate / 1e9,
            milliseconds_a_step=1e3 * seconds["ours"] / options.tokens,
            left_out=left_out,
            **about,
        )
        del runner
    prefill(name, ours, peer, options, rate, about)


def our_decode(runner: GraphRunner, rows: int, tokens: int, temperature: float, top_k: int | None) -> Callable[[], Any]:
    slots, prompt = list(range(rows)), prompts(runner.network, rows, PROMPT).tolist()

    def run() -> list[list[int]]:
        for slot in slots:
            runner.rewind(slot, 0)
        # The peer reads the prompt in its first step; so do we, but for the token that the first draw feeds.
        runner.read([Feed(slot, ids[:-1], 0) for slot, ids in zip(slots, prompt, strict=True)])
        ids, drawn = [each[-1] for each in prompt], []
        for number in range(tokens):
            ids = runner.draw(slots, ids, slots, [number] * rows, [temperature] * rows, [top_k] * rows)
            drawn.append(ids)
        return drawn

    return run


def peer_decode(peer: Any, rows: int, tokens: int) -> Callable[[], Any]:
    prompt = prompts(peer, rows, PROMPT)

    def run() -> Any:
        with torch.inference_mode(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return peer.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                max_new_tokens=tokens,
                min_new_tokens=tokens,
                do_sample=False,
                pad_token_id=50256,
                cache_implementation="static",  # which has generate compile the step, with mode "reduce-overhead"
            )

    run()
    return run


def prefill(name: str, ours: GPT2, peer: Any, options: argparse.Namespace, rate: float, about: dict[str, Any]) -> None:
    """32 prompts of 1,024 tokens, the last position's logits of each."""
    rows, tokens = 32, ours.config.n_positions
    runner, ids = GraphRunner(ours, rows), prompts(ours, rows, tokens)
    listed = ids.tolist()

    def run() -> None:
        for slot in range(rows):
            runner.rewind(slot, 0)
        runner.read([Feed(slot, each) for slot, each in enumerate(listed)])

    def theirs() -> None:
        with torch.inference_mode():
            peer(ids, use_cache=True, logits_to_keep=1)

    ways: dict[str, Callable[[], object]] = {"ours": run}
    if not options.no_peer:
        ways["transformers, not compiled"] = theirs
    seconds = alternate(ways, options.repeats)
    config = ours.config
    blocks = config.parameters_by_part()["attention"] + config.parameters_by_part()["mlp"]
    # A product with (in, out) weights is 2 operations a weight and token; attention sees half of the places.
    operations = rows * tokens * (2 * blocks + 4 * config.n_layer * config.n_embd * tokens / 2)
    operations += rows * 2 * config.vocab_size * config.n_embd
    report(
        f"prefill, {name}, {rows} x {tokens}",
        {way: rows * tokens / value for way, value in seconds.items()},
        limit_share=operations / seconds["ours"] / rate,
        matrix_tflops=rate / 1e12,
        **about,
    )


def prompts(network: Any, rows: int, tokens: int) -> torch.Tensor:
    random = torch.Generator().manual_seed(1)
    return torch.randint(50256, (rows, tokens), generator=random).to(network.device)


def alternate(ways: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median seconds of each, taking turns, with the device idle before and after; two turns warm up."""
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for turn in range(repeats + 2):
        for way, run in ways.items():
            torch.cuda.synchronize()
            started = time.perf_counter()
            run()
            torch.cuda.synchronize()
            if turn >= 2:
                seconds[way].append(time.perf_counter() - started)
    return {way: sorted(values)[len(values) // 2] for way, values in seconds.items()}


def report(work: str, speeds: dict[str, float], **details: Any) -> None:
    ratios = {f"times_{way}": round(speeds["ours"] / speed, 2) for way, speed in speeds.items() if way != "ours"}
    rounded = {way: round(speed, 1) for way, speed in speeds.items()}
    shown = {key: round(value, 3) if isinstance(value, float) else value for key, value in details.items()}
    shown = {key: value for key, value in shown.items() if value is not None}
    print(json.dumps({"work": work, "tokens_per_second": rounded, **ratios, **shown}), flush=True)


if __name__ == "__main__":
    main()
