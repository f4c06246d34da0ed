"""Which of several processes this one is, by what torchrun says in the environment, and who of them speaks.

All of them meet the same mistake or notice, and the first says it. No torch is imported for that; what they do together
is in `ranks.py`.
"""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

from gpt2.errors import Notice

_ENDED, _A_MOMENT = "gpt2/ended", timedelta(seconds=5)


def how_many() -> int:
    """Processes that train together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first() -> bool:
    """Whether this process is the first of its run, or the only one."""
    return how_many() == 1 or os.environ.get("RANK") == "0"


@contextmanager
def first_alone_notices() -> Iterator[None]:
    """All read the same data and options, and the first says what it notices."""
    with warnings.catch_warnings():
        if not is_first():
            warnings.simplefilter("ignore", Notice)
        yield


def told_by_first(message: str) -> bool:
    """Whether the first process has ended with a message of its own, so that this one may be quiet about `message`.

    What is wrong with options, data or a folder all of them see, or wait for the first that does. Under torchrun alone:
    its store outlives the processes. The first itself gets False, and so does one whose trouble is its own.
    """
    if how_many() == 1 or "TORCHELASTIC_RUN_ID" not in os.environ:
        return False
    from torch.distributed.rendezvous import rendezvous

    try:
        store = next(rendezvous("env://", timeout=_A_MOMENT))[0]
        if is_first():
            store.set(_ENDED, message)
            return False
        store.wait([_ENDED], _A_MOMENT)
    except (RuntimeError, ValueError, KeyError):
        return False
    return True
