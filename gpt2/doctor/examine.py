"""Runs every runner that can run here against the figures, measures it, and says what it means.

It knows how to tell a machine that computes wrongly from weights that are others: the machine is also asked about the
shipped model, whose figures are stored. Printing is the command line's.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple

import torch

from gpt2.checkpoint import DEFAULT_MODEL, LanguageModel, load, locate
from gpt2.doctor import canned
from gpt2.doctor.published import Published, applies, compare
from gpt2.errors import BadCheckpoint, Error
from gpt2.files import cache_directory
from gpt2.runners import choices, choose, machine, measure
from gpt2.runners.plain import PlainRunner
from gpt2.runners.runner import Runner

STORED = Path(__file__).with_name("bookworm.json")
WIDTHS = ("float32", "bfloat16", "int8", "int4")

Verdict = Literal["true", "false", "failed", "absent"]
Build = Callable[[str, LanguageModel, int, int | None], Runner]


@dataclass(frozen=True, slots=True)
class Finding:
    """What was found about one runner at one width.

    verdict: "true", "false" (its logits are further from the figures than allowed), "failed" (it raised), "absent".
    nats and allowed: the largest distance of a log-probability and its bound; where: at which place.
    tokens_per_second: decoding one text; ceiling_share: of what the memory's read rate allows.
    why: why it is chosen, not here, or failed. published: for OpenAI's 124M in float32 only.
    """

    dtype: str
    runner: str
    verdict: Verdict
    chosen: bool = False
    why: str = ""
    nats: float | None = None
    allowed: float | None = None
    where: str = ""
    tokens_per_second: float | None = None
    ceiling_share: float | None = None
    published: Published | None = None


def stored_figures(model: LanguageModel) -> Path | None:
    """The file with this model's stored figures; None if it has none.

    Raises BadCheckpoint if the shipped model's weights are not those that shipped.
    """
    if model.path is None or model.path != locate(DEFAULT_MODEL):
        return None
    expected = json.loads(STORED.read_text(encoding="utf-8"))["sha256"]
    weights = model.path / "model.safetensors"
    if hashlib.sha256(weights.read_bytes()).hexdigest() != expected:
        raise BadCheckpoint(f"{weights} is not the file that shipped with this package; install it again.")
    return STORED


def reference(model: LanguageModel) -> list[canned.Place]:
    """Figures for a float32 model on the CPU: stored ones, or those of plain PyTorch."""
    stored = stored_figures(model)
    return canned.read_figures(stored) if stored else canned.figures(PlainRunner(model.network, 1))


def control(device: str, build: Build = choose.build) -> Finding:
    """The shipped model on this device in plain PyTorch, against its stored figures."""
    model = load(DEFAULT_MODEL, device=device)
    stored_figures(model)
    return _examine_one("plain", model, canned.read_figures(STORED), None, build, timed=False)


def examine(
    model: LanguageModel,
    places: Sequence[canned.Place],
    *,
    compile: bool = True,
    threads: int | None = None,
    build: Build = choose.build,
    note: Callable[[str], None] = lambda text: None,
) -> Iterator[Finding]:
    """Findings about every runner for this model's width and device.

    How fast they are, and whether they compute rightly, is remembered for `choose`.

    compile: also try torch.compile, which may take a minute. note: is told what is being tried.
    """
    device, dtype = choose.device_of(model), model.dtype
    weights = measure.weight_bytes(model.config, dtype)
    rate = machine.read_rate(weights, threads, device)
    findings = []
    for choice in choose.explain(model, threads=threads):
        if not choice.possible:
            findings.append(Finding(dtype, choice.name, "absent", why=choice.why))
        elif choice.name == "compiled" and not compile:
            findings.append(Finding(dtype, choice.name, "absent", why="left out by --no-compile"))
        else:
            note(f"{dtype} {choice.name}")
            findings.append(_examine_one(choice.name, model, places, threads, build))
    rates = {
        finding.runner: finding.tokens_per_second
        for finding in findings
        if finding.verdict == "true" and finding.tokens_per_second
    }
    choices.remember(model.config, dtype, device, threads or torch.get_num_threads(), rates)
    right = {finding.runner: finding.verdict == "true" for finding in findings if finding.verdict in ("true", "false")}
    choices.remember_verdicts(model.config, dtype, device, right)
    # Before and after: a neighbour may have been busy during one of them.
    rate = max(rate, machine.read_rate(weights, threads, device))
    # Chosen anew, with what was measured just now.
    now = {choice.name: choice for choice in choose.explain(model, threads=threads)}
    for finding in findings:
        if finding.verdict in ("true", "false") and now[finding.runner].chosen:
            finding = replace(finding, chosen=True, why=now[finding.runner].why)
        if finding.tokens_per_second:
            finding = replace(finding, ceiling_share=finding.tokens_per_second * weights / rate)
        yield finding


def _examine_one(
    name: str,
    model: LanguageModel,
    places: Sequence[canned.Place],
    threads: int | None,
    build: Build,
    *,
    timed: bool = True,
) -> Finding:
    dtype, window = model.dtype, model.config.n_positions
    try:
        runner = build(name, model, 2, threads)
        found = canned.difference(runner, places)
        allowed = canned.allowed(dtype, places)
        verdict: Verdict = "true" if found.nats <= allowed else "false"
        finding = Finding(dtype, name, verdict, nats=found.nats, allowed=allowed, where=found.where)
        if dtype == "float32" and applies(model.config, model.tokenizer):
            finding = replace(finding, published=compare(runner, model.tokenizer))
        if timed:
            decode = measure.speed(runner, max(1, min(32, window // 2)), max(1, min(24, window // 4))).decode
            finding = replace(finding, tokens_per_second=decode)
        return finding
    except (Error, RuntimeError, OSError, MemoryError) as error:
        # What a broken compiler or driver raises is a finding too, not an end.
        return Finding(dtype, name, "failed", why=f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")


def truthful(findings: Sequence[Finding]) -> bool:
    """Whether nothing computes wrongly, and nothing that would be chosen fails."""
    return all(finding.verdict in ("true", "absent") or _only_compiling_failed(finding) for finding in findings)


def _only_compiling_failed(finding: Finding) -> bool:
    # A compiler that does not work is no lie; plain PyTorch is taken then.
    return finding.verdict == "failed" and finding.runner == "compiled"


class Meaning(NamedTuple):
    """What findings mean. truthful: the machine is. true_weights: they are OpenAI's (None: nothing to compare with)."""

    truthful: bool
    true_weights: bool | None
    sentence: str


