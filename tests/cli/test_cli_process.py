"""The command as a process: closed streams, full disks, Ctrl-C at any moment."""

import os
import signal
import subprocess
import sys
import time

import pytest

GPT2 = f"{sys.executable} -m gpt2"


def shell(command):
    return subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False, timeout=120)


@pytest.mark.skipif(os.name != "posix", reason="a shell as POSIX has it")
@pytest.mark.parametrize(
    ("command", "code", "error"),
    [
        (f"{GPT2} tokenize 'a b' >&-", 0, ""),
        (f"{GPT2} nope >&-", 2, "gpt2: No such command 'nope'. See `gpt2 --help`.\n"),
        (f"{GPT2} nope 2>&-", 2, ""),
        (f"{GPT2} tokenize - <&-", 2, "gpt2: Standard input is closed, so there is nothing to read for `-`.\n"),
        (f"{GPT2} tokenize 'a b' >&- 2>&- <&-", 0, ""),
    ],
)
def test_closed_streams(command, code, error):
    done = shell(command)
    assert (done.returncode, done.stderr) == (code, error)
    assert done.stdout == ""


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")  # noqa: PTH110
def test_a_full_disk_is_said_once():
    done = shell(f"env -u PYTHONUNBUFFERED {GPT2} tokenize 'a b' --json >/dev/full")
    assert (done.returncode, done.stderr) == (2, "gpt2: No space left on device.\n")


@pytest.mark.skipif(os.name != "posix", reason="signals as POSIX has them")
@pytest.mark.parametrize("when", ["import of typer", "import of a command", "building the commands"])
def test_ctrl_c_before_a_command_runs_is_130_and_silent(when):
    script = {
        "import of typer": "sys.meta_path.insert(0, Stop('typer'))",
        "import of a command": "sys.meta_path.insert(0, Stop('gpt2.cli.train'))",
        "building the commands": "import typer.main; typer.main.get_command = interrupted",
    }[when]
    script = f"""
import os, signal, sys
def interrupted(*_):
    signal.raise_signal(signal.SIGINT)
class Stop:
    def __init__(self, name):
        self.name = name
    def find_spec(self, name, *_):
        if name == self.name:
            interrupted()
{script}
from gpt2.cli import main
main(["--version"])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


@pytest.mark.skipif(os.name != "posix", reason="signals as POSIX has them")
def test_ctrl_c_from_outside(model_path):
    command = [sys.executable, "-m", "gpt2", "generate", "ab", "--model", model_path, "--max-tokens", "1000000"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.read(2) == "ab"  # it is at work
        time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
        assert "Traceback" not in process.stderr.read()
