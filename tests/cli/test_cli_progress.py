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


def test_what_a_terminal_would_obey_is_replaced_and_nothing_else():
    out = io.StringIO()
    text = "Quoi\u00a0? Non\u202f! \u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645"
    with Progress(Console(file=out, width=80)) as progress:
        progress.note(f"before: \x1b[31mred\x00 \u202eback, and\r\n{text}\tend")
    lost = "\N{REPLACEMENT CHARACTER}"
    assert f"before: {lost}[31mred{lost} {lost}back, and\n{text}" in out.getvalue()
    assert out.getvalue().count(lost) == 3
