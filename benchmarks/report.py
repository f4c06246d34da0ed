"""Tables and a picture out of the figures: on the terminal, and as docs/performance.md and docs/performance.png.

python -m benchmarks.report [FILE]     (default: the newest file in benchmarks/results)

In the page, only what stands between the two marks is written anew; what people wrote around it stays.
"""

import json
import sys
from pathlib import Path
from typing import Any

from benchmarks import targets
from benchmarks.figures import WIDTHS, Figures, full_title, median, ratio, title
from benchmarks.peers.catalogue import ROOT, peer

PAGE, PICTURE = ROOT / "docs" / "performance.md", ROOT / "docs" / "performance.png"
BEGIN, END = "<!-- figures: begin (written by benchmarks/report.py) -->", "<!-- figures: end -->"

Table = list[list[str]]


def main() -> None:
    from benchmarks.picture import draw

    results = ROOT / "benchmarks" / "results"
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else max(results.glob("*.json"), default=None)
    if path is None:
        sys.exit(f"{results} holds no figures; make bench makes them.")
    figures = Figures(json.loads(path.read_text(encoding="utf-8")))
    draw(figures, PICTURE)
    page = PAGE.read_text(encoding="utf-8") if PAGE.is_file() else f"# Performance\n\n{BEGIN}\n{END}\n"
    before, rest = page.split(BEGIN)
    after = rest.split(END)[1]
    PAGE.write_text(f"{before}{BEGIN}\n\n{markdown(figures)}\n{END}{after}", encoding="utf-8")
    print(f"{PAGE.relative_to(ROOT)} and {PICTURE.relative_to(ROOT)} are written.")


def print_tables(content: dict[str, Any]) -> None:
    """Prints what the page would hold."""
    print(markdown(Figures(content)))


def markdown(figures: Figures) -> str:
    """Every table that there are figures for."""
    parts = [_about(figures)]
    reached = [["work", "target", "reached", ""], *([*line[:3], _mark(line[3])] for line in targets.lines(figures))]
    parts += _section("What was to be reached", "", [reached])
    parts.append(f"![Bars: tokens a second of every program, by work and width]({PICTURE.name})")
    case = next(iter(figures.cases("decode")), "")
    parts += _section(
        f"Decode, one text ({case})",
        "Tokens/s count the prompt's time; the share of the memory limit is that of the tokens after the prompt "
        "(weights read a second, of what two threads read from a buffer as large).",
        [_decode(figures, width) for width in WIDTHS],
    )
    parts += _section(
        "Prefill",
        "Tokens/s; in brackets how many times faster ours is. Matrix rate: operations a second, longest text with "
        "all logits, of the measured bf16 matrix rate, whatever the width. Logits off by: root mean square difference "
        "from transformers in float32, in standard deviations of the logits (weights are random).",
        [_prefill(figures, width) for width in WIDTHS],
    )
    case = next(iter(figures.cases("streams")), "")
    parts += _section(
        f"Many streams ({case})",
        "8 to 256 tokens to read, 32 to 160 to write, the same for everybody; tokens written a second, all together. "
        "Ours, llama.cpp and OpenVINO batch continuously; for the others texts were sorted by length, "
        "which favours them.",
        [_plain(figures, "streams", width) for width in WIDTHS],
    )
    parts += _section(
        "Beside a busy core",
        "The decode above while another process spins on one core.",
        [_plain(figures, "busy", width) for width in WIDTHS],
    )
    parts += _section("Cold start", "From the start of the process, files in the disk's cache.", [_cold(figures)])
    parts += _section("Memory", "A fresh process that loads and decodes as above.", [_memory(figures)])
    parts += _section("The largest (1,558M, int8)", "", [_largest(figures)])
    return "\n\n".join(part for part in parts if part) + "\n"


def _section(heading: str, words: str, tables: list[Table]) -> list[str]:
    tables = [table for table in tables if len(table) > 1]
    if not tables:
        return []
    return [f"## {heading}", words, *(_written(table) for table in tables)]


