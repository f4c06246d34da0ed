"""`gpt2 plan`: what a training run takes, in memory, hours and money, before it is begun."""

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from gpt2.cli.common import Json, console, print_json
from gpt2.cli.progress import duration
from gpt2.cli.train import with_training_options
from gpt2.errors import BadData, BadOption
from gpt2.training.options import GPT2_VOCABULARY, TrainingOptions, chosen_options, recipe_names
from gpt2.training.words import counted, of_the_data

# Bytes of text that are tokenised to tell how many tokens there are; of more, a sample of so many.
_SAMPLE = 2 * 10**6

if TYPE_CHECKING:
    import torch

    from gpt2.config import GPT2Config
    from gpt2.tokenizer import Tokenizer
    from gpt2.training.memory import Need
    from gpt2.training.plan import Cluster, Plan


def _plan(
    data: Annotated[
        list[Path] | None,
        typer.Argument(help="What would be trained on; its size and vocabulary are looked at.", show_default=False),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(help=f"{', '.join(recipe_names())}, or a TOML file.", show_default=False),
    ] = None,
    probe: Annotated[bool, typer.Option("--probe/--no-probe", help="Take 20 steps on this machine.")] = True,
    gpus: Annotated[
        int | None, typer.Option(min=1, help="Plan for so many GPUs of --kind.", show_default=False)
    ] = None,
    kind: Annotated[str | None, typer.Option(help="h100, h200, b200, a100, rtx4090, ...", show_default=False)] = None,
    per_machine: Annotated[int, typer.Option(min=1, help="GPUs in one machine.")] = 8,
    network: Annotated[float, typer.Option(min=0.1, help="Gbit/s of each GPU to the other machines.")] = 400,
    mfu: Annotated[
        float | None,
        typer.Option(min=0.01, max=1, help="Share of the peak; default: published runs'.", show_default=False),
    ] = None,
    price: Annotated[float | None, typer.Option(min=0, help="Dollars a GPU-hour.", show_default=False)] = None,
    as_json: Json = False,
    **values: Any,
) -> None:
    """Tell what a training run takes: memory by part, the largest micro-batch, tokens/s, hours; before it is begun.

    For this machine, by estimate and a short trial; with --kind, for GPUs that are not here, by a model whose
    assumptions are told. Takes the same recipes and flags as `gpt2 train`.
    """
    options = chosen_options(recipe, {name: value for name, value in values.items() if value is not None})
    vocab_size = options.vocab_size or GPT2_VOCABULARY
    theirs = None
    if options.init:
        shape, theirs = _begun_with(options.init, tokenizer=bool(data))
        options, vocab_size = options.of_shape(shape), shape.vocab_size
    found = _tokens_in(data, options, theirs) if data else None
    if found is not None:
        vocab_size = found.vocab_size
    document = _run(options, vocab_size, found)
    if kind is None:
        if gpus is not None or mfu is not None or price is not None:
            raise BadOption("--gpus, --mfu and --price plan for GPUs that are not here: name them with --kind.")
        document |= _here(options, vocab_size, probe)
        show = _show_here
    else:
        from gpt2.training.devices import of_kind
        from gpt2.training.plan import Cluster

        cluster = Cluster(of_kind(kind), gpus or 1, per_machine, network * 1e9 / 8, mfu, price)
        document |= _elsewhere(options, vocab_size, cluster)
        show = _show_elsewhere
    if as_json:
        print_json(document)
    else:
        _show_run(document)
        show(document)


def _begun_with(init: str, tokenizer: bool) -> "tuple[GPT2Config, Tokenizer | None]":
    """The shape of the model that a run begins with, and if that is asked for its vocabulary. Weights are not fetched
    for this, and not read where the files beside them say both."""
    from gpt2.checkpoint import load, locate
    from gpt2.checkpoint.huggingface import CONFIG, read_config
    from gpt2.config import SIZES
    from gpt2.tokenizer import Tokenizer, read_tokenizer

    if init in SIZES:
        return SIZES[init].config, Tokenizer.gpt2() if tokenizer else None
    path = locate(init, weights=False)
    if (path / CONFIG).is_file() and (not tokenizer or (path / "tokenizer.json").is_file()):
        return read_config(path), read_tokenizer(path) if tokenizer else None
    # In another program's file names and shapes alone are looked at, which is what this dtype does.
    model = load(init, dtype="bfloat16")
    return model.config, model.tokenizer


