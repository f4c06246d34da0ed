"""A progress bar on stderr over things that can be counted, where stderr is a terminal."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Progress = Callable[[str, int, int | None], None]


@contextmanager
def bar() -> Iterator[Progress]:
    """Yields a function of what is being done, how many are done, and how many there are (None: not known)."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    shown = Console(file=sys.stderr)
    if not shown.is_terminal:
        yield lambda *_: None
        return
    columns = (TextColumn("{task.description}"), MofNCompleteColumn(), BarColumn(bar_width=24), TimeRemainingColumn())
    with Bar(*columns, console=shown, transient=True) as made:
        task, said = made.add_task("", total=None, visible=False), ""

        def update(what: str, done: int, of: int | None) -> None:
            nonlocal said
            if what != said:
                said = what
                made.reset(task, description=what, total=of, completed=done, visible=True)
            made.update(task, completed=done)

        yield update
