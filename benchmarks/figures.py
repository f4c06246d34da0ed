"""Questions to the JSON document that `speed.py` writes: rates, ratios, shares of the machine's limits."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.peers.catalogue import peer
from benchmarks.workers import config

WIDTHS = ("float32", "bfloat16", "int8", "int4")


@dataclass(frozen=True, slots=True)
class Figures:
    """A document, and what it says. Rates are tokens a second; None where something was not measured."""

    content: dict[str, Any]

    def rows(self, work: str, case: str | None = None, width: str | None = None) -> list[dict[str, Any]]:
        """Rows of a work, of one case or width if they are given, in the order in which they were measured."""
        return [
            row
            for row in self.content["rows"]
            if row["work"] == work and case in (None, row["case"]) and width in (None, row["width"])
        ]

    def cases(self, work: str) -> list[str]:
        """The cases of a work, in order."""
        return list(dict.fromkeys(row["case"] for row in self.rows(work)))

    def ours(self, work: str, case: str | None, width: str) -> dict[str, Any] | None:
        """Our row, if it has figures."""
        return next((row for row in self.rows(work, case, width) if row["peer"] == "ours" and row["seconds"]), None)

    def best_peer(self, work: str, case: str | None, widths: Sequence[str]) -> dict[str, Any] | None:
        """The fastest row that is not ours."""
        rows = [row for width in widths for row in self.rows(work, case, width) if row["peer"] != "ours"]
        return max((row for row in rows if row["seconds"]), key=lambda row: row["rate"], default=None)

    def best_of_ours(self, work: str, case: str | None, widths: Sequence[str]) -> dict[str, Any] | None:
        """Our fastest row."""
        found = [self.ours(work, case, width) for width in widths]
        return max((row for row in found if row), key=lambda row: row["rate"], default=None)

    def memory_share(self, row: dict[str, Any]) -> float | None:
        """Bytes of weights read a second while decoding, after the prompt, of what this machine reads at most."""
        limit = self.content["limits"].get(f"{row.get('shape', self.content['shape'])} {row['width']}")
        rate = row["extra"].get("tokens_per_second_after_prompt")
        if not limit or not rate:
            return None
        own = self.content["limits"].get("own_bytes_per_token", {}).get(f"{row['peer']} {row['width']}")
        return float(rate * (own or limit["bytes_per_token"]) / limit["read"])

    def memory_limit(self, width: str) -> float | None:
        """Tokens a second if reading the weights were all there is to do."""
        limit = self.content["limits"].get(f"{self.content['shape']} {width}")
        return float(limit["read"] / limit["bytes_per_token"]) if limit else None

    def matrix_share(self, row: dict[str, Any]) -> float | None:
        """Operations a second of a prefill, of this machine's bfloat16 matrix products, whatever the row's width."""
        limit = self.content["limits"].get("bfloat16")
        if not limit or not row["seconds"]:
            return None
        return operations(self.content["shape"], row["amount"], "all" in row["case"]) / median(row) / float(limit)


def operations(shape: str, tokens: int, every: bool) -> float:
    """Multiplications and additions of reading so many tokens; of attention, what the causal mask leaves."""
    size = config(shape)
    matrices = 2 * tokens * 12 * size.n_layer * size.n_embd**2
    attention = 2 * tokens * (tokens + 1) * size.n_layer * size.n_embd
    head = 2 * (tokens if every else 1) * size.vocab_size * size.n_embd
    return float(matrices + attention + head)


def median(row: dict[str, Any]) -> float:
    """Seconds of the median turn."""
    return float(statistics.median(row["seconds"]))


def ratio(ours: dict[str, Any] | None, other: dict[str, Any] | None) -> float | None:
    """How many times faster ours is."""
    return float(ours["rate"] / other["rate"]) if ours and other else None


def title(row: dict[str, Any]) -> str:
    """The program and its own name for the width."""
    program = peer(row["peer"])
    own = program.widths.get(row["width"], row["width"])
    return program.title if own == row["width"] else f"{program.title} ({own})"


def full_title(row: dict[str, Any]) -> str:
    """The program and the width, by its own name, where no table says which."""
    program = peer(row["peer"])
    return f"{program.title}, {program.widths[row['width']]}"
