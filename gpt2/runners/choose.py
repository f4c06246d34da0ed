"""Which runner a model gets: chosen once, by what this machine has and by what `gpt2 doctor` measured on it.

The only place that knows all runners. Whether a runner computes rightly is not decided here: the laws test that, and
`gpt2 doctor` checks it on the spot. A runner that it found wrong here is not taken.
"""

import errno
import os
import shutil
import sys
import warnings
from typing import TYPE_CHECKING, NamedTuple

import torch

from gpt2.config import GPT2Config
from gpt2.errors import BadOption, Notice, Unavailable
from gpt2.runners import choices, machine
from gpt2.runners.measure import weight_bytes
from gpt2.runners.runner import Runner, check_mode

if TYPE_CHECKING:
    from gpt2.checkpoint import LanguageModel

_MOST_SLOTS = 64
_MOST_SLOT_BYTES = 2 * 2**30
_FLOATS = ("float32", "bfloat16")
_WORTH_COMPILING = 1.15
_WRONG = "`gpt2 doctor` found that it computes wrongly here"


class OutOfMemory(Unavailable):
    """Weights and slots that do not fit; the message says how much was needed and what would fit."""


class Choice(NamedTuple):
    """A runner, and what became of it.

    name: as runners call themselves. chosen: true for one of all. why: one line. measured: decode tokens/s as
    remembered from an earlier probe; None if there was none. possible: it could run this model here. wrong: it was
    found to compute this model wrongly here.
    """

    name: str
    chosen: bool
    why: str
    measured: float | None
    possible: bool
    wrong: bool = False


def runner(model: "LanguageModel", slots: int, *, compile: bool | None = None, threads: int | None = None) -> Runner:
    """The runner for this model on this machine.

    slots: texts that it can hold at once. compile: None, what is best here; True, torch.compile (on CUDA, a captured
    graph); False, plain PyTorch. threads: of the CPU; default, as many as PyTorch takes. If given, PyTorch takes as
    many from now on.

    Raises OutOfMemory (an Unavailable) if weights and slots do not fit, BadOption for a network in training mode whose
    dropout would act. Warns (Notice) if what `compile` asks for cannot be had; if the chosen runner fails to start, and
    the plainest is taken; and if every runner was found to compute wrongly here.
    """
    if slots < 1:
        raise BadOption(f"slots is {slots}, but a runner has at least 1.")
    if model.weights is None:
        check_mode(model.network)
    if threads is not None:
        torch.set_num_threads(threads)
    found = explain(model, compile=compile, threads=threads)
    chosen = next(choice for choice in found if choice.chosen)
    if compile and chosen.name not in ("compiled", "graph"):
        refused = next((choice.why for choice in found if choice.name in ("compiled", "graph")), "nothing to compile")
        warnings.warn(f"--compile cannot be had here ({refused}); runs on {chosen.name}.", Notice, stacklevel=2)
    plainest = "plain" if model.dtype in _FLOATS else "aten"
    if chosen.wrong:
        warnings.warn(f"{chosen.name} is used, though {_WRONG}, as every other runner.", Notice, stacklevel=2)
    elif compile is False and chosen.name != plainest:
        warnings.warn(f"--no-compile cannot be had here ({_WRONG}); runs on {chosen.name}.", Notice, stacklevel=2)
    try:
        return build(chosen.name, model, slots, threads)
    except OutOfMemory:
        raise
    except (Unavailable, RuntimeError, OSError) as error:
        if chosen.name == plainest or any(choice.wrong for choice in found if choice.name == plainest):
            raise
        said = " ".join(str(error).split())[:200]
        warnings.warn(
            f"The runner {chosen.name} does not start here ({said}); {plainest} is used.", Notice, stacklevel=2
        )
        return build(plainest, model, slots, threads)


