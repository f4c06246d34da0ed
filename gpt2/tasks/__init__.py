"""Asking a model to do something by a prompt alone, on any checkpoint: summarise, translate, answer.

`ask` does it. The words are the paper's, or those that a fine-tuned checkpoint brings with it (its task.json).
Importing this imports no PyTorch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from gpt2.tasks.prompts import TASKS, Way
from gpt2.tasks.template import Task, Template, read_task, write_task

if TYPE_CHECKING:
    from gpt2.tasks.asking import Reply, ask, find, replies

__all__ = ["TASKS", "Reply", "Task", "Template", "Way", "ask", "find", "read_task", "replies", "write_task"]


def __getattr__(name: str) -> Any:
    if name not in ("Reply", "ask", "find", "replies"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.asking"), name)