def _run(options: TrainingOptions, vocab_size: int, data: "_Data | None") -> dict[str, Any]:
    """What is the same on any machine."""
    from gpt2.training.flops import FORMULA, explain, flops_per_token

    config = options.model_config(vocab_size)
    tokens = options.batch_size * options.context
    document: dict[str, Any] = {
        "parameters": config.parameters,
        "shape": {name: getattr(config, name) for name in ("n_layer", "n_head", "n_embd", "n_positions", "vocab_size")},
        "optimizer": options.optimizer,
        "dtype": options.dtype,
        "steps": options.steps,
        "batch_size": options.batch_size,
        "tokens_per_step": tokens,
        "tokens": tokens * options.steps,
        "flops_formula": FORMULA,
        "flops_per_token": flops_per_token(config, options.context),
        "flops": flops_per_token(config, options.context) * tokens * options.steps,
        "flops_explained": explain(config, options.context),
    }
    if data is not None:
        document |= {
            "data_tokens": data.tokens,
            "data_tokens_counted": data.exact,
            "epochs": document["tokens"] / max(data.tokens, 1),
        }
    return document


class _Data(NamedTuple):
    """Tokens to train on, and the size of their vocabulary. exact: or else as many as a sample lets expect."""

    tokens: int
    vocab_size: int
    exact: bool


def _tokens_in(paths: list[Path], options: TrainingOptions, theirs: "Tokenizer | None") -> _Data:
    """What a run would train on: tokens and short texts as it opens them; of long texts a sample is tokenised, by a
    vocabulary that is learnt on it where one is to be learnt. theirs: the vocabulary of the model to begin with."""
    from gpt2.tokenizer import Tokenizer, learn
    from gpt2.training.data import is_tokens, open_data
    from gpt2.training.documents import find_files, sampled

    if not any(map(is_tokens, paths)):
        # Found once: what is left out of a folder is told when it is looked through.
        paths = find_files(paths)
        if sum(file.stat().st_size for file in paths) > _SAMPLE:
            sample = sampled(paths, _SAMPLE)
            tokenizer = theirs or Tokenizer.gpt2()
            vocab_size = tokenizer.vocab_size
            if theirs is None and options.vocab_size:
                vocab_size = options.vocab_size
                # A sample may be too uniform for a vocabulary that all of the text can give.
                with suppress(BadData):
                    tokenizer = learn(sample.texts, vocab_size)
            tokens = sum(len(tokenizer.encode_array(text)) for text in sample.texts) / sample.share
            # Each document has an end-of-text id before it.
            return _Data(round((tokens + sample.documents) * (1 - options.validation)), vocab_size, False)
    data = open_data(paths, options, theirs)
    return _Data(len(data.training), data.tokenizer.vocab_size, True)


def _memory(need: "Need") -> dict[str, int]:
    return {
        "weights": need.weights,
        "gradients": need.gradients,
        "optimizer": need.optimizer,
        "copy": need.copy,
        "activations": need.activations,
        "head": need.head,
        "total": need.total,
    }


def _here(options: TrainingOptions, vocab_size: int, wanted: bool) -> dict[str, Any]:
    from gpt2.runners.machine import available_memory
    from gpt2.training.allocator import keep_freed_memory
    from gpt2.training.begin import device_of
    from gpt2.training.memory import USABLE, largest_micro_batch, micro_batch, need
    from gpt2.training.meter import device_name
    from gpt2.training.probe import largest_that_runs

    # As `gpt2 train` does, or the trial would be slower than the run.
    keep_freed_memory()
    device = device_of(options)
    available = available_memory(device)
    largest = largest_micro_batch(options, vocab_size, options.context, USABLE * available) if available else 1
    tried = wanted and device.type == "cuda"
    if tried:
        largest = largest_that_runs(options, vocab_size, device, options.batch_size, largest)
    rows = micro_batch(options, vocab_size, options.context, device)
    needed = need(options.with_rows(rows), vocab_size, options.context)
    document: dict[str, Any] = {
        "machine": device_name(device),
        "memory_available": available,
        "largest_micro_batch": largest,
        "largest_micro_batch_tried": tried,
        "micro_batch_size": rows,
        "memory": _memory(needed),
    }
    if wanted and (rows <= largest or not available):
        document |= _probed(options, vocab_size, device, rows)
    return document


