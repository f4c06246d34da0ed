"""`gpt2 next`: the tokens that may come next, with their probabilities."""

from typing import Annotated

import typer

from gpt2.cli.common import (
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
    read_text,
)

_BAR = 40


def command(
    prompt: Annotated[str, typer.Argument(help="Text to go on from; - reads standard input.", show_default=False)],
    n: Annotated[int, typer.Option("-n", "--n", min=1, help="How many tokens to show.")] = 10,
    model: Model = None,
    revision: Revision = None,
    device: Device = "cpu",
    dtype: Width = DType.float32,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Show which tokens may come next, and how likely each is.

    The probabilities are the model's own: no temperature, no filters.
    """
    text = read_text(prompt)
    from gpt2.generation import next_tokens

    candidates = next_tokens(load_model(model, revision, device, dtype, threads), text, n)
    if as_json:
        print_json({"candidates": [{"token": c.token, "id": c.id, "probability": c.probability} for c in candidates]})
        return
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("next token")
    table.add_column("id", justify="right", style="dim")
    table.add_column("probability", justify="right")
    table.add_column("")
    # What the widest token leaves of the line: a bar that is cut off would look like a longer one.
    room = console().width - 2 - max(12, *(len(repr(each.token)) for each in candidates)) - 6 - 14
    longest = max(8, min(_BAR, room))
    for candidate in candidates:
        bar = "█" * round(longest * candidate.probability / max(candidates[0].probability, 1e-9))
        # Quoted, since most tokens begin with a space.
        table.add_row(
            escape(repr(candidate.token)), str(candidate.id), f"{candidate.probability:.2%}", f"[cyan]{bar}[/]"
        )
    console().print(table)
    total = sum(candidate.probability for candidate in candidates)
    console().print(f"[dim]these {len(candidates)} together: {total:.2%}[/]")
