"""`gpt2 models`: the sizes of the paper and the models that ship with the package."""

from typing import Annotated

import typer

from gpt2.cli.common import Json, console, print_json
from gpt2.config import SIZES, GPT2Config


def command(
    parts: Annotated[bool, typer.Option("--parts", help="Also count the parameters of each part.")] = False,
    as_json: Json = False,
) -> None:
    """List the models that have names, with their shapes, parameters and sizes on disk.

    "Paper" is what the paper printed; "counted" is the model's true number of parameters.
    """
    rows = [(name, size.config, size.published, 4 * size.config.parameters) for name, size in SIZES.items()]
    for name, config, size in _shipped():
        rows.append((name, config, "", size))
    if as_json:
        print_json([_document(*row) for row in rows])
        return
    from rich.table import Table

    # Narrow enough for a terminal of 80 columns.
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="dim")
    for heading in ("name", "layers", "width", "heads", "window", "vocab", "paper", "counted", "on disk"):
        table.add_column(heading, justify="left" if heading == "name" else "right", no_wrap=True)
    for name, config, published, size in rows:
        shape = (config.n_layer, config.n_embd, config.n_head, config.n_positions)
        counts = (f"{config.vocab_size:,}", published or "–", f"{config.parameters:,}", _size(size))
        table.add_row(f"[bold]{name}[/]", *map(str, shape), *counts)
    out = console()
    out.print(table)
    if parts:
        out.print()
        table = Table(box=None, padding=(0, 1, 0, 0), header_style="dim")
        table.add_column("millions of parameters")
        for name, *_ in rows:
            table.add_column(name, justify="right", no_wrap=True)
        for part in rows[0][1].parameters_by_part():
            counts_of_part = [(config.parameters_by_part()[part], config.parameters) for _, config, _, _ in rows]
            table.add_row(part, *(f"{n / 1e6:.1f} {n / total:>4.0%}" for n, total in counts_of_part))
        out.print(table)
    shipped = ", ".join(name for name, *_ in _shipped())
    out.print(f"[dim]In the package: {shipped or 'none'}. On the hub, fetched when first used: {', '.join(SIZES)}.[/]")


def _document(name: str, config: GPT2Config, published: str, size: int) -> dict[str, object]:
    return {
        "name": name,
        "n_layer": config.n_layer,
        "n_embd": config.n_embd,
        "n_head": config.n_head,
        "n_positions": config.n_positions,
        "vocab_size": config.vocab_size,
        "published": published or None,
        "parameters": config.parameters,
        "parameters_by_part": config.parameters_by_part(),
        "bytes_on_disk": size,
    }


def _shipped() -> list[tuple[str, GPT2Config, int]]:
    """Names, shapes and sizes in bytes of the models in the package."""
    from gpt2.checkpoint import locate, shipped

    models = []
    for name in shipped():
        folder = locate(name)
        config = GPT2Config.from_json((folder / "config.json").read_text(encoding="utf-8"), f"{name}/config.json")
        models.append((name, config, sum(file.stat().st_size for file in folder.iterdir() if file.is_file())))
    return models


def _size(size: int) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"
