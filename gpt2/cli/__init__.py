"""The command `gpt2`: one file per command, none of which imports PyTorch before it runs.

Exit codes: 0; 2 for a mistake the caller can mend, in one line on stderr; 1 for ours; 130 after Ctrl-C (typer's).
"""

import difflib
import io
import os
import re
import sys
import warnings
from collections.abc import Sequence
from typing import Annotated

from gpt2.errors import Error, Notice
from gpt2.memory import no_room

try:
    import typer

    from gpt2.cli import (
        bench,
        convert,
        corpus,
        doctor,
        finetune,
        generate,
        models,
        music,
        next_words,
        paper,
        plan,
        tokenize,
        tokenizer,
        train,
    )
    from gpt2.cli import eval as evaluate
except KeyboardInterrupt:
    # Ctrl-C as early as this, before `run` could catch it, is no reason for a traceback either.
    raise SystemExit(130) from None

# Characters of somebody else's message; a compiler's has thousands of lines.
_LONGEST = 300
# How typer's library says what is wrong with a value, and how we do.
_PLAINER = (
    (": Value error, ", ": "),
    ("Input should be a valid integer, unable to parse string as an integer", "it must be a whole number"),
    ("Input should be a valid number, unable to parse string as a number", "it must be a number"),
    ("Input should be greater than or equal to ", "it must be at least "),
    ("Input should be less than or equal to ", "it must be at most "),
)

app = typer.Typer(
    name="gpt2",
    help="GPT-2, complete: text, tokens, training. `gpt2 COMMAND --help` tells more; `--debug` shows tracebacks.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
app.command("generate")(generate.command)
app.command("next")(next_words.command)
app.command("tokenize")(tokenize.command)
app.add_typer(tokenizer.app, name="tokenizer")
app.command("models")(models.command)
app.command("convert")(convert.command)
app.add_typer(corpus.app, name="corpus")
app.command("train")(train.command)
app.command("finetune")(finetune.command)
app.command("plan")(plan.command)
app.add_typer(music.app, name="music")
app.command("paper")(paper.command)
app.command("eval")(evaluate.command)
app.command("doctor")(doctor.command)
app.command("bench")(bench.command)


def _show_version(wanted: bool) -> None:
    if wanted:
        from gpt2 import __version__

        print(f"gpt2-complete {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print it.")
    ] = False,
) -> None:
    pass


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line and exits with its code."""
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: Sequence[str]) -> int:
    """Runs the command line; returns the exit code."""
    arguments, debug = _take_debug(arguments)
    _replace_closed_streams()
    for stream in (sys.stdout, sys.stderr):
        # A terminal shows what its encoding can, and a replaced character beats a crash; files and pipes get UTF-8.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding=None if stream.isatty() else "utf-8", errors="replace")
    with warnings.catch_warnings():
        if not debug:
            warnings.simplefilter("ignore")
        warnings.simplefilter("always", Notice)
        warnings.showwarning = lambda message, category, *_: _say(
            f"note: {message}" if issubclass(category, Notice) else f"{category.__name__}: {message}"
        )
        try:
            code = typer.main.get_command(app).main(list(arguments), prog_name="gpt2", standalone_mode=False)
            sys.stdout.flush()
            return code if isinstance(code, int) else 0
        except KeyboardInterrupt:
            return 130
        except BrokenPipeError:
            # Whoever read our output has gone.
            _give_up_output()
            return 0
        except SystemExit as end:
            if isinstance(end.__context__, BrokenPipeError):
                # The library under typer ends so; to the doctor's callers its 1 would say that something is wrong.
                _give_up_output()
                return 0
            raise
        except Exception as error:
            return _failed(error, debug)


def _replace_closed_streams() -> None:
    """Whoever closes stdout or stderr (`>&-`) wants nothing from it; Python then has None there."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: PTH123, SIM115 (it stays open)


def _give_up_output() -> None:
    """What is still to be written goes nowhere: flushing at exit must not fail once more."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _failed(error: Exception, debug: bool) -> int:
    """Says what went wrong; returns the exit code."""
    if debug and not hasattr(error, "format_message"):
        raise error
    if isinstance(error, Error):
        _say(str(error))
        return 2
    if type(error).__name__ == "NoArgsIsHelpError":
        print(error, file=sys.stderr)
        return 2
    if hasattr(error, "format_message"):
        # Usage errors, whichever click typer brings with it.
        if isinstance(near := getattr(error, "possibilities", None), list):
            # Names that have little in common with a mistyped one are no help.
            error.possibilities = difflib.get_close_matches(getattr(error, "option_name", ""), near, cutoff=0.8) or near  # type: ignore[attr-defined]
        said = error.format_message().rstrip(".")
        for theirs, ours in _PLAINER:
            said = re.sub(theirs, ours, said)
        _say(f"{said}. See `{_command(error)} --help`.")
        return 2
    if isinstance(error, OSError) and error.strerror:
        _say(f"{error.filename}: {error.strerror}." if error.filename is not None else f"{error.strerror}.")
        return 2
    if no_room(error):
        _say("There is not enough memory for this; close other programs, or take a smaller model, --dtype or batch.")
        return 2
    said = " ".join(str(error)[: 2 * _LONGEST].split()) or "no message"
    said = said if len(said) <= _LONGEST else f"{said[:_LONGEST]}…"
    _say(f"{type(error).__name__}: {said} (our fault; --debug shows where)")
    return 1


def _command(error: Exception) -> str:
    context = getattr(error, "ctx", None)
    return context.command_path if context is not None else "gpt2"


def _take_debug(arguments: Sequence[str]) -> tuple[list[str], bool]:
    """The arguments without `--debug`, wherever it stands before a bare `--`, and whether it was there."""
    arguments = list(arguments)
    end = arguments.index("--") if "--" in arguments else len(arguments)
    head = [argument for argument in arguments[:end] if argument != "--debug"]
    return head + arguments[end:], len(head) < end


def _say(text: str) -> None:
    try:
        sys.stdout.flush()
    except OSError:
        # A full disk, say: that must not keep the message from being told.
        _give_up_output()
    print(f"gpt2: {text}", file=sys.stderr, flush=True)
