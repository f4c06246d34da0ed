"""Training a GPT-2 into a run folder, from text files, a corpus of token shards or `.bin` files: `train` and `resume`.

Options and recipes are imported at once; the rest needs torch and is imported when it is first asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from gpt2.training.options import TrainingOptions, read_recipe, recipe_names

if TYPE_CHECKING:
    from gpt2.training.loop import resume, train
    from gpt2.training.reporter import Reporter, Result
    from gpt2.training.step import accumulate_gradients

__all__ = [
    "Reporter",
    "Result",
    "TrainingOptions",
    "accumulate_gradients",
    "read_recipe",
    "recipe_names",
    "resume",
    "train",
]

_PLACES = {
    "Reporter": "reporter",
    "Result": "reporter",
    "resume": "loop",
    "train": "loop",
    "accumulate_gradients": "step",
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_PLACES[name]}"), name)
