"""What a run shows on the terminal: nothing before it begins, and texts as they are."""

import io

from rich.console import Console

from gpt2.cli.progress import Progress


def test_only_who_reports_has_a_bar():
    """Under torchrun every process has a `Progress`, and one terminal has room for one bar."""
    out = io.StringIO()
    with Progress(Console(file=out, width=80, force_terminal=True)):
        pass
    assert out.getvalue() == ""


def test_a_text_is_shown_as_it_is():
    out = io.StringIO()
    with Progress(Console(file=out, width=80)) as progress:
        progress.sample(3, "a :smile: and [bold]")
    assert "a :smile: and [bold]" in out.getvalue()
