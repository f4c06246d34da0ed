"""GPT-2's parameters sorted into groups, each with its optimiser; and their state on disk.

`adamw`: AdamW on everything. `muon`: Muon on the blocks' matrices, AdamW on embeddings, norms and biases. Weight decay
acts on matrices and embeddings, never on norms and biases.

The state is a flat dictionary of tensors in safetensors files: one file, or under FSDP one for every process, written
by torch.distributed.checkpoint. Either is read by any number of processes.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from gpt2.errors import BadCheckpoint
from gpt2.training.muon import Muon
from gpt2.training.options import TrainingOptions
from gpt2.training.ranks import Ranks

_FILE = "optimizer.safetensors"


class Optimizer:
    """One or two optimisers behind one face. network: as `Ranks.wrap` has left it."""

    def __init__(self, network: nn.Module, options: TrainingOptions, ranks: Ranks | None = None) -> None:
        self._ranks = ranks or Ranks()
        # What is not learnt (the base under an adapter) has no state.
        self._names: dict[Tensor, str] = {p: name for name, p in network.named_parameters() if p.requires_grad}
        matrices = {p: name for p, name in self._names.items() if name.startswith("h.") and p.ndim == 2}
        embeddings = [p for p, name in self._names.items() if not name.startswith("h.") and p.ndim == 2]
        vectors = [p for p in self._names if p.ndim < 2]
        rate, decay = options.learning_rate, options.weight_decay
        groups = [{"params": embeddings, "weight_decay": decay}, {"params": vectors, "weight_decay": 0.0}]
        self._muon: Muon | None = None
        self._adamw_share = 1.0
        if options.optimizer == "muon":
            self._adamw_share = options.adamw_share
            self._muon = Muon(
                list(matrices),
                # Query, key and value are matrices of their own.
                [3 if name.endswith("c_attn.weight") else 1 for name in matrices.values()],
                lr=rate,
                weight_decay=decay,
                width=torch.bfloat16 if options.dtype == "bfloat16" else torch.float32,
                ranks=self._ranks,
            )
        else:
            groups.append({"params": list(matrices), "weight_decay": decay})
        self._adamw = torch.optim.AdamW(groups, lr=rate, betas=(options.beta1, options.beta2), fused=True)

    @property
    def _parts(self) -> list[torch.optim.Optimizer]:
        return [self._adamw] if self._muon is None else [self._muon, self._adamw]

    def step(self, learning_rate: float) -> None:
        """Moves the parameters by their gradients, and forgets the gradients. Every process calls it."""
        # Nothing in here is compiled: the loop relies on it that a compiler fails before any weight has moved, and
        # saves the weights then.
        for part in self._parts:
            for group in part.param_groups:
                group["lr"] = learning_rate * (self._adamw_share if part is self._adamw else 1.0)
            part.step()
        self.forget_gradients()

    def forget_gradients(self) -> None:
        """Drops the gradients: the next step adds up its own."""
        for part in self._parts:
            part.zero_grad(set_to_none=True)

    # The state on disk

    def save(self, folder: Path) -> None:
        """Writes the state into a checkpoint's folder `training`, which exists. Every process calls it with the same
        folder, and goes on when all is written. Raises OSError or SafetensorError."""
        ranks = self._ranks
        if ranks.kind == "fsdp":
            with _distributed() as checkpoint:
                writer = checkpoint.HuggingFaceStorageWriter(str(folder), save_distributed=True)
                checkpoint.save(self.state_dict(), storage_writer=writer)
        elif ranks.is_first:
            save_file({key: value.contiguous() for key, value in self.state_dict().items()}, folder / _FILE)
        ranks.barrier()

    def load(self, folder: Path) -> None:
        """Takes the state back from such a folder, whoever wrote it. Every process calls it. Raises BadCheckpoint."""
        try:
            if self._ranks.kind != "fsdp" and (folder / _FILE).is_file():
                state = load_file(folder / _FILE)
            else:
                state = self._read_shards(folder)
        except (OSError, SafetensorError) as error:
            raise BadCheckpoint(
                f"The optimiser's state in {folder} is damaged, so the run cannot be resumed from it ({error})."
            ) from None
        self.load_state_dict(state)

    def _read_shards(self, folder: Path) -> dict[str, Tensor]:
        if not any(folder.glob("*.safetensors")):
            raise FileNotFoundError("there are no safetensors files")
        state = {
            f"{name}/{kind}": tensor
            for parameter, name in self._names.items()
            for kind, tensor in self._blank(parameter).items()
        }
        with _distributed() as checkpoint, warnings.catch_warnings():
            # It warns that there are no other processes.
            warnings.simplefilter("ignore")
            reader = checkpoint.HuggingFaceStorageReader(str(folder))
            checkpoint.load(state, storage_reader=reader, no_dist=self._ranks.size == 1)
        return state

    def _blank(self, parameter: Tensor) -> dict[str, Tensor]:
        """A parameter's state before its first step."""
        if self._muon is not None and any(parameter is p for p in self._muon.param_groups[0]["params"]):
            return {"momentum_buffer": torch.zeros_like(parameter)}
        return {
            "step": torch.zeros((), device=parameter.device),
            "exp_avg": torch.zeros_like(parameter),
            "exp_avg_sq": torch.zeros_like(parameter),
        }

    def state_dict(self) -> dict[str, Tensor]:
        """The state by parameter name and kind, such as `wte.weight/exp_avg`; under FSDP tensors are sharded."""
        return {
            f"{self._names[parameter]}/{kind}": torch.as_tensor(value)
            for part in self._parts
            for parameter, state in part.state.items()
            for kind, value in state.items()
        }

    def load_state_dict(self, tensors: dict[str, Tensor]) -> None:
        """Takes back what `state_dict` gave; raises BadCheckpoint for a parameter that has none or one of another
        shape."""
        for part in self._parts:
            for group in part.param_groups:
                for parameter in group["params"]:
                    part.state[parameter] = {
                        kind: self._taken(tensors, parameter, kind, blank)
                        for kind, blank in self._blank(parameter).items()
                    }

    def _taken(self, tensors: dict[str, Tensor], parameter: Tensor, kind: str, blank: Tensor) -> Tensor:
        key = f"{self._names[parameter]}/{kind}"
        tensor = tensors.get(key)
        if tensor is None or tensor.shape != blank.shape:
            what = "lacks" if tensor is None else f"has another shape, {tuple(tensor.shape)}, for"
            raise BadCheckpoint(f"The optimiser's state {what} {key}; the run cannot be resumed from it.")
        # Copies: what was read may still be mapped to a file that is deleted later.
        return tensor.to(parameter.device, copy=True)


@contextmanager
def _distributed() -> Iterator[Any]:
    """torch.distributed.checkpoint, which takes a second to import; what goes wrong on any process is an OSError on
    all of them."""
    from torch.distributed import checkpoint
    from torch.distributed.checkpoint.api import CheckpointException

    try:
        yield checkpoint
    except CheckpointException as error:
        first = next(iter(error.failures.values()))[0] if error.failures else error
        raise OSError(str(first).strip() or type(first).__name__) from None