def explain(model: "LanguageModel", *, compile: bool | None = None, threads: int | None = None) -> list[Choice]:
    """Every runner there is for this device, the preferred first, with what is chosen and why. Measures nothing."""
    config, dtype, device = model.config, model.dtype, device_of(model)
    measured = choices.remembered(config, dtype, device, threads or torch.get_num_threads())
    obstacles = {name: _obstacle(name, config, dtype, device) for name in _names(dtype, device)}
    possible = [name for name, obstacle in obstacles.items() if obstacle is None]
    wrong = choices.known_wrong(config, dtype, device)
    # Where none is right, one must run all the same: the plainest, which `runner` warns of.
    chosen, why = _choose([name for name in possible if name not in wrong] or possible[-1:], measured, compile, device)
    return [
        Choice(
            name,
            name == chosen,
            obstacle or (_WRONG if name in wrong else why if name == chosen else f"{chosen} is taken: {why}"),
            measured.get(name),
            obstacle is None,
            name in wrong,
        )
        for name, obstacle in obstacles.items()
    ]


def build(name: str, model: "LanguageModel", slots: int, threads: int | None = None) -> Runner:
    """The runner of this name. Raises OutOfMemory, with figures, if it does not fit."""
    device = device_of(model)
    _check_memory(model.config, model.dtype, slots, device, name)
    try:
        return _build(name, model, slots, threads)
    except (MemoryError, RuntimeError, OSError) as error:
        if not _is_out_of_memory(error):
            raise
        raise OutOfMemory(_what_fits(model.config, model.dtype, slots, device, name)) from error


