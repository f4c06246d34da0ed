"""What came in, what was dropped and why, what went out: counted by the stages, stored as JSON, printed as tables.

Documents and bytes are counted everywhere; tokens only of what went out, because nothing else is tokenised. Where a
table states tokens of something else, they are estimated from its bytes and marked with `~`.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

IN = "in"
EXTRACTED = "extracted"
EXACT_STEP = "exact duplicates"
NEAR_STEP = "near duplicates"
OUT = ("train", "validation")

# What is counted before the text of pages is taken out: all that comes in, and what its address alone drops.
_OF_PAGES = (IN, "links", "wikipedia")
_MOST_SETS = 30  # in a printed table; all are stored


@dataclass(slots=True)
class Tally:
    """Documents, bytes and tokens by set and step."""

    counts: dict[str, dict[str, list[int]]] = field(default_factory=dict)

    def add(self, set_name: str, step: str, size: int, tokens: int = 0, documents: int = 1) -> None:
        """Counts documents of a set at a step."""
        row = self.counts.setdefault(set_name, {}).setdefault(step, [0, 0, 0])
        row[0] += documents
        row[1] += size
        row[2] += tokens

    def merge(self, data: Mapping[str, Mapping[str, Sequence[int]]]) -> None:
        """Adds what `to_dict` gave."""
        for set_name, steps in data.items():
            for step, (documents, size, tokens) in steps.items():
                self.add(set_name, step, size, tokens, documents)

    def to_dict(self) -> dict[str, dict[str, list[int]]]:
        """As JSON: set to step to [documents, bytes, tokens]."""
        return self.counts

    def total(self, *steps: str) -> list[int]:
        """Documents, bytes and tokens of some steps over all sets."""
        rows = [of[step] for of in self.counts.values() for step in steps if step in of]
        return [sum(column) for column in zip(*rows, strict=True)] if rows else [0, 0, 0]

    def steps(self) -> list[str]:
        """All steps: what came in, what was extracted, reasons to drop by their names, duplicates, what went out."""
        first, last = (IN, EXTRACTED), (EXACT_STEP, NEAR_STEP, *OUT)
        found = {step for steps in self.counts.values() for step in steps}
        reasons = sorted(found - {*first, *last})
        return [step for step in (*first, *reasons, *last) if step in found]

    def dropped(self) -> list[str]:
        """The steps that drop documents."""
        return [step for step in self.steps() if step not in (IN, EXTRACTED, *OUT)]


def rows(tally: Tally) -> list[dict[str, Any]]:
    """The steps with their documents, bytes and tokens; `estimated` marks tokens that nobody counted."""
    _, size, tokens = tally.total(*OUT)
    pages = any(EXTRACTED in steps for steps in tally.counts.values())
    result: list[dict[str, Any]] = []
    for step in tally.steps():
        documents, step_bytes, step_tokens = tally.total(step)
        row: dict[str, Any] = {"step": step, "documents": documents, "bytes": step_bytes}
        if step in OUT:
            row["tokens"] = step_tokens
        elif size and not (pages and step.partition(":")[0] in _OF_PAGES):
            # The bytes of pages are mostly markup, so nothing is said of their tokens.
            row |= {"tokens": round(step_bytes * tokens / size), "estimated": True}
        result.append(row)
    return result


@dataclass(frozen=True, slots=True)
class Table:
    """A table of the report. title: "" for the first; notes: what is said below it."""

    title: str
    head: Sequence[str]
    body: Sequence[Sequence[str]]
    notes: Sequence[str] = ()


def as_text(report: Mapping[str, Any]) -> str:
    """A finished build's corpus.json as tables in Markdown, which also read well as they are."""
    lines = ["# Corpus", ""]
    for table in tables(report):
        lines += [f"## {table.title}", ""] * bool(table.title) + _markdown(table.head, table.body)
        lines += [line for note in table.notes for line in ("", note)] + [""]
    return "\n".join(lines)


def tables(report: Mapping[str, Any]) -> list[Table]:
    """What a finished build's corpus.json tells people."""
    tally = Tally(report["sets"])
    pages = any(row["step"] == EXTRACTED for row in report["steps"])
    names = {
        **{IN: "came in, pages with their markup" if pages else "came in", EXTRACTED: "of pages: their text"},
        **{"train": "out: train", "validation": "out: validation"},
    }
    total = report["total"]
    steps = [
        *[
            [
                names.get(row["step"], f"dropped: {row['step']}"),
                f"{row['documents']:,}",
                size(row["bytes"]),
                ("~" if row.get("estimated") else "") + f"{row['tokens']:,}" if "tokens" in row else "",
            ]
            for row in report["steps"]
        ],
        ["out", f"{total['documents']:,}", size(total["bytes"]), f"{total['tokens']:,}"],
    ]
    notes = ["`~`: estimated from the bytes; only what went out was tokenised."]
    if pages:
        notes.append("Where pages are counted with their markup, no tokens are told.")
    made = [Table("", ["", "documents", "bytes", "tokens"], steps, notes)]
    by_size = sorted(tally.counts, key=lambda name: (-tally.counts[name].get(IN, [0, 0])[1], name))
    more = len(by_size) - _MOST_SETS
    made.append(
        Table(
            "Sets",
            ["set", "documents in", "bytes in", "dropped", "documents out", "bytes out", "tokens out"],
            [_set_row(tally, name) for name in by_size[:_MOST_SETS]],
            [f"and {more:,} smaller set{'s' * (more > 1)}: see corpus.json."] if more > 0 else [],
        )
    )
    problems = report["problems"].items()
    if problems:
        body = [[kind, f"{one['count']:,}", one["what"], one["example"]] for kind, one in problems]
        made.append(Table("Problems of the input", ["what", "count", "done", "first met in"], body))
    seconds = [
        [name, f"{spent:.1f}", _laps(report["worker_seconds"].get(name, {}))]
        for name, spent in report["seconds"].items()
    ]
    made.append(Table("Time", ["stage", "seconds", "seconds of workers"], seconds))
    return made


def _set_row(tally: Tally, name: str) -> list[str]:
    one = Tally({name: tally.counts[name]})
    came, dropped, out = one.total(IN), one.total(*one.dropped()), one.total(*OUT)
    return [name, f"{came[0]:,}", size(came[1]), f"{dropped[0]:,}", f"{out[0]:,}", size(out[1]), f"{out[2]:,}"]


def _laps(seconds: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {spent:.1f}" for name, spent in seconds.items() if spent >= 0.05)


def size(count: int) -> str:
    """Bytes as people read them: 1.5 GB is 1,500,000,000."""
    amount = float(count)
    for unit in ("bytes", "kB", "MB", "GB"):
        if amount < 1000:
            return f"{amount:,.0f} {unit}" if unit == "bytes" else f"{amount:.1f} {unit}"
        amount /= 1000
    return f"{amount:,.1f} TB"


def _markdown(head: Sequence[str], body: Iterable[Sequence[str]]) -> list[str]:
    cells = [list(head), *([cell.replace("|", "\\|") for cell in row] for row in body)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in cells
    ]
    return [lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]]