def meaning(findings: Sequence[Finding], control: Finding | None) -> Meaning:
    """What it all means. `control`: the finding about the shipped model, if another one was examined."""
    every = [*findings, *([control] if control else [])]
    wrong = [finding for finding in every if finding.verdict == "false"]
    compared = [finding for finding in findings if finding.published is not None]
    as_published = [finding for finding in compared if finding.published and finding.published.ok]
    if not wrong and 0 < len(as_published) < len(compared):
        wrong = [finding for finding in compared if finding not in as_published]
    if wrong:
        return Meaning(False, None, f"this machine computes wrongly: {_names(wrong)}")
    if not truthful(every):
        failed = [finding for finding in every if finding.verdict == "failed"]
        return Meaning(False, None, f"this machine does not run everything that it should: {_names(failed)}")
    if as_published:
        return Meaning(True, True, "true weights, truthful machine")
    if compared:
        return Meaning(True, False, "these are not OpenAI's weights")
    return Meaning(True, None, "truthful machine")


def _names(findings: Sequence[Finding]) -> str:
    return ", ".join(dict.fromkeys(f"{finding.runner} in {finding.dtype}" for finding in findings))


def build_native() -> None:
    """Builds the native step into the cache where it is missing and a compiler is there; failing is no error here."""
    from gpt2.runners import build, native

    if native.library() is None and build.obstacle() is None:
        try:
            build.build(cache_directory() / "native")
        except OSError:
            return
        native.library.cache_clear()
