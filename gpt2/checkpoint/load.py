"""What a model's name means, and how to read what it means. The one way in for everything that runs a model.

It opens no weights itself: each format has a file of its own.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

from gpt2.checkpoint import huggingface
from gpt2.checkpoint.language_model import LanguageModel
from gpt2.config import SIZES
from gpt2.errors import BadCheckpoint, BadOption, Unavailable

if TYPE_CHECKING:
    import torch

    from gpt2.checkpoint.weights import Weights
    from gpt2.model import GPT2
    from gpt2.tokenizer import Tokenizer

DEFAULT_MODEL = "bookworm"
"""The model that ships in the package, and that is used where none is named."""

QUANTISED = ("int8", "int4")
DTYPES = ("float32", "bfloat16", *QUANTISED)

_SHIPPED = Path(__file__).resolve().parent.parent / "models"

# owner/name as the hub spells it. Anything else with a slash in it can only be a path.
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")

_LLMC_MAGIC = (20240326).to_bytes(4, "little")


def shipped() -> list[str]:
    """Names of the models that lie in the package itself and need no network."""
    if not _SHIPPED.is_dir():
        return []
    return sorted(folder.name for folder in _SHIPPED.iterdir() if (folder / huggingface.CONFIG).is_file())


def load(
    name: str | Path = DEFAULT_MODEL,
    *,
    adapter: str | Path | None = None,
    revision: str | None = None,
    device: str = "cpu",
    dtype: str | torch.dtype = "float32",
) -> LanguageModel:
    """A model that is ready to run: in evaluation mode, without gradients.

    name: see `locate`; a folder with a LoRA adapter means that adapter on the base that it names. adapter: such a
    folder (or the run that left it), to be added to the model of this name. revision: a branch, tag or commit of a hub
    name. device: as PyTorch names them ("cpu", "cuda", "cuda:1", "mps"). dtype: "float32", "bfloat16", "int8" or
    "int4", whatever the file has.

    On the CPU, weights that have the dtype already stay mapped to their file: a folder of any size is open at once,
    and replacing it (by renaming, as every writer here does) leaves the loaded model as it was.

    bfloat16 on the CPU, int8 and int4 (which run nowhere else) may be computed from the weights in the files: changes
    to `.network` (bfloat16, or float32 for int8 and int4; opened when it is asked for) may not be seen. Of the weights
    only names and shapes are read now. What is not finite among their values is found when they are packed, which is
    at the first use after the files changed, or when the network is opened.

    Raises Unavailable for a name or a device that is not to be had here, BadCheckpoint for files that are damaged or
    contradict each other, BadOption for a dtype that does not exist.
    """
    import torch

    wanted, target = _dtype(dtype), find_device(device)
    if wanted in QUANTISED and target.type != "cpu":
        raise BadOption(f"dtype {wanted} runs on the CPU only; on {device}, use float32 or bfloat16.")
    path, base = _adapted(locate(name, revision), adapter)
    # Before the files are opened: should they be replaced meanwhile, what is read is not taken for the older.
    stamp = _stamp(path, base)
    weights, tokenizer = _open(path, base)
    width = torch.bfloat16 if wanted == "bfloat16" else torch.float32
    if wanted == "float32" or target.type != "cpu":
        network = weights.network(width)
        return LanguageModel(network.requires_grad_(False).eval().to(target), tokenizer, str(name), path)
    weights.stamp = stamp

    def network_now() -> GPT2:
        if _stamp(path, base) != stamp:
            raise BadCheckpoint(f"{path} has changed since this model was loaded; load it again.")
        # A mapping of its own, so that whoever changes the network does not change what is packed.
        return _open(path, base)[0].network(width).requires_grad_(False).eval()

    return LanguageModel(network_now, tokenizer, str(name), path, config=weights.config, dtype=wanted, weights=weights)


def locate(name: str | Path, revision: str | None = None, *, weights: bool = True) -> Path:
    """The file or folder that a model's name means, fetched from the hub if need be (weights=False: all but those).

    In this order: a model that ships in the package; `gpt2`, `gpt2-medium`, `gpt2-large` or `gpt2-xl` (OpenAI's, on
    the hub as openai-community/...); a path that exists; `owner/name` on the hub. A training run's folder means its
    latest checkpoint, a fine-tuning's the one with the lowest validation loss.

    Raises Unavailable for a name that is none of these or that cannot be fetched, BadCheckpoint for a path with
    nothing there, BadOption for a revision of something that has none.
    """
    text = str(name)
    is_name = isinstance(name, str)
    if is_name and text in SIZES:
        return _fetch(f"openai-community/{text}", revision, weights)
    path = _SHIPPED / text if is_name and text in shipped() else Path(text).expanduser()
    if text and path.exists():
        if revision is not None:
            raise BadOption(f"revision {revision!r} is a version on the hub, but {text} is on this machine.")
        return _latest(path)
    if is_name and _HUB_NAME.fullmatch(text):
        return _fetch(text, revision, weights)
    if not is_name or "/" in text or "\\" in text or text.startswith((".", "~")):
        raise BadCheckpoint(f"There is no file or folder {text}.")
    if text == DEFAULT_MODEL:
        raise Unavailable(
            f"The model {DEFAULT_MODEL} that ships with this package is missing from {_SHIPPED}; install it again."
        )
    known = [*shipped(), *SIZES]
    raise Unavailable(
        f"There is no model {text!r}; known names are {', '.join(known)}. "
        "Otherwise give a path (with a slash, such as ./folder) or owner/name on the hub."
    )


def _fetch(name: str, revision: str | None, weights: bool) -> Path:
    from gpt2.checkpoint.hub import fetch

    return fetch(name, revision, weights=weights)


def _latest(path: Path) -> Path:
    """A run folder's newest checkpoint, a fine-tuning's best; any other path as it is."""
    checkpoints = path / "checkpoints"
    if not checkpoints.is_dir() or (path / huggingface.CONFIG).is_file():
        return path
    # A fine-tuning goes on until it learns by heart: its last weights are seldom the ones that are wanted.
    pointer = path / ("best" if (path / "best").is_file() and _is_finetuning(path) else "latest")
    if not pointer.is_file():
        raise BadCheckpoint(f"{path} is a training run without a checkpoint so far: it has no file `latest`.")
    step = pointer.read_text(encoding="utf-8").strip()
    if step in ("", "..") or Path(step).name != step or not (checkpoints / step).is_dir():
        raise BadCheckpoint(f"{pointer} names {step!r}, which is no folder in {checkpoints}.")
    return checkpoints / step


def _is_finetuning(path: Path) -> bool:
    try:
        run = tomllib.loads((path / "recipe.toml").read_text(encoding="utf-8")).get("run")
    except (OSError, ValueError):
        return False
    return isinstance(run, dict) and "finetune" in run


def _adapted(path: Path, adapter: str | Path | None) -> tuple[Path, Path | None]:
    """What is to be opened, and the base if that is an adapter. Raises BadCheckpoint."""
    from gpt2.checkpoint.adapter import is_adapter, read_adapter

    if adapter is not None:
        found = locate(adapter)
        if not is_adapter(found):
            raise BadCheckpoint(f"{found} is no adapter: it has no adapter_config.json, or is a model of its own.")
        if is_adapter(path):
            raise BadCheckpoint(f"{path} is an adapter itself; the base of another must be a whole model.")
        return found, path
    if not is_adapter(path):
        return path, None
    named = read_adapter(path).base
    if not named:
        raise BadCheckpoint(f"{path} does not name its base model; give both: load(base, adapter=...).")
    try:
        base = locate(named)
    except (BadCheckpoint, Unavailable) as error:
        raise type(error)(
            f"{path} is an adapter for {named}. {error} If that has moved, write its new place into the adapter's "
            "adapter_config.json (base_model_name_or_path), or in Python give both: load(base, adapter=...)."
        ) from None
    if is_adapter(base):
        raise BadCheckpoint(f"{path} is an adapter for {named}, which is an adapter itself; merge that first.")
    return path, base


def _stamp(path: Path, base: Path | None = None) -> str:
    """Describes the files of a model (and of its base) without reading them; equal only if none of them changed."""
    parts = [] if base is None else [_stamp(base)]
    try:
        for file in sorted(file for file in path.iterdir() if file.is_file()) if path.is_dir() else [path]:
            stat = file.stat()
            parts.append(f"{file.name} {stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns} {stat.st_ino}")
            if file.name in (huggingface.CONFIG, "adapter_config.json", "hparams.json"):
                parts.append(file.read_text(encoding="utf-8", errors="replace"))
    except OSError as error:
        raise BadCheckpoint(f"{path} cannot be read ({error.strerror}).") from None
    return "\n".join(parts)


def _open(path: Path, base: Path | None = None) -> tuple[Weights, Tokenizer]:
    """Recognises a format by what lies there; with a base, `path` is an adapter for it."""
    if base is not None:
        from gpt2.checkpoint.adapter import read_adapter

        weights, tokenizer = _open(base)
        if huggingface.has_tokenizer(path) and huggingface.tokenizer_of(path, weights.config) != tokenizer:
            raise BadCheckpoint(
                f"The tokenizer in {path} is not that of its base, {base}; they do not belong together."
            )
        return read_adapter(path).added(weights), tokenizer
    if path.is_dir():
        if (path / huggingface.CONFIG).is_file():
            return huggingface.open_directory(path)
        if (path / "hparams.json").is_file():
            from gpt2.checkpoint.openai import read_openai

            return read_openai(path)
        if (path / "ckpt.pt").is_file():
            path = path / "ckpt.pt"
        else:
            raise BadCheckpoint(
                f"{path} is no model: looked for config.json (Hugging Face), hparams.json (OpenAI) "
                "and ckpt.pt (nanoGPT)."
            )
    if path.suffix in (".pt", ".pth", ".ckpt"):
        from gpt2.checkpoint.nanogpt import read_nanogpt

        return read_nanogpt(path)
    try:
        with path.open("rb") as file:
            start = file.read(4)
    except OSError as error:
        raise BadCheckpoint(f"{path} cannot be read ({error.strerror}).") from None
    if start == _LLMC_MAGIC:
        from gpt2.checkpoint.llmc import read_llmc

        return read_llmc(path)
    if path.name.startswith(("model", "pytorch_model")) or path.suffix in (".safetensors", ".json", ".bin"):
        raise BadCheckpoint(
            f"{path} is a single file that is no model by itself; give the folder {path.parent} that holds it, "
            "with its config.json. (Files that are: nanoGPT's ckpt.pt and llm.c's .bin.)"
        )
    raise BadCheckpoint(
        f"{path} is a file of a kind that is not read here; give a model's folder, nanoGPT's ckpt.pt or llm.c's .bin."
    )


def _dtype(dtype: str | torch.dtype) -> str:
    name = str(dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise BadOption(f"dtype is {name!r}; a model runs in {', '.join(DTYPES[:-1])} or {DTYPES[-1]}.")
    return name


def find_device(device: str) -> torch.device:
    """The device of this name; raises BadOption for no such name, Unavailable for one that is not here."""
    import torch

    try:
        target = torch.device(device)
    except RuntimeError:
        raise BadOption(f"device is {device!r}; PyTorch knows cpu, cuda, cuda:1 and so on, and mps.") from None
    if target.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if not count:
            raise Unavailable(f"device {device!r}: PyTorch finds no CUDA device on this machine; use cpu.")
        if (target.index or 0) >= count:
            raise Unavailable(f"device {device!r}: this machine has {count} CUDA device(s), counted from 0.")
    elif target.type == "mps":
        if not torch.backends.mps.is_available() or target.index:
            raise Unavailable(f"device {device!r}: PyTorch finds no Apple GPU on this machine; use cpu.")
    elif target.type != "cpu":
        raise BadOption(f"device is {device!r}; models run on cpu, cuda and mps.")
    return target