def _written(table: Table) -> str:
    """A Markdown table whose columns also line up on a terminal."""
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    lines = []
    for number, row in enumerate(table):
        cells = [
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append(f"| {' | '.join(cells)} |")
        if not number:
            marks = ["-" * width if column == 0 else "-" * (width - 1) + ":" for column, width in enumerate(widths)]
            lines.append(f"| {' | '.join(marks)} |")
    return "\n".join(lines)


def _about(figures: Figures) -> str:
    content = figures.content
    machine, limits = content["machine"], content["limits"]
    versions = ", ".join(f"{peer(name).title} {version}" for name, version in content["versions"].items())
    rates = [f"matrix products {limits[dtype] / 1e12:.2f} TFLOP/s in {dtype}" for dtype in WIDTHS if dtype in limits]
    reads = [
        f"{each['read'] / 1e9:.0f} GB/s over {each['bytes_per_token'] / 1e6:.0f} MB"
        for name, each in limits.items()
        if isinstance(each, dict) and "read" in each and name.startswith(f"{content['shape']} ")
    ]
    missing = sorted({peer(name).title for names in content["missing"].values() for name in names})
    lines = [
        f"Measured on {content['date']}: {machine['processor']}, {machine['cores']} cores "
        f"({', '.join(machine['features'])}), {machine['memory'] / 2**30:.0f} GiB, {machine['system']}, "
        f"Python {content['python']}, PyTorch {machine['torch']}; shape `{content['shape']}`, random weights, "
        f"{content['threads']} threads each, in turn, medians.",
        f"Programs: {versions}.",
        f"The machine's limits in the same run: reading {', '.join(reads)}; {', '.join(rates)}.",
    ]
    if missing:
        lines.append(f"Not measured at every width: {', '.join(missing)}.")
    return "\n".join(lines)


def _decode(figures: Figures, width: str) -> Table:
    table = [[f"{width}", "tokens/s", "ours is", "after the prompt", "memory limit", "first token"]]
    rows = figures.rows("decode", None, width)
    ours = figures.ours("decode", None, width)
    for row in sorted(rows, key=lambda row: -(row["rate"] or 0)):
        if row["reason"]:
            continue
        extra = row["extra"]
        table.append(
            [
                title(row),
                f"{row['rate']:.1f}",
                _times(ratio(ours, row) if row["peer"] != "ours" else None),
                f"{extra['tokens_per_second_after_prompt']:.1f}",
                _percent(figures.memory_share(row)),
                f"{extra['first_token_seconds'] * 1000:.0f} ms",
            ]
        )
    return table


def _prefill(figures: Figures, width: str) -> Table:
    cases = figures.cases("prefill")
    table = [[width, *cases, "matrix rate", "logits off by"]]
    for name in dict.fromkeys(row["peer"] for row in figures.rows("prefill", None, width)):
        cells, share, error = [], None, None
        for case in cases:
            row = next(row for row in figures.rows("prefill", case, width) if row["peer"] == name)
            if row["reason"]:
                cells.append("no")
                continue
            times = ratio(figures.ours("prefill", case, width), row) if name != "ours" else None
            cells.append(f"{row['rate']:,.0f}" + (f" ({_times(times)})" if times else ""))
            share = figures.matrix_share(row) if "all logits" in case else share
            error = row["extra"].get("error", error)
        if share is not None:
            table.append([title(row), *cells, _percent(share), "" if error is None else f"{error:.1%}"])
    return table


def _plain(figures: Figures, work: str, width: str) -> Table:
    table = [[width, "tokens/s", "ours is"]]
    ours = figures.ours(work, None, width)
    for row in sorted(figures.rows(work, None, width), key=lambda row: -(row["rate"] or 0)):
        if not row["reason"]:
            waiting = row["extra"].get("waiting")
            name = title(row) + (f", {waiting} waiting" if waiting in ("active", "passive") else "")
            times = ratio(ours, row) if row["peer"] != "ours" else None
            table.append([name, f"{row['rate']:.1f}", _times(times)])
    return table


def _cold(figures: Figures) -> Table:
    table = [["", "seconds"]]
    for row in figures.rows("cold start"):
        if row["seconds"]:
            name = ", ".join(part for part in (row["peer"], row["case"], row["width"]) if part)
            table.append([name, f"{median(row):.2f}"])
    return table


def _memory(figures: Figures) -> Table:
    table = [["", "resident", "at most", "during more calls"]]
    for row in figures.rows("memory"):
        if not row["seconds"]:
            continue
        extra = row["extra"]
        readings = extra.get("resident_during_calls")
        span = f"{readings[0] / 1e6:.0f} to {readings[-1] / 1e6:.0f} MB in {extra['calls']}" if readings else ""
        now, peak = (f"{extra[key] / 1e6:.0f} MB" for key in ("now", "peak"))
        table.append([full_title(row), now, peak, span])
    return table


def _largest(figures: Figures) -> Table:
    table = [["", "tokens/s", "memory limit", "first start", "at most", "second start", "at most"]]
    for row in figures.rows("largest"):
        if row["seconds"]:
            starts = [row["extra"][name] for name in ("first start", "second start")]
            cells = [cell for each in starts for cell in (f"{each['seconds']:.1f} s", f"{each['peak'] / 1e9:.2f} GB")]
            share = figures.memory_share(row | {"shape": "gpt2-xl"})
            table.append([title(row), f"{row['rate']:.1f}", _percent(share), *cells])
    return table


def _times(value: float | None) -> str:
    return "" if value is None else f"{value:.2f} ×"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.0%}"


def _mark(enough: bool | None) -> str:
    return {True: "reached", False: "missed", None: ""}[enough]


if __name__ == "__main__":
    main()
