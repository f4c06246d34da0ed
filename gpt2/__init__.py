"""GPT-2, complete: `load` a model, `generate` or `stream` text with it, and `train` one of your own.

    import gpt2

    model = gpt2.load()                      # the model in the package; or "gpt2", "gpt2-xl", a folder, owner/name
    print(gpt2.generate(model, "The cat sat on the", max_tokens=40).text)

Importing this imports nothing else; PyTorch comes with the first name that needs it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from gpt2.errors import (
    BadCheckpoint,
    BadData,
    BadOption,
    BadPrompt,
    BadTokenizer,
    Busy,
    ContextOverflow,
    Error,
    Notice,
    Unavailable,
)

if TYPE_CHECKING:
    from gpt2.cache import KVCache
    from gpt2.checkpoint import LanguageModel, convert, load, locate, read_directory, shipped, write_directory
    from gpt2.config import SIZES, GPT2Config
    from gpt2.finetuning import FinetuneOptions, finetune
    from gpt2.generation import (
        Candidate,
        Completion,
        DraftModel,
        Engine,
        GenerationOptions,
        Item,
        PromptLookup,
        SamplingOptions,
        Score,
        TokenLogprob,
        generate,
        next_tokens,
        stream,
    )
    from gpt2.generation.score import score
    from gpt2.model import GPT2
    from gpt2.tasks import Reply, ask
    from gpt2.tokenizer import IncrementalDecoder, Tokenizer
    from gpt2.training import TrainingOptions, resume, train

__version__ = "0.1.0"

__all__ = [
    "GPT2",
    "SIZES",
    "BadCheckpoint",
    "BadData",
    "BadOption",
    "BadPrompt",
    "BadTokenizer",
    "Busy",
    "Candidate",
    "Completion",
    "ContextOverflow",
    "DraftModel",
    "Engine",
    "Error",
    "FinetuneOptions",
    "GPT2Config",
    "GenerationOptions",
    "IncrementalDecoder",
    "Item",
    "KVCache",
    "LanguageModel",
    "Notice",
    "PromptLookup",
    "Reply",
    "SamplingOptions",
    "Score",
    "TokenLogprob",
    "Tokenizer",
    "TrainingOptions",
    "Unavailable",
    "ask",
    "convert",
    "finetune",
    "generate",
    "load",
    "locate",
    "next_tokens",
    "read_directory",
    "resume",
    "score",
    "shipped",
    "stream",
    "train",
    "write_directory",
]

_HOMES = {
    **dict.fromkeys(["KVCache"], "cache"),
    **dict.fromkeys(
        ["LanguageModel", "convert", "load", "locate", "read_directory", "shipped", "write_directory"], "checkpoint"
    ),
    **dict.fromkeys(["SIZES", "GPT2Config"], "config"),
    **dict.fromkeys(["FinetuneOptions", "finetune"], "finetuning"),
    **dict.fromkeys(["Candidate", "Completion", "DraftModel", "Engine", "PromptLookup", "TokenLogprob"], "generation"),
    **dict.fromkeys(["GenerationOptions", "SamplingOptions", "generate", "next_tokens", "stream"], "generation"),
    **dict.fromkeys(["Item", "Score", "score"], "generation.score"),
    **dict.fromkeys(["GPT2"], "model"),
    **dict.fromkeys(["Reply", "ask"], "tasks"),
    **dict.fromkeys(["IncrementalDecoder", "Tokenizer"], "tokenizer"),
    **dict.fromkeys(["TrainingOptions", "resume", "train"], "training"),
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
