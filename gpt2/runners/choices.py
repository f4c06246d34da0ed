"""What was found on this machine, remembered in the disposable cache: decode tokens/s of each runner, and liars.

One small JSON file. What is damaged or was measured on another machine, or with another PyTorch or another version of
this package, is as if it were not there. It decides nothing: `choose.py` does.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TypeGuard

import torch
from filelock import FileLock, Timeout

from gpt2 import __version__
from gpt2.config import GPT2Config
from gpt2.files import cache_directory, write_atomically
from gpt2.runners import machine

# The oldest measurements make room for new ones.
_MOST_ENTRIES = 200


def choices_file() -> Path:
    """Where the measurements lie."""
    return cache_directory() / "choices.json"


def remembered(config: GPT2Config, dtype: str, device: torch.device, threads: int) -> dict[str, float]:
    """Decode tokens/s by the runner's name, as measured here for this shape; empty if nothing was."""
    entry = _read().get(_key(config, dtype, device, threads), {})
    return {name: float(rate) for name, rate in entry.items() if _is_rate(rate)}


def known_wrong(config: GPT2Config, dtype: str, device: torch.device) -> set[str]:
    """Names of runners that were found to compute this shape wrongly here, with whatever number of threads."""
    return {name for name, right in _read().get(_key(config, dtype, device, None), {}).items() if right is False}


def remember(config: GPT2Config, dtype: str, device: torch.device, threads: int, rates: Mapping[str, float]) -> None:
    """Puts measurements beside what is there. A folder that cannot be written is no error: they are made again."""
    _put(_key(config, dtype, device, threads), {name: rate for name, rate in rates.items() if _is_rate(rate)})


def remember_verdicts(config: GPT2Config, dtype: str, device: torch.device, right: Mapping[str, bool]) -> None:
    """Whether runners compute rightly, by name: instead of what was known of these, and beside what is of others."""
    _put(_key(config, dtype, device, None), right)


def _put(key: str, found: Mapping[str, float]) -> None:
    path = choices_file()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Without the lock, of two writers at once one would undo the other's entry.
        with FileLock(f"{path}.lock", timeout=5):
            entries = _read()
            entries[key] = {**entries.pop(key, {}), **found}
            newest = dict(list(entries.items())[-_MOST_ENTRIES:])
            write_atomically(path, json.dumps(newest, indent=1).encode())
    except (OSError, Timeout):
        return


def _read() -> dict[str, dict[str, object]]:
    try:
        data = json.loads(choices_file().read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(data, dict):
        return {}
    return {
        key: {name: found for name, found in entry.items() if isinstance(found, bool) or _is_rate(found)}
        for key, entry in data.items()
        if isinstance(entry, dict)
    }


def _key(config: GPT2Config, dtype: str, device: torch.device, threads: int | None) -> str:
    if device.type == "cuda":
        where = torch.cuda.get_device_name(device)
    else:
        where = f"{machine.processor()}, {machine.cores()} cores, {device.type}"
    # Verdicts hold for any number of threads.
    where += "" if threads is None else f", {threads} threads"
    shape = (
        f"{config.n_layer} layers of {config.n_embd}, {config.n_head} heads, mlp {config.mlp_width}, "
        f"window {config.n_positions}, vocabulary {config.vocab_size}"
    )
    return f"{where}; {shape}, {dtype}; torch {torch.__version__}, gpt2-complete {__version__}"


def _is_rate(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value > 0
