"""Writing files so that nobody ever sees half of one: a temporary name beside the target, fsync, rename.

Also the one place that names the disposable cache: whatever lies there can be deleted at any time.
"""

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def cache_directory() -> Path:
    """The folder of what can be made again: packed weights, compiled steps, probes. Nothing is created here.

    GPT2_CACHE names it itself; otherwise it is `gpt2-complete` in the system's own folder for such things.
    """
    named = os.environ.get("GPT2_CACHE")
    if named:
        return Path(named).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    # The XDG rules say that a relative path there is to be ignored.
    if base and Path(base).is_absolute():
        return Path(base) / "gpt2-complete"
    if sys.platform == "win32" and (local := os.environ.get("LOCALAPPDATA")):
        return Path(local) / "gpt2-complete"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "gpt2-complete"
    return Path.home() / ".cache" / "gpt2-complete"


def write_atomically(path: Path, data: bytes) -> None:
    """Puts `data` at `path`, whole or not at all; a file that was there is replaced."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes files that only their owner reads; what we write is as readable as any other file.
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_directory(path.parent)


def check_writable(folder: Path) -> None:
    """Raises OSError if nothing can be written into a folder, which need not exist yet and is not made.

    The error's `filename` is the folder that was tried: this one, or the nearest above it that exists.
    """
    above = folder.absolute()
    while not above.exists():
        above = above.parent
    try:
        # Only trying tells: permissions, read-only disks and full ones have nothing else in common.
        tempfile.TemporaryDirectory(prefix=".gpt2-", suffix=".tmp", dir=above).cleanup()
    except OSError as error:
        error.filename = str(above)
        raise


@contextmanager
def new_directory(path: Path) -> Iterator[Path]:
    """Yields an empty folder that becomes `path` when the block ends well, and vanishes when it does not.

    A folder that was at `path` is moved aside for the moment of the exchange, and comes back if that fails.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
    old = path.with_name(f".{path.name}.old.tmp")
    try:
        mode = 0o777 & ~_umask()
        temporary.chmod(mode)
        yield temporary
        for file in [*temporary.rglob("*"), temporary]:
            if file.is_dir():
                _sync_directory(file)
            else:
                # Some writers make files that only their owner reads; and Windows syncs only what is open for writing.
                file.chmod(mode & 0o666)
                with file.open("r+b") as stream:
                    os.fsync(stream.fileno())
        if path.exists():
            shutil.rmtree(old, ignore_errors=True)
            path.rename(old)
        temporary.rename(path)
    except BaseException:
        if old.exists() and not path.exists():
            old.rename(path)
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    shutil.rmtree(old, ignore_errors=True)
    _sync_directory(path.parent)


def is_temporary(path: Path) -> bool:
    """Whether this is the name of something half-written, by one of the functions above."""
    return path.name.startswith(".") and path.name.endswith(".tmp")


def remove_temporary(folder: Path) -> None:
    """Deletes what a process that was killed left half-written in a folder, where nobody may be writing now."""
    for path in [path for path in folder.glob(".*.tmp") if is_temporary(path)]:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _umask() -> int:
    # The only way to read the umask is to set it.
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sync_directory(path: Path) -> None:
    # Windows cannot open a folder, and renames there need no such care.
    if os.name == "posix":
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
