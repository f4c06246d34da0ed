"""The native runner: Python's side of `step.c`, which computes a whole token step in one call.

It runs on x86-64 processors with AVX-512 and its integer dot products (VNNI), in float32, bfloat16, int8 and int4.
float32 weights are read where they lie; the others are packed once (`packed.py` keeps them). Everywhere else
`reason` says why not, and `choose.py` takes another runner.
"""

import ctypes
import functools
from array import array
from collections.abc import Iterator, Sequence
from ctypes import c_double, c_int32, c_size_t, c_void_p
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from gpt2.cache import zero_pages
from gpt2.config import GPT2Config
from gpt2.errors import BadOption, Unavailable
from gpt2.files import cache_directory
from gpt2.model import attention_scale
from gpt2.runners import build
from gpt2.runners.packed import Layout, packed
from gpt2.runners.quantise import Matrix
from gpt2.runners.runner import Feed, check_fed, check_held

if TYPE_CHECKING:
    from gpt2.checkpoint import LanguageModel

_WIDTHS = ("float32", "bfloat16", "int8", "int4")  # numbered as in step.c
_ACTIVATIONS = {"gelu_new": 0, "gelu_pytorch_tanh": 0, "gelu": 1, "relu": 2, "silu": 3, "swish": 3}
_PANEL = 64
_MOST_TOKENS = 512  # of one call: its memory is about 35 kB a token at 124M

# How often a waiting thread looks before it sleeps: a few microseconds between matrices, and what sampling takes
# between steps. Measured (docs/log.md): spinning for longer gains nothing alone and loses beside a busy neighbour.
_SPINS = 2000


class _Matrix(ctypes.Structure):
    _fields_ = (
        ("weight", c_void_p), ("scale", c_void_p), ("bias", c_void_p), ("n_in", c_int32), ("n_out", c_int32),
    )  # fmt: skip


class _Layer(ctypes.Structure):
    _fields_ = (
        ("norm1_weight", c_void_p), ("norm1_bias", c_void_p), ("norm2_weight", c_void_p), ("norm2_bias", c_void_p),
        ("attn", _Matrix), ("attn_proj", _Matrix), ("fc", _Matrix), ("mlp_proj", _Matrix),
        ("attn_scale", c_double),
    )  # fmt: skip


class _Model(ctypes.Structure):
    _fields_ = (
        *((name, c_int32) for name in (
            "width", "head_width", "cache_width", "n_layer", "n_head", "head_dim", "n_embd", "n_inner", "vocab",
            "activation", "slots", "capacity",
        )),
        ("epsilon", c_double),
        ("head", _Matrix),
        ("positions", c_void_p), ("norm_weight", c_void_p), ("norm_bias", c_void_p),
        ("layers", ctypes.POINTER(_Layer)),
        ("keys", c_void_p), ("values", c_void_p),
    )  # fmt: skip


@functools.cache
def library() -> ctypes.CDLL | None:
    """The compiled step: the one in the package, or the one that `gpt2 doctor` built; None if there is neither."""
    for folder in (build.SOURCE.parent, cache_directory() / "native"):
        path = folder / build.library_name()
        if path.is_file():
            try:
                found = ctypes.CDLL(str(path))
            except OSError:
                continue
            found.gpt2_read_seconds.restype = c_double
            found.gpt2_read_seconds.argtypes = (c_void_p, c_size_t, c_int32, c_int32)
            sizes = [found.gpt2_sizes(which) for which in range(3)]
            if sizes == [ctypes.sizeof(each) for each in (_Matrix, _Layer, _Model)]:
                return found
    return None


def reason(config: GPT2Config, dtype: str) -> str | None:
    """Why the native step cannot run this model here; None if it can."""
    found = library()
    if found is None:
        return build.obstacle() or "it is not built yet; `gpt2 doctor` builds it"
    if not found.gpt2_level():
        return "the processor has no AVX-512 with VNNI"
    if config.activation_function not in _ACTIVATIONS:
        return f"it does not know the activation {config.activation_function}"
    if config.n_embd % _PANEL or config.mlp_width % _PANEL or config.head_dim % 16 or config.head_dim > 256:
        return "it wants n_embd and the MLP's width in multiples of 64, and heads of 16, 32, ... or 256"
    if dtype not in _WIDTHS:
        return f"it does not compute in {dtype}"
    return None


