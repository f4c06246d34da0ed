"""Packed weights as a disposable cache: made once for a checkpoint and a layout, then mapped by every process.

A runner says how it wants the weights to lie (a `Layout`); `packed` gives it the tensors. A file of the cache is made
tensor by tensor, so that a model larger than the memory can be packed, and is never half-written. It is used only if it
was made from exactly these files of the checkpoint, and if its checksum is right; otherwise it is made again. Models
that were made in memory, and machines without a place to write, pack in memory. This file knows no arithmetic.
"""

import contextlib
import hashlib
import json
import os
import re
import struct
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import torch
from torch import Tensor

from gpt2.checkpoint import LanguageModel
from gpt2.errors import Notice
from gpt2.files import cache_directory
from gpt2.runners import calibrate, quantise
from gpt2.runners.quantise import Matrix


@dataclass(frozen=True, slots=True)
class Layout:
    """How a runner wants weights to lie.

    key: part of the file's name, such as "native-int8". It says everything that `pack` depends on beside its source
        file, whose changes are noticed.
    pack: is given the name of one of the checkpoint's tensors (`h.0.attn.c_attn.weight`) and the tensor, bfloat16 in a
        bfloat16 model; or, in an int8 or int4 model, what `calibrate.quantised` makes of it. Gives the
        packed tensors that are made of it, each with a name of its own, on the CPU. It must not change or keep what
        it is given.
    """

    key: str
    pack: Callable[[str, Tensor | Matrix], Iterable[tuple[str, Tensor]]]


MOST_BYTES = 16 * 2**30
"""Beyond this the folder's oldest files are deleted."""

# Names of our own files: nothing else in the folder is touched.
_OURS = re.compile(r"([0-9a-f]{16})-([0-9a-f]{16})-[\w.-]+\.safetensors")
_TEMPORARY = ".gpt2-packed-"

