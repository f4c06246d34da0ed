"""The public face: names are there, listed, lazily imported, and the README tells of every command."""

import re
import subprocess
import sys
from pathlib import Path

import gpt2
from gpt2 import errors
from gpt2.cli import app

ROOT = Path(__file__).resolve().parents[2]


def test_every_public_name_is_there_once_and_in_order():
    assert all(getattr(gpt2, name) is not None for name in gpt2.__all__)
    constants = [name for name in gpt2.__all__ if name.isupper()]
    classes = [name for name in gpt2.__all__ if name[0].isupper() and not name.isupper()]
    functions = [name for name in gpt2.__all__ if name[0].islower()]
    assert gpt2.__all__ == [*sorted(constants), *sorted(classes), *sorted(functions)]
    assert set(gpt2.__all__) <= set(dir(gpt2))


def test_an_unknown_name_is_an_attribute_error():
    assert not hasattr(gpt2, "gpt3")


def test_importing_the_package_imports_no_torch():
    rooms = "gpt2, gpt2.checkpoint, gpt2.finetuning, gpt2.generation, gpt2.runners.build, gpt2.tasks, gpt2.training"
    script = f"import sys, {rooms}; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True)


def test_all_errors_are_one_tree():
    for name in (
        "BadCheckpoint",
        "BadData",
        "BadOption",
        "BadPrompt",
        "BadTokenizer",
        "Busy",
        "ContextOverflow",
        "Unavailable",
    ):
        assert issubclass(getattr(errors, name), gpt2.Error)
        assert getattr(gpt2, name) is getattr(errors, name)


def test_the_readme_tells_of_every_command():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    told = set(re.findall(r"^\| `gpt2 ([a-z]+)", readme, flags=re.MULTILINE))
    assert told == {command.name for command in app.registered_commands} | {
        group.name for group in app.registered_groups
    }


def test_the_readmes_python_runs(capsys):
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for snippet in re.findall(r"^```python\n(.*?)^```", readme, flags=re.MULTILINE | re.DOTALL):
        exec(compile(snippet, "README.md", "exec"), {})
    assert capsys.readouterr().out


def test_the_package_never_speaks_of_another_distribution():
    for path in [*ROOT.glob("gpt2/**/*.py"), ROOT / "README.md", *ROOT.glob("docs/*.md")]:
        assert not re.search(r"pip install ['\"]?gpt2(?!-complete)", path.read_text(encoding="utf-8")), path


def test_no_page_was_left_unfinished():
    for path in [ROOT / "README.md", ROOT / "CHANGELOG.md", *ROOT.glob("docs/*.md")]:
        assert not re.search(r"^\s*[A-Z]{3,}\s*$|FASTSECTION", path.read_text(encoding="utf-8"), re.MULTILINE), path


def test_no_room_imports_the_rooms_above_it():
    """The house of docs/design.md: arrows only point down, and neighbours on a floor do not lean on each other."""
    below_uses = {"errors", "files", "model", "tokenizer", "checkpoint", "generation", "shards", "corpus", "training"}
    allowed = {
        "errors": set(),
        "files": set(),
        "threads": {"errors"},
        "memory": set(),
        "config": {"errors"},
        "cache": {"errors", "config"},
        "model": {"errors", "config", "cache"},
        "tokenizer": {"errors", "files"},
        "checkpoint": {"errors", "files", "config", "cache", "model", "tokenizer"},
        "runners": {"errors", "files", "memory", "config", "cache", "model", "checkpoint"},
        "generation": {"errors", "config", "cache", "model", "tokenizer", "checkpoint", "runners"},
        "doctor": {"errors", "files", "config", "cache", "model", "tokenizer", "checkpoint", "runners"},
        "shards": {"errors", "files", "tokenizer"},
        "corpus": {"errors", "files", "tokenizer", "shards"},
        "training": {
            "errors",
            "files",
            "threads",
            "memory",
            "config",
            "cache",
            "model",
            "tokenizer",
            "checkpoint",
            "shards",
        },
        "tasks": {"errors", "tokenizer", "checkpoint", "generation"},
        "evaluation": below_uses | {"tasks"},
        "finetuning": below_uses | {"tasks"},
        "music": {"errors", "files", "tokenizer", "checkpoint", "generation", "shards"},
    }
    for room, below in allowed.items():
        files = (
            [ROOT / "gpt2" / f"{room}.py"]
            if (ROOT / "gpt2" / f"{room}.py").is_file()
            else (ROOT / "gpt2" / room).glob("*.py")
        )
        for file in files:
            used = set(re.findall(r"(?:from|import) gpt2\.(\w+)", file.read_text(encoding="utf-8")))
            assert used <= below | {room}, file