def _probed(options: TrainingOptions, vocab_size: int, device: "torch.device", rows: int) -> dict[str, Any]:
    from gpt2.runners.machine import matrix_rate
    from gpt2.training import devices
    from gpt2.training.flops import flops_per_token
    from gpt2.training.meter import device_name
    from gpt2.training.probe import probe

    result = probe(options, vocab_size, device, rows)
    seconds = result.step_seconds(options.batch_size)
    speed = options.batch_size * options.context / seconds
    flops = speed * flops_per_token(options.model_config(vocab_size), options.context)
    known = devices.find(device_name(device)) if device.type == "cuda" and options.dtype == "bfloat16" else None
    document: dict[str, Any] = {
        "probe_steps": result.steps,
        "probe_memory": result.memory,
        "pass_seconds": result.pass_seconds,
        "update_seconds": result.update_seconds,
        "step_seconds": seconds,
        "tokens_per_second": speed,
        "hours": seconds * options.steps / 3600,
        "flops_per_second": flops,
    }
    if known:
        document |= {"mfu": flops / known.peak, "peak": known.peak, "peak_source": known.source}
    elif device.type == "cpu":
        document["matrix_rate"] = matrix_rate(options.dtype)
        document["matrix_rate_share"] = flops / document["matrix_rate"]
    return document


def _elsewhere(options: TrainingOptions, vocab_size: int, cluster: "Cluster") -> dict[str, Any]:
    from gpt2.training.plan import assumptions, plan
    from gpt2.training.ranks import kind_that_fits

    parameters = options.model_config(vocab_size).parameters
    kinds = ("ddp", "fsdp") if cluster.gpus > 1 else ("single",)
    auto = kind_that_fits(parameters, int(cluster.device.memory)) if cluster.gpus > 1 else "single"
    return {
        "kind": cluster.device.kind,
        "gpus": cluster.gpus,
        "parallel": options.parallel if options.parallel != "auto" and cluster.gpus > 1 else auto,
        "memory_available": int(cluster.device.memory),
        "assumptions": assumptions(cluster, parameters),
        "plans": {kind: _planned(plan(options, vocab_size, cluster, kind)) for kind in kinds},
    }


def _planned(plan: "Plan") -> dict[str, Any]:
    return {
        "fits": plan.fits,
        "micro_batch_size": plan.rows,
        "passes": plan.passes,
        "memory": _memory(plan.need),
        "bytes_sent_per_step": plan.sent,
        "compute_seconds": plan.compute_seconds,
        "update_seconds": plan.update_seconds,
        "exposed_seconds": plan.exposed_seconds,
        "step_seconds": plan.step_seconds,
        "tokens_per_second": plan.tokens_per_second,
        "hours": plan.hours,
        "gpu_hours": plan.hours * plan.gpus,
        "cost": plan.cost,
    }


# For people

_PARTS = {
    "weights": "weights, float32",
    "gradients": "gradients, float32",
    "optimizer": "optimiser's moments, float32",
    "copy": "weights to compute with, bfloat16",
    "activations": "kept for the way back",
    "head": "logits, a piece at a time",
    "total": "in all",
}


def _show_run(document: dict[str, Any]) -> None:
    shape = document["shape"]
    out = console()
    out.print(
        f"[bold]{document['parameters'] / 1e6:,.1f} M parameters[/]: {counted(shape['n_layer'], 'block')}, width "
        f"{shape['n_embd']:,}, {counted(shape['n_head'], 'head')}, window {shape['n_positions']:,}, vocabulary of "
        f"{shape['vocab_size']:,}; {document['optimizer']}, {document['dtype']}",
        soft_wrap=not out.is_terminal,
    )
    said = (
        f"{counted(document['steps'], 'step')} of {document['batch_size']:,} x {shape['n_positions']:,} = "
        f"{document['tokens_per_step']:,} tokens: {in_words(document['tokens'])} tokens, {document['flops']:.3g} FLOP"
    )
    if "epochs" in document:
        about = "" if document["data_tokens_counted"] else "about "
        said += f"; it reads {of_the_data(document['epochs'])} ({about}{in_words(document['data_tokens'])} tokens)"
    out.print(said, soft_wrap=not out.is_terminal)
    out.print(f"[dim]{document['flops_explained']}[/]\n", soft_wrap=not out.is_terminal)