def read_rate(n_bytes: int, threads: int, passes: int = 5) -> float:
    """Bytes a second at which so many threads read a buffer of this size: the best of a few passes.

    Raises Unavailable where the native step is not there.
    """
    found = library()
    if found is None or not found.gpt2_level():
        raise Unavailable("The native step is not built here, so it cannot measure the memory's rate.")
    buffer = torch.ones(n_bytes // 8 * 8 // 512 * 64, dtype=torch.int64)
    size = buffer.numel() * 8
    seconds = [float(found.gpt2_read_seconds(buffer.data_ptr(), size, threads, _SPINS)) for _ in range(passes)]
    return size / min(seconds)


class NativeRunner:
    """The Runner that `step.c` is. `threads`: as many as torch uses, unless given.

    Keys and values are float32 in a float32 model and bfloat16 otherwise. Batch-invariant, bit for bit.

    Raises Unavailable where `reason` has one.
    """

    name = "native"
    batch_invariant = True

    def __init__(self, model: "LanguageModel", slots: int, threads: int | None = None) -> None:
        config = model.config
        if why := reason(config, model.dtype):
            raise Unavailable(f"The native step cannot run this model here: {why}.")
        found = library()
        assert found is not None
        self._step = found.gpt2_step
        self.config, self.slots, self.dtype = config, slots, model.dtype
        self.threads = torch.get_num_threads() if threads is None else threads
        if self.threads < 1:
            raise BadOption(f"threads is {threads}, but at least 1 is needed.")
        self._lengths = [0] * slots
        self._weights = _weights(model)  # keeps what the pointers point at
        self._layers = (_Layer * config.n_layer)()
        width = _WIDTHS.index(model.dtype)
        capacity = -(-config.n_positions // 64) * 64
        size = 4 if model.dtype == "float32" else 2
        self._block = capacity * config.head_dim * size  # bytes of one head's keys
        self._memory = zero_pages(2 * config.n_layer * slots * config.n_head * self._block)
        self._cache = np.frombuffer(self._memory, np.uint8).reshape(2, config.n_layer, slots, config.n_head, -1)
        self._model = self._describe(width, capacity)

    def _describe(self, width: int, capacity: int) -> _Model:
        config, weights = self.config, self._weights
        C, F = config.n_embd, config.mlp_width

        def at(name: str) -> int:
            return weights[name].data_ptr()

        def matrix(name: str, n_in: int, n_out: int) -> _Matrix:
            scale = weights.get(f"{name}.scale")
            bias = weights.get(f"{name}.bias")
            return _Matrix(
                at(f"{name}.weight"), scale.data_ptr() if scale is not None else None,
                bias.data_ptr() if bias is not None else None, n_in, n_out,
            )  # fmt: skip

        for number in range(config.n_layer):
            h, scale = f"h.{number}", attention_scale(config, number)
            self._layers[number] = _Layer(
                at(f"{h}.ln_1.weight"), at(f"{h}.ln_1.bias"), at(f"{h}.ln_2.weight"), at(f"{h}.ln_2.bias"),
                matrix(f"{h}.attn.c_attn", C, 3 * C), matrix(f"{h}.attn.c_proj", C, C),
                matrix(f"{h}.mlp.c_fc", C, F), matrix(f"{h}.mlp.c_proj", F, C), scale,
            )  # fmt: skip
        return _Model(
            width, min(width, _WIDTHS.index("int8")), min(width, 1), config.n_layer, config.n_head, config.head_dim,
            C, F, config.vocab_size, _ACTIVATIONS[config.activation_function], self.slots, capacity,
            config.layer_norm_epsilon, matrix("wte", C, config.vocab_size), at("wpe.weight"), at("ln_f.weight"),
            at("ln_f.bias"), self._layers, self._cache[0].ctypes.data, self._cache[1].ctypes.data,
        )  # fmt: skip

    def length(self, slot: int) -> int:
        return self._lengths[slot]

    def rewind(self, slot: int, length: int) -> None:
        check_held(slot, self._lengths[slot], length)
        self._lengths[slot] = length

    def copy(self, source: int, target: int, length: int) -> None:
        check_held(source, self._lengths[source], length)
        # Whole blocks of 16 places; what lies behind `length` is written before it is read.
        places = -(-length // 16) * 16
        end = places * self._block // self._model.capacity
        self._cache[:, :, target, :, :end] = self._cache[:, :, source, :, :end]
        self._lengths[target] = length

    def read(self, feeds: Sequence[Feed]) -> Tensor:
        check_fed(self.config, self._lengths, feeds)
        ids, slots, places, wants = array("i"), array("i"), array("i"), array("i")
        for feed in feeds:
            start, count = self._lengths[feed.slot], len(feed.ids)
            ids.extend(feed.ids)
            slots.extend([feed.slot] * count)
            places.extend(range(start, start + count))
            wants.extend(range(len(ids) - feed.logits, len(ids)))
        logits = torch.empty(len(wants), self.config.vocab_size)
        done = 0
        for begin in range(0, len(ids), _MOST_TOKENS):
            count = min(_MOST_TOKENS, len(ids) - begin)
            wanted = array("i", (want - begin for want in wants if begin <= want < begin + count))
            failed = self._step(
                ctypes.byref(self._model), count, *(c_void_p(_at(each) + 4 * begin) for each in (ids, slots, places)),
                len(wanted), c_void_p(_at(wanted)), c_void_p(logits[done:].data_ptr()), self.threads, _SPINS,
            )  # fmt: skip
            if failed:
                raise MemoryError("There is no memory left for a token step.")
            done += len(wanted)
        for feed in feeds:
            self._lengths[feed.slot] += len(feed.ids)
        return logits


def _at(numbers: "array[int]") -> int:
    return numbers.buffer_info()[0]


def _weights(model: "LanguageModel") -> dict[str, Tensor]:
    if model.dtype == "float32":
        # float32 without gaps on the CPU, as the pointers want it; that is how a loaded or trained model lies already.
        return {name: tensor.detach().cpu().float().contiguous() for name, tensor in model.network.state_dict().items()}
    return packed(model, _layout(model.dtype))


def _layout(dtype: str) -> Layout:
    """Matrices in panels; biases, norms and positions in float32."""

    def pack(name: str, found: Tensor | Matrix) -> Iterator[tuple[str, Tensor]]:
        stem = name.removesuffix(".weight")
        if isinstance(found, Matrix):
            yield f"{stem}.weight", (_int8_panels if found.scale.dim() == 1 else _int4_panels)(found.q_KN)
            yield f"{stem}.scale", _scale_panels(found.scale)
        elif found.dim() == 2 and name != "wpe.weight":
            yield name, _bfloat16_panels(found.t() if name == "wte.weight" else found)
        else:
            yield name, found.float().contiguous()

    return Layout(f"native-{dtype}", pack)


# Panels of 64 outputs, the last one filled with zeros; step.c says how each width lies in them.


def _bfloat16_panels(weight_KN: Tensor) -> Tensor:
    padded = pad(weight_KN.to(torch.bfloat16), (0, -weight_KN.shape[1] % _PANEL))
    return padded.view(len(padded) // 2, 2, -1, _PANEL).permute(2, 0, 3, 1).contiguous()


def _int8_panels(q_KN: Tensor) -> Tensor:
    # As unsigned bytes: 128 is added, which flips the highest bit.
    biased = pad(q_KN, (0, -q_KN.shape[1] % _PANEL)).view(torch.uint8).bitwise_xor(128)
    return biased.view(len(biased) // 4, 4, -1, _PANEL).permute(2, 0, 3, 1).contiguous()


def _int4_panels(q_KN: Tensor) -> Tensor:
    # Eight inputs of an output stand in four bytes: the first four in the low halves, the others in the high ones.
    eights = (q_KN + 8).view(torch.uint8).view(len(q_KN) // 32, 4, 2, 4, -1, 4, 16)
    both = eights[:, :, 0] | (eights[:, :, 1] << 4)  # (groups, eights, 4, panels, vectors, 16)
    return both.permute(3, 0, 4, 1, 5, 2).contiguous()


def _scale_panels(scale: Tensor) -> Tensor:
    if scale.dim() == 1:
        return pad(scale, (0, -len(scale) % _PANEL)).contiguous()
    return scale.view(len(scale), -1, _PANEL).transpose(0, 1).contiguous()
