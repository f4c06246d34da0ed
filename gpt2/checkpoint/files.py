"""Opens files of tensors: safetensors and PyTorch's pickles, the latter without ever running what they ask for.

Both are mapped into memory rather than read: a tensor costs memory when it is first used, and nothing is copied. The
mapping is private. Writing to a tensor does not touch the file, and a file that is replaced by renaming another over it
(as this package writes, and as the hub's cache does) leaves loaded tensors as they were. A file that some program
overwrites or shortens in place changes or ends under a loaded model; copy the folder first if that can happen.
"""

import json
import os
import pickle
import re
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from gpt2.checkpoint.weights import Stored, canonical_name
from gpt2.errors import BadCheckpoint

_LFS = b"version https://git-lfs"


def read_safetensors(path: Path) -> Iterator[Stored]:
    """The tensors of a safetensors file, mapped; BadCheckpoint for a file that is damaged or cut short."""
    _refuse_pointer(path)
    try:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (it is no dictionary)
                # Masks are not even mapped: GPT-2's own file has 12 MB of them.
                if canonical_name(name) is not None:
                    yield Stored(path, name, file.get_tensor(name))
    except (SafetensorError, OSError) as error:
        raise BadCheckpoint(_cut_short(path) or f"{path} is no readable safetensors file ({error}).") from None


def read_pickle(path: Path) -> Any:
    """What a file that `torch.save` wrote holds, tensors mapped where its format allows.

    Raises BadCheckpoint for a damaged file, and for one that wants anything but tensors and plain data: opening such
    a file as Python does would run code of its maker's choice, so it is not opened at all.
    """
    _refuse_pointer(path)
    try:
        # Files from before PyTorch 1.6 are no zip archives and cannot be mapped.
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        # Every refusal of PyTorch's names the thing that the file wants to call, as "GLOBAL module.name".
        if wanted := re.search(r"GLOBAL ([\w.]+)", str(error)):
            raise BadCheckpoint(
                f"{path} is a pickle that asks to run code ({wanted[1]}), which is refused; "
                "ask for the weights as safetensors, or convert them where you trust the file."
            ) from None
        raise BadCheckpoint(f"{path} is no PyTorch file that can be opened without running code.") from None
    except (RuntimeError, OSError, EOFError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise BadCheckpoint(f"{path} is no readable PyTorch file ({_first_line(error)}).") from None


def read_state(path: Path) -> Iterator[Stored]:
    """The tensors of a `pytorch_model.bin`; errors as `read_pickle`."""
    state = read_pickle(path)
    if not isinstance(state, dict):
        raise BadCheckpoint(f"{path} holds a {type(state).__name__}, but a dictionary of tensors belongs there.")
    yield from stored_tensors(path, state)


def stored_tensors(path: Path, state: dict[Any, Any]) -> Iterator[Stored]:
    """A state dictionary's tensors without the masks; BadCheckpoint for a value that is no tensor."""
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise BadCheckpoint(f"{path}: {name} is a {type(value).__name__}, but a tensor belongs there.")
        if canonical_name(str(name)) is not None:
            yield Stored(path, str(name), value)


def by_our_names(tensors: Iterator[Stored]) -> dict[str, Stored]:
    """The tensors under our names; BadCheckpoint if two of them have the same."""
    found: dict[str, Stored] = {}
    for stored in tensors:
        name = canonical_name(stored.name)
        if name is None:
            continue
        if name in found:
            raise BadCheckpoint(f"{stored} and {found[name]} are the same tensor of a GPT-2; only one can be meant.")
        found[name] = stored
    return found


def _refuse_pointer(path: Path) -> None:
    try:
        with path.open("rb") as file:
            start = file.read(len(_LFS))
    except OSError as error:
        raise BadCheckpoint(f"{path} cannot be read ({error.strerror}).") from None
    if start == _LFS:
        raise BadCheckpoint(f"{path} is a Git LFS pointer and not the weights; fetch them with `git lfs pull`.")


def _cut_short(path: Path) -> str | None:
    """Says which tensor a safetensors file ends in, if it is one that ends too early."""
    size = os.stat(path).st_size  # noqa: PTH116
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 0 < length < 100_000_000:
            return None
        if size < 8 + length:
            return f"{path} is cut short: it ends after {size} bytes, inside its list of tensors; fetch it again."
        try:
            header = json.loads(file.read(length))
            ends = {name: entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"}
            late = [name for name, end in sorted(ends.items(), key=lambda item: item[1]) if 8 + length + end > size]
        except (ValueError, TypeError, KeyError, IndexError, AttributeError):
            return None
    if not late:
        return None
    return (
        f"{path} is cut short: it has {size} of {8 + length + max(ends.values())} bytes, and the tensor {late[0]} "
        "is the first that is not whole; fetch it again."
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
