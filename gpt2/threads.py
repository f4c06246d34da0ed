"""How many CPU threads may be asked for: one rule for training and for every command."""

import os

from gpt2.errors import BadOption


def check_threads(threads: int, name: str = "threads") -> None:
    """Raises BadOption for more threads than any machine like this one could use; `name` is what the error calls them.

    Such a number is a slip, and some of PyTorch's libraries end the process over it.
    """
    processors = os.cpu_count() or 1
    if threads > 4 * processors:
        raise BadOption(f"{name} is {threads}, but this machine has {processors} processors.")
