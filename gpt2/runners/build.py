"""Builds the native token step from its one C file, with the compiler that a machine has. No torch here.

The wheel's build calls this, and so does `gpt2 doctor` where the package runs from its source folder. The library's
name carries a hash of its source, so that one built from another version is never loaded.
"""

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

SOURCE = Path(__file__).with_name("step.c")

_PROCESSORS = ("x86_64", "AMD64")


def library_name() -> str:
    """File name of the library that belongs to this source."""
    return f"_step_{hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:12]}.so"


def obstacle() -> str | None:
    """Why the step cannot be built here; None if it can."""
    if sys.platform != "linux" or platform.machine() not in _PROCESSORS:
        return f"it is written for x86-64 on Linux, and this is {platform.machine()} on {platform.system()}"
    if compiler() is None:
        return "there is no C compiler (set CC, or install gcc or clang)"
    return None


def compiler() -> str | None:
    """The C compiler: $CC, or the first of cc, gcc and clang that is there."""
    wanted = os.environ.get("CC")
    return wanted if wanted else next((found for name in ("cc", "gcc", "clang") if (found := shutil.which(name))), None)


def build(folder: Path) -> Path:
    """Compiles the step into this folder and returns the library's path.

    Raises OSError, with the compiler's first line if it failed, where it cannot be built.
    """
    if reason := obstacle():
        raise OSError(reason)
    target = folder / library_name()
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        made = Path(temporary) / target.name
        command = [*str(compiler()).split(), "-O3", "-std=gnu11", "-shared", "-fPIC", "-pthread"]
        files = ["-o", str(made), str(SOURCE), "-lm"]
        # GCC 12's partial redundancy elimination moves the int8 sums to memory: half the speed. Clang has no such flag.
        done = subprocess.run([*command, "-fno-tree-pre", *files], capture_output=True, text=True, check=False)
        if done.returncode:
            done = subprocess.run([*command, *files], capture_output=True, text=True, check=False)
        if done.returncode:
            lines = (done.stderr.strip() or "no message").splitlines()
            raise OSError(f"{command[0]} failed: {lines[0][:200]}")
        made.replace(target)
    return target


if __name__ == "__main__":
    print(build(SOURCE.parent))