def fitting_slots(config: GPT2Config, dtype: str, device: str | torch.device = "cpu") -> int:
    """How many slots are worth having: 1 to 64, in at most 2 GiB on a CPU and in half the free memory of a GPU."""
    device = torch.device(device)
    free = machine.available_memory(device)
    if device.type == "cuda":
        budget = free // 2
    else:
        left = (free - weight_bytes(config, dtype)) // 2 if free else _MOST_SLOT_BYTES
        budget = min(_MOST_SLOT_BYTES, left)
    return max(1, min(_MOST_SLOTS, budget // slot_bytes(config, dtype)))


def slot_bytes(config: GPT2Config, dtype: str, name: str | None = None) -> int:
    """Bytes of keys and values that a full slot takes in the runner of this name (None: native where it can run)."""
    from gpt2.runners import native

    # Float32 in float32 models and with aten's kernels, bfloat16 otherwise.
    if name is None and dtype not in _FLOATS and native.reason(config, dtype) is None:
        name = "native"
    narrow = dtype == "bfloat16" or (dtype not in _FLOATS and name == "native")
    return 2 * config.n_layer * config.n_positions * config.n_embd * (2 if narrow else 4)


def device_of(model: "LanguageModel") -> torch.device:
    """Where a model runs. One that is packed from its files runs on the CPU, and its network stays unopened."""
    packed = model.weights is not None or model.dtype not in _FLOATS
    return torch.device("cpu") if packed else model.network.device


def _names(dtype: str, device: torch.device) -> tuple[str, ...]:
    """The runners for a width on a device, the preferred first."""
    if dtype not in _FLOATS:
        return ("native", "aten")
    match device.type:
        case "cpu":
            return ("native", "compiled", "plain")
        case "cuda":
            return ("graph", "compiled", "plain")
    return ("plain",)


def _choose(
    possible: list[str], measured: dict[str, float], compile: bool | None, device: torch.device
) -> tuple[str, str]:
    """The runner to take, and why."""
    forced = "graph" if device.type == "cuda" else "compiled"
    if compile and forced in possible:
        return forced, "asked for with --compile"
    plainest = next((name for name in possible if name in ("plain", "aten")), None)
    if compile is False and plainest:
        return plainest, "asked for with --no-compile"
    match possible[0]:
        case "native":
            return "native", "our own kernels for this processor: one pass over the weights for a token"
        case "graph":
            return "graph", "a captured graph spares the GPU the launches"
        case "aten":
            return "aten", "PyTorch's kernels for packed weights"
    if "compiled" not in possible:
        return "plain", "nothing faster is here"
    if "plain" not in possible:
        return "compiled", "nothing else computes rightly here"
    if not {"plain", "compiled"} <= measured.keys():
        return "plain", "compiled was not measured on this machine yet; `gpt2 doctor` does"
    # Starting a compiled step takes time that a small gain does not bring back.
    best = "compiled" if measured["compiled"] > _WORTH_COMPILING * measured["plain"] else "plain"
    return best, f"measured: plain {measured['plain']:.0f}, compiled {measured['compiled']:.0f} tokens/s"


def _obstacle(name: str, config: GPT2Config, dtype: str, device: torch.device) -> str | None:
    """Why this runner cannot run such a model here, in a few words; None: it can."""
    if name == "native":
        from gpt2.runners import native

        return native.reason(config, dtype)
    return _compile_obstacle(device) if name == "compiled" else None


def _compile_obstacle(device: torch.device) -> str | None:
    if device.type == "cuda":
        from importlib.util import find_spec

        return None if find_spec("triton") else "the package triton is not installed"
    names = [os.environ.get("CXX", ""), "g++", "clang++", "c++", "cl" if sys.platform == "win32" else "gcc"]
    return None if any(shutil.which(name) for name in names if name) else "there is no C++ compiler"


def _build(name: str, model: "LanguageModel", slots: int, threads: int | None) -> Runner:
    match name:
        case "native":
            from gpt2.runners.native import NativeRunner

            return NativeRunner(model, slots, threads)
        case "aten":
            from gpt2.runners.aten import AtenRunner

            return AtenRunner(model, slots)
        case "compiled":
            from gpt2.runners.compiled import CompiledRunner

            return CompiledRunner(model.network, slots)
        case "graph":
            from gpt2.runners.graph import GraphRunner

            return GraphRunner(model.network, slots)
        case "plain":
            from gpt2.runners.plain import PlainRunner

            return PlainRunner(model.network, slots)
    raise BadOption(f"There is no runner {name!r}.")


def _held_bytes(config: GPT2Config, dtype: str, name: str) -> int:
    """Bytes of weights that a runner holds: the graph's has the projections twice, as loaded and as it reads them."""
    matrices = config.n_layer * config.n_embd * (4 * config.n_embd + 2 * config.mlp_width)
    return weight_bytes(config, dtype) + (matrices * (2 if dtype == "bfloat16" else 4) if name == "graph" else 0)


def _check_memory(config: GPT2Config, dtype: str, slots: int, device: torch.device, name: str) -> None:
    """Raises OutOfMemory where weights and full slots are more than this process could hold."""
    available = machine.available_memory(device)
    if available and _held_bytes(config, dtype, name) + slots * slot_bytes(config, dtype, name) > available:
        raise OutOfMemory(_what_fits(config, dtype, slots, device, name))


def _what_fits(config: GPT2Config, dtype: str, slots: int, device: torch.device, name: str) -> str:
    """What was needed, what there is, and what would fit."""
    weights, each, available = (
        _held_bytes(config, dtype, name),
        slot_bytes(config, dtype, name),
        machine.available_memory(device),
    )
    texts = "1 text" if slots == 1 else f"{slots} texts at once"
    needed = f"{_size(weights)} of {dtype} weights and {_size(slots * each)} of keys and values for {texts}"
    advice = "a smaller model would fit"
    if (fewer := (available - weights) // each) >= 1 and slots > 1:
        # If even the allocation of what should fit failed, something else holds the memory.
        advice = f"{min(fewer, slots - 1)} at once would fit"
    else:
        for narrower in ("bfloat16", "int8", "int4"):
            total = weight_bytes(config, narrower) + slot_bytes(config, narrower)
            if total < min(available, weights + each):
                advice = f"dtype {narrower} would fit: {_size(total)} with one text"
                break
    return f"Out of memory: {needed} do not fit in the {_size(available)} that {device} has for this; {advice}."


def _is_out_of_memory(error: BaseException) -> bool:
    said = str(error).lower()
    # mmap, which takes the native runner's memory, raises an OSError.
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        "not enough memory" in said or "can't allocate memory" in said or "out of memory" in said
    )


def _size(n_bytes: int) -> str:
    return f"{n_bytes / 1e9:.1f} GB" if n_bytes >= 1e8 else f"{n_bytes / 1e6:.1f} MB"
