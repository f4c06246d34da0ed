"""From a prompt to text: options, sampling, stop strings, the engine, and the functions people call.

Options and their defaults are imported at once; the rest needs torch and is imported when it is first asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from gpt2.generation.options import DEFAULTS, GenerationOptions, Grammar, Overflow, SamplingOptions
from gpt2.generation.stops import StopMatcher

if TYPE_CHECKING:
    from gpt2.generation.api import (
        Candidate,
        Completion,
        TokenLogprob,
        as_completed,
        complete,
        decode,
        generate,
        next_tokens,
        pieces,
        stream,
    )
    from gpt2.generation.engine import Engine
    from gpt2.generation.request import Event, Request
    from gpt2.generation.rows import Statistics
    from gpt2.generation.score import Item, Score
    from gpt2.generation.speculate import DraftModel, PromptLookup, Proposer, Text

__all__ = [
    "DEFAULTS",
    "Candidate",
    "Completion",
    "DraftModel",
    "Engine",
    "Event",
    "GenerationOptions",
    "Grammar",
    "Item",
    "Overflow",
    "PromptLookup",
    "Proposer",
    "Request",
    "SamplingOptions",
    "Score",
    "Statistics",
    "StopMatcher",
    "Text",
    "TokenLogprob",
    "as_completed",
    "complete",
    "decode",
    "generate",
    "next_tokens",
    "pieces",
    "stream",
]

_HOMES = {
    **dict.fromkeys(["Candidate", "Completion", "TokenLogprob", "as_completed", "complete"], "api"),
    **dict.fromkeys(["decode", "generate", "next_tokens", "pieces", "stream"], "api"),
    **dict.fromkeys(["Engine"], "engine"),
    **dict.fromkeys(["Statistics"], "rows"),
    **dict.fromkeys(["Event", "Request"], "request"),
    **dict.fromkeys(["Item", "Score"], "score"),
    **dict.fromkeys(["DraftModel", "PromptLookup", "Proposer", "Text"], "speculate"),
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