def _show_here(document: dict[str, Any]) -> None:
    from rich.table import Table

    out, rows, largest = console(), document["micro_batch_size"], document["largest_micro_batch"]
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim")
    table.add_column(justify="right", style="bold")
    table.add_column()
    for part, name in _PARTS.items():
        size = document["memory"][part]
        if size:
            said = f"{rows} x {document['shape']['n_positions']:,} tokens" if part == "activations" else ""
            table.add_row(name, f"{size / 1e9:,.2f}", f"GB  {said}".rstrip())
    out.print(table)
    available = document["memory_available"]
    if not largest and available:
        out.print(
            f"\nNot even one sequence at a time fits: {document['machine']} has {available / 1e9:,.1f} GB free. Choose "
            "a smaller shape, or plan for GPUs with --kind.",
            soft_wrap=not out.is_terminal,
        )
        return
    tried = "tried" if document["largest_micro_batch_tried"] else "by estimate"
    out.print(
        f"\nlargest micro-batch that fits: [bold]{largest}[/] of {document['batch_size']} ({tried}; "
        f"{available / 1e9:,.1f} GB free on {document['machine']})",
        soft_wrap=not out.is_terminal,
    )
    if rows > largest and available:
        out.print(f"`gpt2 train` would take {rows}: free some memory, or say --micro-batch-size {largest}.")
    if "tokens_per_second" not in document:
        return
    rate = f"{document['flops_per_second'] / 1e12:,.3g} TFLOP/s"
    if "mfu" in document:
        rate += f", {document['mfu']:.1%} of {document['peak'] / 1e12:,.4g} TFLOP/s ({document['peak_source']})"
    elif "matrix_rate" in document:
        share = f"{document['matrix_rate_share']:.0%} of {document['matrix_rate'] / 1e12:,.3g} TFLOP/s"
        rate += f", {share} that this machine's matrix products reached just now"
    else:
        rate += "; peak not known"
    memory = document["probe_memory"]
    took = f", {memory / 1e9:,.2f} GB" if memory else ""
    out.print(
        f"{document['probe_steps']} steps with micro-batches of {rows}: [bold]{document['tokens_per_second']:,.0f} "
        f"tokens/s[/] ({rate}{took})\n"
        f"to the end: [bold]{duration(document['hours'] * 3600)}[/], without evaluation and checkpoints",
        soft_wrap=not out.is_terminal,
    )


def _show_elsewhere(document: dict[str, Any]) -> None:
    from rich.table import Table

    out, plans = console(), document["plans"]
    table = Table(box=None, padding=(0, 2), header_style="bold")
    table.add_column(f"{document['gpus']} x {document['kind']}", style="dim")
    for name in plans:
        table.add_column(name.upper() if name != "single" else "", justify="right")

    def row(title: str, value: Any) -> None:
        table.add_row(title, *(value(plan) for plan in plans.values()))

    row("micro-batch, passes a step", lambda p: f"{p['micro_batch_size']} x {p['passes']}")
    for part, name in _PARTS.items():
        if any(plan["memory"][part] for plan in plans.values()):
            row(f"GB {name}", lambda p, part=part: f"{p['memory'][part] / 1e9:,.2f}")
    row(f"fits in {document['memory_available'] / 1e9:,.0f} GB", lambda p: "yes" if p["fits"] else "[bold]no[/]")
    row("GB a GPU sends in a step", lambda p: f"{p['bytes_sent_per_step'] / 1e9:,.2f}")
    row("ms computing", lambda p: f"{p['compute_seconds'] * 1e3:,.1f}")
    row("ms of the optimiser", lambda p: f"{p['update_seconds'] * 1e3:,.1f}")
    row("ms waiting for others", lambda p: f"{p['exposed_seconds'] * 1e3:,.1f}")
    row("tokens/s", lambda p: f"[bold]{p['tokens_per_second']:,.0f}[/]")
    row("to the end", lambda p: f"[bold]{duration(p['hours'] * 3600)}[/]")
    row("GPU-hours", lambda p: f"{p['gpu_hours']:,.0f}")
    row("dollars", lambda p: f"{p['cost']:,.0f}")
    out.print(table)
    if len(plans) > 1:
        out.print(f"\n`gpt2 train` takes {document['parallel'].upper()} here.")
    out.print("\nA model and no measurement. It assumes:")
    for line in document["assumptions"]:
        out.print(f"  - {line}", soft_wrap=not out.is_terminal, markup=False)


def in_words(number: float) -> str:
    """A large number in words: 314.6 billion."""
    for size, word in ((1e12, "trillion"), (1e9, "billion"), (1e6, "million")):
        if number >= size:
            return f"{number / size:,.1f} {word}"
    return f"{number:,.0f}"


command = with_training_options(_plan)
