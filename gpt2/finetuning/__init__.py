"""Fine-tuning: a prompt template and a target, loss on the target alone, the same trainer; all weights or an adapter.

`finetune` begins a run and `go_on` resumes one; `export` writes the best checkpoint as a plain Hugging Face directory.
Importing this imports no PyTorch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from gpt2.finetuning.options import FinetuneOptions, read_task_recipe, task_recipe_names
from gpt2.tasks.template import Task, Template, read_task

if TYPE_CHECKING:
    from gpt2.finetuning.run import Outcome, export, finetune, go_on

__all__ = [
    "FinetuneOptions",
    "Outcome",
    "Task",
    "Template",
    "export",
    "finetune",
    "go_on",
    "read_task",
    "read_task_recipe",
    "task_recipe_names",
]


def __getattr__(name: str) -> Any:
    if name not in ("Outcome", "export", "finetune", "go_on"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.run"), name)
