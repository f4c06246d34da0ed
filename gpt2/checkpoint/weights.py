"""From tensors as a file has them to a network: names, shapes, dtypes and values, each checked.

Every reader of this room (Hugging Face's, nanoGPT's, llm.c's, OpenAI's) ends here. This file opens no files: it is
given what they hold, with where each tensor came from, so that an error can name the file and the tensor.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from gpt2.checkpoint.pages import release_pages
from gpt2.config import GPT2Config
from gpt2.errors import BadCheckpoint
from gpt2.model import GPT2

HEAD = "lm_head.weight"

# Dtypes that a file may have; anything else (int8, float8) is a packed format and means nothing without its scales.
_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)

# Wrappers leave their names in front: torch.compile, DistributedDataParallel, Hugging Face's model with a head.
_PREFIXES = ("_orig_mod.", "module.", "transformer.")

# The causal mask and its value for hidden places: constants that older files carry along.
_BUFFER = re.compile(r"h\.\d+\.attn\.(bias|masked_bias)")
_LAYER = re.compile(r"h\.(\d+)\.")

# Tensors that are no part of a GPT-2 and that people meet, with what they are.
_STRANGERS: tuple[tuple[str, str], ...] = (
    (r"score\.", "a sequence classifier's head (GPT2ForSequenceClassification)"),
    (r"classifier\.", "a token classifier's head (GPT2ForTokenClassification)"),
    (r"qa_outputs\.", "a question answering head (GPT2ForQuestionAnswering)"),
    (r"multiple_choice_head\.", "a multiple choice head (GPT2DoubleHeadsModel)"),
    (r"v_head\.", "a value head from reinforcement learning"),
    (r"(.*\.)?(crossattention|ln_cross_attn)\.", "attention to an encoder"),
    (r".*\blora_", "a LoRA adapter that was not merged into the weights"),
    (r".*\.(qweight|qzeros|scales|g_idx|SCB|absmax|quant_map)$", "weights in a packed (quantised) format"),
)


class Stored(NamedTuple):
    """A tensor as a file has it: the file, its name there, and the values (any shape, any dtype)."""

    file: Path
    name: str
    tensor: Tensor

    def __str__(self) -> str:
        return f"{self.file}: {self.name}"


def canonical_name(name: str) -> str | None:
    """Our name for a tensor of a file, or None for a buffer that a network does without.

    Takes off what wrappers put in front: `transformer.`, `module.`, `_orig_mod.`, in any order.
    """
    stripped = True
    while stripped:
        stripped = False
        for prefix in _PREFIXES:
            if name.startswith(prefix):
                name, stripped = name.removeprefix(prefix), True
    return None if _BUFFER.fullmatch(name) else name


def expected_shapes(config: GPT2Config) -> dict[str, torch.Size]:
    """Names and shapes of all tensors of a GPT-2 of this shape."""
    return {name: tensor.shape for name, tensor in _empty(config).state_dict().items()}


def is_projection(name: str) -> bool:
    """Whether this is one of the matrices that OpenAI stores (in, out) and `nn.Linear` stores (out, in)."""
    return name.endswith((".c_attn.weight", ".c_proj.weight", ".c_fc.weight"))


def build(
    found: Mapping[str, Stored],
    config: GPT2Config,
    *,
    config_source: str,
    dtype: torch.dtype = torch.float32,
) -> GPT2:
    """A network on the CPU that holds these tensors: `Weights(...).network(dtype)`, with its errors."""
    return Weights(found, config, config_source=config_source).network(dtype)


class Weights:
    """The tensors of a checkpoint, whose names and shapes have been checked; values are checked as each is read.

    found: keyed by our names, lying (in, out). config_source is how errors name the place of the config. The head, if
    there, must equal the embedding.

    config: the shape. names: our names of all tensors. stamp: describes the files as they were when they were opened
    (`load` writes it).

    Raises BadCheckpoint, with file and tensor, for what is missing, unknown, of the wrong shape or of a dtype that is
    no floating point number.
    """

    def __init__(self, found: Mapping[str, Stored], config: GPT2Config, *, config_source: str) -> None:
        shapes = expected_shapes(config)
        _check_names(found, shapes, config, config_source)
        for name, shape in shapes.items():
            _check_shape(name, found[name], shape, config_source)
            _check_dtype(found[name])
        self.config, self.names, self.stamp = config, tuple(shapes), ""
        self._found = dict(found)

    def read(self, *, release: bool = False) -> Iterator[tuple[str, Tensor]]:
        """Each tensor by our name, as the file has it (float32, bfloat16, float16 or float64), mapped where files are.

        release: a tensor is used up when the next is asked for, and its pages of memory are given back. Only for who
        knows that nobody has written to these tensors.
        Raises BadCheckpoint, with file and tensor, for values that are not finite and for a head of its own.
        """
        for name in self.names:
            stored = self._found[name]
            _check_values(stored)
            if name == "wte.weight" and HEAD in self._found:
                _check_head(self._found[HEAD], stored)
            yield name, stored.tensor
            if release:
                release_pages(stored.tensor, stored.file)
                if name == "wte.weight" and HEAD in self._found:
                    release_pages(self._found[HEAD].tensor, self._found[HEAD].file)

    def changed(self, tensors: Mapping[str, Stored]) -> "Weights":
        """The same weights with some tensors replaced, by our names."""
        return Weights({**self._found, **tensors}, self.config, config_source="the config")

    def network(self, dtype: torch.dtype = torch.float32) -> GPT2:
        """A network on the CPU; tensors that have `dtype` already are taken as they are, without a copy.

        Errors as `read`.
        """
        state = {}
        for name, stored in self.read():
            tensor = stored.to(dtype)
            # A file may put a tensor at any byte; arithmetic wants it at a multiple of its own width.
            if tensor.data_ptr() % tensor.element_size():
                tensor = tensor.clone()
            state[name] = tensor.contiguous()
        network = _empty(self.config)
        network.load_state_dict(state, assign=True)
        return network


def _empty(config: GPT2Config) -> GPT2:
    with torch.device("meta"):
        return GPT2(config)


def _layers(names: Iterator[str]) -> set[int]:
    return {int(match[1]) for name in names if (match := _LAYER.match(name))}


def _check_names(
    found: Mapping[str, Stored], shapes: Mapping[str, torch.Size], config: GPT2Config, config_source: str
) -> None:
    held = _layers(name for name in found if name in shapes or _LAYER.sub("h.0.", name) in shapes)
    if held and held != set(range(config.n_layer)) and held == set(range(len(held))):
        last = next(stored for name, stored in found.items() if name.startswith(f"h.{max(held)}."))
        raise BadCheckpoint(
            f"{config_source} says n_layer = {config.n_layer}, but the weights have {len(held)} "
            f"layer{'s' if len(held) > 1 else ''} (the last one's: {last})."
        )
    missing = sorted(set(shapes) - set(found))
    unknown = sorted(set(found) - set(shapes) - {HEAD})
    if unknown:
        stored = found[unknown[0]]
        meaning = next((text for pattern, text in _STRANGERS if re.match(pattern, unknown[0])), None)
        what = f"which is {meaning}; this package runs the plain language model" if meaning else "which no GPT-2 has"
        raise BadCheckpoint(f"{stored} is a tensor, {what}{_and_more(unknown)}.")
    if missing:
        files = sorted({str(stored.file) for stored in found.values()})
        where = " and ".join(files[:2]) if len(files) < 3 else f"{files[0]} and the {len(files) - 1} files beside it"
        where = where or f"the weights beside {config_source}"
        raise BadCheckpoint(f"The tensor {missing[0]} is missing from {where}{_and_more(missing)}.")


def _and_more(names: list[str]) -> str:
    return f" (and {len(names) - 1} more, such as {names[1]})" if len(names) > 1 else ""


def _check_shape(name: str, stored: Stored, shape: torch.Size, config_source: str) -> None:
    actual = stored.tensor.shape
    if actual == shape:
        return
    if is_projection(name) and actual == shape[::-1]:
        raise BadCheckpoint(
            f"{stored} has the shape {tuple(actual)}, the transpose of a GPT-2's {tuple(shape)}; "
            "it was saved from a model with nn.Linear layers, so transpose its c_attn, c_proj and c_fc matrices first."
        )
    axis = next((i for i, (have, want) in enumerate(zip(actual, shape, strict=False)) if have != want), 0)
    key = f"{config_source}'s {_key(name, axis)}"
    raise BadCheckpoint(f"{stored} has the shape {tuple(actual)}, but by {key} it must be {tuple(shape)}.")


def _key(name: str, axis: int) -> str:
    """The config key that decides how long this axis of this tensor is."""
    if axis == 0 and name in ("wte.weight", "wpe.weight"):
        return "vocab_size" if name == "wte.weight" else "n_positions"
    inner = {"mlp.c_fc.weight": 1, "mlp.c_fc.bias": 0, "mlp.c_proj.weight": 0}
    if inner.get(_LAYER.sub("", name)) == axis:
        return "n_inner (or, without it, four times its n_embd)"
    return "n_embd"


def _check_head(head: Stored, embedding: Stored) -> None:
    if head.tensor.shape != embedding.tensor.shape or not torch.equal(head.tensor, embedding.tensor):
        raise BadCheckpoint(
            f"{head} differs from the embedding {embedding.name}: the head is not tied to it, so this is no GPT-2."
        )


def _check_dtype(stored: Stored) -> None:
    if stored.tensor.dtype not in _DTYPES:
        dtype = str(stored.tensor.dtype).removeprefix("torch.")
        raise BadCheckpoint(f"{stored} holds {dtype}; weights are float32, bfloat16 or float16.")


def _check_values(stored: Stored) -> None:
    # The extremes carry any NaN with them, and reading them is as quick as reading the file.
    low, high = torch.aminmax(stored.tensor)
    if not bool(torch.isfinite(low) & torch.isfinite(high)):
        place = int((~torch.isfinite(stored.tensor.flatten())).nonzero()[0])
        value = float(stored.tensor.flatten()[place])
        raise BadCheckpoint(f"{stored} holds {value} (first at its element {place}); the weights are damaged.")
