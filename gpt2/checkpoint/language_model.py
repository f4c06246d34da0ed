"""A network and the tokenizer it was trained with: what everything that generates is given."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from gpt2.checkpoint.weights import Weights
    from gpt2.config import GPT2Config
    from gpt2.model import GPT2
    from gpt2.tokenizer import Tokenizer


class LanguageModel:
    """A network, its tokenizer, and where both came from.

    network: the network, or a function that makes it when it is first used. `source` is what was asked for (a name or
    a path), `path` the file or folder that was read, None for a model that was made in memory. `config` can be left
    out if the network is given. `dtype` is what the model is run in: "float32", "bfloat16", "int8" or "int4" (None:
    the network's own). `weights` are the tensors of the checkpoint as it lies, for those who read them one by one, on
    the CPU; None for a model that was made in memory or whose network has been opened by `load`.

    `memo` is for the rooms above: what they keep with the model for as long as it lives.
    """

    __slots__ = (
        "__weakref__",
        "_config",
        "_dtype",
        "_lock",
        "_network",
        "memo",
        "path",
        "source",
        "tokenizer",
        "weights",
    )

    def __init__(
        self,
        network: GPT2 | Callable[[], GPT2],
        tokenizer: Tokenizer,
        source: str = "memory",
        path: Path | None = None,
        *,
        config: GPT2Config | None = None,
        dtype: str | None = None,
        weights: Weights | None = None,
    ) -> None:
        self._network = network
        self._lock = threading.Lock()
        self._config, self._dtype = config, dtype
        self.tokenizer, self.source, self.path, self.weights = tokenizer, source, path, weights
        self.memo: dict[str, object] = {}

    @property
    def network(self) -> GPT2:
        """The network, made now if it was given as a function; errors are that function's."""
        with self._lock:
            # A network can be called too.
            if not self.opened:
                self._network = self._network()
            return cast("GPT2", self._network)

    @property
    def opened(self) -> bool:
        """Whether the network has been made; asking does not make it."""
        return hasattr(self._network, "parameters")

    @property
    def config(self) -> GPT2Config:
        """The network's shape."""
        return self._config or self.network.config

    @property
    def dtype(self) -> str:
        """What the model is run in: "float32", "bfloat16", "int8" or "int4"."""
        return self._dtype or str(self.network.dtype).removeprefix("torch.")

    def __repr__(self) -> str:
        return f"LanguageModel({self.source!r}, {self.config.parameters:,} parameters, {self.dtype})"
