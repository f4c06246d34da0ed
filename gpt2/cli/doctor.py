"""`gpt2 doctor`: does this machine compute truly, how fast is it, and what would be chosen."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gpt2.cli.common import Device, DType, Json, Model, Revision, Threads, console, load_model, print_json

if TYPE_CHECKING:
    from rich.table import Table

    from gpt2.doctor.examine import Finding

_MARKS = {"true": "[green]✓[/]", "false": "[bold red]✗[/]", "failed": "[yellow]![/]", "absent": "[dim]–[/]"}


def command(
    model: Model = None,
    revision: Revision = None,
    device: Device = "cpu",
    dtype: Annotated[
        DType | None, typer.Option("--dtype", help="Only this width; default: all four.", show_default=False)
    ] = None,
    threads: Threads = None,
    compile: Annotated[
        bool, typer.Option("--compile/--no-compile", help="Also try torch.compile, which may take a minute.")
    ] = True,
    as_json: Json = False,
) -> None:
    """Is this machine telling the truth, how fast is it, and which runner would be chosen?

    Canned inputs go through every runner and every width that this machine has, and are compared with stored figures.
    What is measured is remembered for the next time a model is loaded. Exit code 1: something computes wrongly.
    """
    from gpt2.checkpoint import find_device

    find_device(device)
    # The figures come from a CPU in float32, whatever is examined.
    reference = load_model(model, revision, "cpu", "float32", threads)
    from gpt2.doctor import examine
    from gpt2.errors import Error

    widths = [str(dtype)] if dtype is not None else list(examine.WIDTHS)
    findings: list[Finding] = []
    with _Status(quiet=as_json) as status:
        status.say("the machine's limits")
        examine.build_native()
        machine = _machine(reference.config.parameters * 4, device, threads)
        status.say("figures to compare with")
        is_shipped = examine.stored_figures(reference) is not None
        places = examine.reference(reference)
        for width in widths:
            status.say(width)
            try:
                subject = load_model(model, revision, device, width, threads)
            except Error as error:
                findings.append(examine.Finding(width, "all", "absent", why=str(error)))
                continue
            findings += examine.examine(subject, places, compile=compile, threads=threads, note=status.say)
        control = None if is_shipped else examine.control(device)
    truthful, true_weights, verdict = examine.meaning(findings, control)
    if true_weights is False and reference.source in ("gpt2", "openai-community/gpt2"):
        truthful = False
    if as_json:
        documents = [_document(finding) for finding in findings]
        print_json(
            {
                "model": reference.source,
                "device": device,
                **machine,
                "runners": documents,
                "control": _document(control) if control else None,
                "verdict": verdict,
                "truthful": truthful,
            }
        )
    else:
        _print(reference.source, device, machine, findings, control, verdict, truthful)
    if not truthful:
        raise typer.Exit(1)


def _machine(weight_bytes: int, device: str, threads: int | None) -> dict[str, Any]:
    import torch

    from gpt2.runners import machine

    return {
        "machine": machine.describe(),
        "threads": threads or torch.get_num_threads(),
        "read_bytes_per_second": machine.read_rate(weight_bytes, threads, device),
        "matrix_flops_per_second": {
            width: machine.matrix_rate(width, threads, device) for width in ("float32", "bfloat16")
        },
    }


def _document(finding: "Finding") -> dict[str, Any]:
    document = asdict(finding)
    # JSON has no infinity: a distance that is none is null, and the verdict says false.
    if document["nats"] == float("inf"):
        document["nats"] = None
    if document["published"] and document["published"]["relative"] == float("inf"):
        document["published"]["relative"] = None
    return document


def _print(
    source: str,
    device: str,
    machine: dict[str, Any],
    findings: "list[Finding]",
    control: "Finding | None",
    verdict: str,
    truthful: bool,
) -> None:
    from rich.markup import escape
    from rich.table import Table

    out, about = console(), machine["machine"]
    rates = machine["matrix_flops_per_second"]
    head = Table.grid(padding=(0, 2))
    head.add_column(style="dim", no_wrap=True)
    head.add_column()
    features = " ".join(about["features"])
    head.add_row("machine", escape(f"{about['processor']}, {about['cores']} cores, {about['memory'] / 2**30:.0f} GiB"))
    head.add_row("", escape(f"{features + ' · ' if features else ''}torch {about['torch']} · {about['system']}"))
    head.add_row("reads", f"{machine['read_bytes_per_second'] / 1e9:.1f} GB/s with {machine['threads']} threads")
    head.add_row("multiplies", " · ".join(f"{rate / 1e12:.2f} TFLOP/s {width}" for width, rate in rates.items()))
    out.print(f"[bold]{escape(source)}[/] on [bold]{escape(device)}[/]\n")
    out.print(head)
    out.print()
    out.print(_table(findings))
    out.print("[dim]off by: the largest distance of a log-probability from its figure, in nats[/]\n")
    for (mark, runner, why), widths in _reasons(findings).items():
        out.print(f"{mark} {runner} [dim]({', '.join(widths)}): {escape(why)}[/]")
    for finding in findings:
        if finding.published is not None:
            published = finding.published
            greedy = "as published" if published.greedy else "another"
            out.print(
                f"[dim]OpenAI's 124M, {finding.runner}: log-probabilities differ from the published ones by up to "
                f"{published.relative:.2g} of themselves, the greedy text is {greedy}[/]"
            )
    if control is not None:
        said = f"{control.nats:.1e} nats from its stored figures" if control.nats is not None else control.why
        out.print(f"[dim]the shipped model, plain on {escape(device)}: {_MARKS[control.verdict]} {escape(said)}[/]")
    out.print(f"\n[bold {'green' if truthful else 'red'}]{escape(verdict)}[/]")


def _table(findings: "list[Finding]") -> "Table":
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for name in ("width", "runner"):
        table.add_column(name, no_wrap=True)
    for name in ("off by", "allowed", "", "tokens/s", "of memory limit"):
        table.add_column(name, justify="right", no_wrap=True)
    last = ""
    for finding in findings:
        dtype, last = ("" if finding.dtype == last else finding.dtype), finding.dtype
        nats = "" if finding.nats is None else f"{finding.nats:.2g}" if finding.nats >= 1e-6 else "0"
        table.add_row(
            dtype,
            f"{'→' if finding.chosen else ' '} {finding.runner}",
            f"[red]{nats}[/]" if finding.verdict == "false" else nats,
            "" if finding.allowed is None else f"{finding.allowed:.2g}",
            _MARKS[finding.verdict],
            "" if finding.tokens_per_second is None else f"{finding.tokens_per_second:,.0f}",
            "" if finding.ceiling_share is None else f"{finding.ceiling_share:.0%}",
            style="bold" if finding.chosen else "dim" if finding.verdict == "absent" else "",
        )
    return table


def _reasons(findings: "list[Finding]") -> dict[tuple[str, str, str], list[str]]:
    """(mark, runner, why) of what is chosen, wrong, failed or not here, and the widths for which it is so."""
    reasons: dict[tuple[str, str, str], list[str]] = {}
    for finding in findings:
        if finding.verdict == "false":
            key = (_MARKS["false"], finding.runner, f"computes wrongly, most at {finding.where}")
        elif finding.chosen:
            key = ("→", finding.runner, finding.why)
        elif finding.verdict in ("failed", "absent"):
            key = (_MARKS[finding.verdict], finding.runner, finding.why)
        else:
            continue
        reasons.setdefault(key, []).append(finding.dtype)
    return reasons


class _Status:
    """One line on stderr that says what is being done, and vanishes; nothing where nobody watches."""

    def __init__(self, *, quiet: bool) -> None:
        from rich.console import Console

        self._status = Console(stderr=True, quiet=quiet).status("")

    def __enter__(self) -> "_Status":
        self._status.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._status.stop()

    def say(self, text: str) -> None:
        self._status.update(f"[dim]examining {text}[/]")