_ALIGNMENT = 64
_PADDING = "padding."
_CHECKSUM = "checksum"
_ROWS, _COLUMNS = 512, 1024  # of words that are summed at once
_DTYPES = {
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


def packed(model: LanguageModel, layout: Layout) -> dict[str, Tensor]:
    """The model's weights in this layout. Tensors of the cache are mapped, aligned to 64 bytes, and not to be changed.

    Raises BadCheckpoint if a value of the weights, which are read when they are packed, is not finite. Warns (Notice)
    where the cache cannot be written.
    """
    if model.weights is None:
        return _in_memory(model, model.network.state_dict().items(), layout)
    path = _path(model, layout)
    found = _open(path)
    if found is None:
        try:
            _write(path, model, layout)
            found = _open(path)
            reason = "what was written there reads back differently"
        except OSError as error:
            reason = error.strerror or str(error)
        if found is None:
            warnings.warn(
                f"{path.parent} cannot hold the packed weights ({reason}), so every start packs them again; "
                "GPT2_CACHE names another folder.",
                Notice,
                stacklevel=2,
            )
            return _in_memory(model, model.weights.read(), layout)
        _tidy(path)
    return found


def fingerprint(model: LanguageModel) -> str:
    """Names the files that a model was loaded from, as they were then; equal only if nothing about them changed.

    The half before the dash names the place, the other half what lay there (and the code that quantises it).
    Raises ValueError for a model that was made in memory.
    """
    if model.weights is None or model.path is None:
        raise ValueError("a model made in memory has no files")
    place = hashlib.sha256(os.fsencode(model.path.resolve())).hexdigest()[:16]
    state = hashlib.sha256(f"{model.weights.stamp} {_arithmetic()}".encode()).hexdigest()[:16]
    return f"{place}-{state}"


def _path(model: LanguageModel, layout: Layout) -> Path:
    return cache_directory() / "packed" / f"{fingerprint(model)}-{layout.key}-{_code(layout)}.safetensors"


def _code(layout: Layout) -> str:
    return _source(layout.pack.__code__.co_filename)


def _arithmetic() -> str:
    return " ".join(_source(module.__file__ or "") for module in (quantise, calibrate))


def _source(file: str) -> str:
    """Names a source file as it is, so that a file of the cache holds what this very code would make."""
    try:
        return hashlib.sha256(Path(file).read_bytes()).hexdigest()[:8]
    except OSError:  # a package in an archive does not change
        return "0"


def _in_memory(model: LanguageModel, tensors: Iterable[tuple[str, Tensor]], layout: Layout) -> dict[str, Tensor]:
    out: dict[str, Tensor] = {}
    for name, found in _as_run(model, ((name, tensor.detach().cpu()) for name, tensor in tensors)):
        for target, made in layout.pack(name, found):
            # What a layout takes as it lies would keep the checkpoint's mapping, or change with the network.
            out[target] = made.clone() if isinstance(found, Tensor) and _same_memory(made, found) else made
    return out


def _as_run(model: LanguageModel, tensors: Iterable[tuple[str, Tensor]]) -> Iterable[tuple[str, Tensor | Matrix]]:
    if model.dtype in ("int8", "int4"):
        return calibrate.quantised(tensors, model.config, model.dtype)
    # All of them, as the network of such a model has them.
    return ((name, tensor.bfloat16() if model.dtype == "bfloat16" else tensor) for name, tensor in tensors)


def _same_memory(first: Tensor, second: Tensor) -> bool:
    return first.untyped_storage().data_ptr() == second.untyped_storage().data_ptr()


def _write(path: Path, model: LanguageModel, layout: Layout) -> None:
    """Packs into a file, under a temporary name until it is whole. Raises OSError."""
    assert model.weights is not None
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=_TEMPORARY, suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            writer = _Writer(file, room=(1 << 10) * (len(model.weights.names) + 4))
            for source, found in _as_run(model, model.weights.read(release=True)):
                for target, made in layout.pack(source, found):
                    writer.add(target, made)
            writer.finish()
        # No fsync: what a crash leaves half on the disk fails its checksum and is made again.
        Path(name).replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            Path(name).unlink()
        raise


class _Writer:
    """A safetensors file written front to back, its header last: only then is it known what is in it.

    Every tensor begins at a multiple of 64 bytes (the format allows no holes, so `padding.N` fills them), and the last
    one makes the sum of all 8-byte words of the file, wrapped around, 0, and that of each times its place too.
    """

    def __init__(self, file: IO[bytes], room: int) -> None:
        self._file = file
        self._start = -(-room // _ALIGNMENT) * _ALIGNMENT
        self._offset = 0
        self._sum = self._weighted = 0
        self._entries: dict[str, object] = {}
        file.seek(self._start)

    def add(self, name: str, tensor: Tensor) -> None:
        self._put(name, tensor)
        if rest := -self._offset % _ALIGNMENT:
            self._put(f"{_PADDING}{len(self._entries)}", torch.zeros(rest, dtype=torch.uint8))

    def finish(self) -> None:
        entry = {"dtype": "I64", "shape": [2], "data_offsets": [self._offset, self._offset + 16]}
        header = json.dumps(self._entries | {_CHECKSUM: entry}, separators=(",", ":")).encode()
        assert len(header) <= self._start - 8, "more packed tensors than the header has room for"
        start = struct.pack("<Q", self._start - 8) + header.ljust(self._start - 8)
        self._count(torch.frombuffer(bytearray(start), dtype=torch.uint8), 0)
        # Two words a and b at the places n and n + 1, with a + b = -sum and n a + (n + 1) b = -weighted.
        last = (self._start + self._offset) // 8 * self._sum - self._weighted
        self._file.write(struct.pack("<QQ", (-self._sum - last) % 2**64, last % 2**64))
        self._file.seek(0)
        self._file.write(start)

    def _put(self, name: str, tensor: Tensor) -> None:
        data = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
        self._entries[name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [self._offset, self._offset + len(data)],
        }
        # Every piece but padding, which is zeros, begins with a word.
        self._count(data, (self._start + self._offset) // 8)
        self._offset += len(data)
        self._file.write(data.numpy().data)

    def _count(self, data: Tensor, place: int) -> None:
        plain, weighted = _sums(data, place)
        self._sum += plain
        self._weighted += weighted


def _sums(data: Tensor, place: int) -> tuple[int, int]:
    """The sum of a tensor of bytes as 8-byte words, and that of each word times its place in the file.

    place: of the first word. The last word is filled up with zeros. Both sums are right but for multiples of 2^64.
    """
    whole = len(data) // 8 * 8
    words = (data[:whole].clone() if data.data_ptr() % 8 else data[:whole]).view(torch.int64)
    plain = int.from_bytes(bytes(data[whole:].tolist()), "little")
    weighted = plain * (place + len(words))
    # Sums of rows and of columns, which stay in the processor's cache between the two, hold all that is needed.
    for piece in torch.split(words, _ROWS * _COLUMNS):
        square = len(piece) // _COLUMNS * _COLUMNS
        for grid in (piece[:square].view(-1, _COLUMNS), piece[square:].view(1, -1)):
            by_row, by_column = grid.sum(1), grid.sum(0)
            total = int(by_row.sum())
            plain += total
            weighted += place * total + grid.shape[1] * _by_place(by_row) + _by_place(by_column)
            place += grid.numel()
    return plain, weighted


def _by_place(words: Tensor) -> int:
    return int((words * torch.arange(len(words))).sum())


def _open(path: Path) -> dict[str, Tensor] | None:
    """The tensors of a file of the cache, mapped; None for one that is not there, not whole or not what was written."""
    try:
        size = path.stat().st_size
        if size % 8 or size < 32:
            return None
        # Private: pages are shared with every other process all the same, as nobody writes to them.
        data = torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8)
        if any(total % 2**64 for total in _sums(data, 0)):
            return None
        start = 8 + int.from_bytes(bytes(data[:8].tolist()), "little")
        header = json.loads(bytes(data[8:start].numpy()))
        tensors = {}
        for name, entry in header.items():
            if name != _CHECKSUM and not name.startswith(_PADDING):
                first, last = entry["data_offsets"]
                values = data[start + first : start + last].view(_DTYPES[entry["dtype"]])
                tensors[name] = values.view(entry["shape"])
    except (OSError, RuntimeError, ValueError, KeyError, TypeError, AttributeError):
        return None
    # The time of a file is when it was last used.
    with contextlib.suppress(OSError):
        os.utime(path)
    return tensors


def _tidy(path: Path) -> None:
    """Deletes what the checkpoint no longer is, what a killed process left, and the oldest beyond `MOST_BYTES`.

    Of our own files only: the folder may be one that others keep things in.
    """
    place, state = path.name.split("-")[:2]
    kept: list[tuple[float, int, Path]] = []
    for file in path.parent.iterdir():
        with contextlib.suppress(OSError):
            stat, ours = file.stat(), _OURS.fullmatch(file.name)
            stale = ours and ours[1] == place and ours[2] != state
            temporary = file.name.startswith(_TEMPORARY) and file.suffix == ".tmp"
            left = temporary and stat.st_mtime < time.time() - 24 * 3600
            if stale or left:
                file.unlink()
            elif ours and file != path:
                kept.append((stat.st_mtime, stat.st_size, file))
    room = MOST_BYTES - path.stat().st_size - sum(size for _, size, _ in kept)
    for _, size, file in sorted(kept):
        if room < 0:
            with contextlib.suppress(OSError):
                file.unlink()
                room += size
