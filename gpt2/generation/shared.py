"""A model's own engine: one for all who generate with the model, so that their texts run side by side.

It is kept with the model, and made again when the network has changed, since it holds what the old weights read.
"""

import threading
from typing import TYPE_CHECKING, cast

from gpt2.generation.engine import Engine

if TYPE_CHECKING:
    from gpt2.checkpoint import LanguageModel


def engine_of(model: "LanguageModel | Engine") -> Engine:
    """The model's own engine, made when it is first asked for; an engine is its own.

    A network that was trained, loaded anew, narrowed or moved since gets a new one. Values written past PyTorch's
    book-keeping (`parameter.data[0] = 1`) are not seen: `model.memo.clear()` then.
    """
    if isinstance(model, Engine):
        return model
    stamp = _stamp(model)
    engine = _known(model, stamp)
    if engine is None:
        # Making one may take minutes (weights are packed), and other models' users need not wait for it.
        with cast("threading.Lock", model.memo.setdefault("engine lock", threading.Lock())):
            engine = _known(model, stamp)
            if engine is None:
                engine = Engine(model)
                # Only now: a runner may have opened the network.
                model.memo["engine"] = _stamp(model), engine
    return engine


def _known(model: "LanguageModel", stamp: object) -> Engine | None:
    known = model.memo.get("engine")
    return known[1] if isinstance(known, tuple) and known[0] == stamp else None


def _stamp(model: "LanguageModel") -> object:
    """What changes with the network's weights."""
    if model.dtype in ("int8", "int4") and model.path is not None:
        return model.dtype  # packed from the files, whatever becomes of the network
    if model.weights is not None and not model.opened:
        return model.dtype
    network = model.network
    weights = tuple((each.data_ptr(), 0 if each.is_inference() else each._version) for each in network.parameters())
    return id(network), network.training, model.dtype, network.device, weights
