"""`gpt2 bench`: tokens a second, and their share of what this machine's memory allows."""

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from gpt2.cli.common import (
    Compile,
    Device,
    DType,
    Json,
    Model,
    Revision,
    Threads,
    Width,
    console,
    load_model,
    print_json,
)
from gpt2.config import SIZES
from gpt2.errors import BadOption

if TYPE_CHECKING:
    from gpt2.checkpoint import LanguageModel


class Size(StrEnum):
    """The paper's sizes."""

    small = "gpt2"
    medium = "gpt2-medium"
    large = "gpt2-large"
    xl = "gpt2-xl"


def command(
    model: Model = None,
    revision: Revision = None,
    random: Annotated[
        Size | None,
        typer.Option("--random", help="Random weights of this size instead of a model.", show_default=False),
    ] = None,
    prompt: Annotated[int, typer.Option(min=1, help="Tokens of the prompt.")] = 32,
    tokens: Annotated[int, typer.Option(min=1, help="Tokens that follow.")] = 128,
    repeats: Annotated[int, typer.Option(min=1, help="Runs; the medians are told.")] = 5,
    device: Device = "cpu",
    dtype: Width = DType.float32,
    threads: Threads = None,
    compile: Compile = None,
    as_json: Json = False,
) -> None:
    """Measure tokens per second, and their share of this machine's memory limit.

    One text, greedy. The limit is what the machine's measured read rate allows when each token reads
    all weights once.
    """
    if random is not None and (model is not None or revision is not None):
        raise BadOption("Give --model or --random, not both.")
    import torch

    from gpt2.runners import choose, machine, measure

    subject = (
        _random(random.value, device, str(dtype), threads)
        if random is not None
        else load_model(model, revision, device, dtype, threads)
    )
    runner = choose.runner(subject, 1, compile=compile, threads=threads)
    weights = measure.weight_bytes(subject.config, subject.dtype)
    # Before and after: a neighbour may have been busy during one of them.
    rate = machine.read_rate(weights, threads, device)
    speed = measure.speed(runner, prompt, tokens, repeats)
    rate = max(rate, machine.read_rate(weights, threads, device))
    document = {
        "decode_tokens_per_second": speed.decode,
        "prefill_tokens_per_second": speed.prefill,
        "ceiling_share": speed.decode * weights / rate,
        "runner": runner.name,
        "dtype": runner.dtype,
        "model": subject.source,
        "prompt": prompt,
        "tokens": tokens,
        "repeats": repeats,
        "device": device,
        "threads": threads or torch.get_num_threads(),
        "weight_bytes": weights,
        "read_bytes_per_second": rate,
        "machine": machine.describe(),
    }
    if as_json:
        print_json(document)
        return
    from rich.markup import escape
    from rich.table import Table

    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim")
    table.add_column(justify="right", style="bold")
    table.add_column()
    table.add_row("decode", f"{speed.decode:,.1f}", f"tokens/s, {document['ceiling_share']:.0%} of the memory limit")
    table.add_row("prefill", f"{speed.prefill:,.0f}", f"tokens/s, {prompt} tokens at once")
    table.add_row("reads", f"{rate / 1e9:,.1f}", f"GB/s, of {weights / 1e6:,.1f} MB of weights a token")
    out = console()
    out.print(
        f"[bold]{escape(subject.source)}[/] in {runner.dtype} on {escape(device)}, runner {runner.name}\n",
        soft_wrap=True,
    )
    out.print(table)


def _random(size: str, device: str, dtype: str, threads: int | None) -> "LanguageModel":
    """A model of this size with random weights: as fast as the true one, and nothing has to be fetched."""
    import torch

    from gpt2.checkpoint import LanguageModel, find_device
    from gpt2.checkpoint.load import QUANTISED
    from gpt2.model import GPT2
    from gpt2.threads import check_threads
    from gpt2.tokenizer import Tokenizer

    if threads is not None:
        check_threads(threads, "--threads")
        torch.set_num_threads(threads)
    target = find_device(device)
    if dtype in QUANTISED and target.type != "cpu":
        raise BadOption(f"dtype {dtype} runs on the CPU only; on {device}, use float32 or bfloat16.")
    network = GPT2(SIZES[size].config).initialise(seed=0).requires_grad_(False).eval()
    if dtype == "bfloat16":
        network = network.to(torch.bfloat16)
    return LanguageModel(network.to(target), Tokenizer.gpt2(), f"random {size}", dtype=dtype)
