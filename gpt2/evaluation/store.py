"""What was scored already: one JSON line per item, so that a run that was stopped goes on where it was.

A file belongs to one model, one width and one row of the table (`path_for`); a line's key names what was scored: the
very token ids, or the prompt and options. So nothing that changed is ever taken for what it was, and two readings
that need the same item share it. Whatever lies here can be deleted. Not safe for threads.
"""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from gpt2.errors import Busy
from gpt2.files import cache_directory

if TYPE_CHECKING:
    from filelock import BaseFileLock

    from gpt2.checkpoint import LanguageModel


class Store:
    """Results by key, in memory and in a file of JSON lines; use it as a context, or `close` it.

    A line that was half written when its process died is dropped, and its item scored again.

    Raises Busy if another process writes the same file.
    """

    def __init__(self, path: Path) -> None:
        from filelock import FileLock, Timeout

        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._lock: BaseFileLock = FileLock(f"{path}.lock")
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise Busy(f"Another process is writing {path}; wait for it, or name another folder.") from None
        self._known: dict[str, dict[str, Any]] = {}
        data = path.read_bytes() if path.exists() else b""
        whole = data.rfind(b"\n") + 1
        for line in data[:whole].splitlines():
            try:
                record = json.loads(line)
                self._known[record["key"]] = record["value"]
            except (ValueError, KeyError, TypeError):
                continue
        self._file: BinaryIO = path.open("ab")
        if whole < len(data):
            self._file.truncate(whole)

    def done(self, key: str) -> dict[str, Any] | None:
        """What was put under this key, if anything."""
        return self._known.get(key)

    def put(self, key: str, value: dict[str, Any]) -> None:
        """Keeps a result; it is in the system's hands before this returns, so that a kill loses none before it."""
        self._known[key] = value
        line = json.dumps({"key": key, "value": value}, separators=(",", ":"))
        self._file.write(line.encode() + b"\n")
        self._file.flush()

    def __len__(self) -> int:
        return len(self._known)

    def __enter__(self) -> "Store":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file and gives its lock back."""
        self._file.close()
        self._lock.release()


def key_of(*parts: Iterable[int] | str) -> str:
    """A key for token ids and words: equal only for the same ones in the same order."""
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        data = part.encode() if isinstance(part, str) else ",".join(map(str, part)).encode()
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()


def model_fingerprint(model: "LanguageModel") -> str:
    """SHA-256 (hex) of a model's numbers, shape and vocabulary; where its files lie has no part in it.

    Kept with the model, since it reads every weight once. A network that is changed afterwards must clear
    `model.memo`.
    """
    import torch

    known = model.memo.get("fingerprint")
    if isinstance(known, str):
        return known
    digest = hashlib.sha256()
    shape = json.dumps(model.config.to_dict(), sort_keys=True, default=str)
    digest.update(f"{shape} {model.tokenizer.fingerprint()}".encode())
    tensors = model.network.state_dict().items() if model.weights is None else model.weights.read()
    for name, tensor in tensors:
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    model.memo["fingerprint"] = digest.hexdigest()
    return digest.hexdigest()


def path_for(model: "LanguageModel", name: str, folder: Path | None = None) -> Path:
    """The file of a model's results in one row (or several of that name), under `folder` (default: the cache)."""
    base = folder if folder is not None else cache_directory() / "scores"
    return base / f"{model_fingerprint(model)[:16]}-{model.dtype}" / f"{name}.jsonl"
