"""The optimisers, as torch has them, with GPT-2's parameters sorted into groups.

`adamw`: AdamW on everything. `muon`: Muon on the blocks' matrices, with torch's learning-rate match to AdamW's update
size so that one learning rate serves both, and AdamW on embeddings, norms and biases. Weight decay acts on matrices
and embeddings, never on norms and biases.
"""

import torch
from torch import Tensor, nn

from gpt2.errors import BadCheckpoint
from gpt2.training.options import TrainingOptions


class Optimizer:
    """One or two of torch's optimisers behind one face, with a state that is a flat dictionary of tensors."""

    def __init__(self, network: nn.Module, options: TrainingOptions) -> None:
        self._names: dict[Tensor, str] = {parameter: name for name, parameter in network.named_parameters()}
        matrices = [p for name, p in network.named_parameters() if name.startswith("h.") and p.ndim == 2]
        embeddings = [p for name, p in network.named_parameters() if not name.startswith("h.") and p.ndim == 2]
        vectors = [p for p in network.parameters() if p.ndim < 2]
        groups = [
            {"params": embeddings, "weight_decay": options.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ]
        self._parts: list[torch.optim.Optimizer] = []
        if options.optimizer == "muon":
            muon = torch.optim.Muon(
                matrices, lr=options.learning_rate, weight_decay=options.weight_decay, adjust_lr_fn="match_rms_adamw"
            )
            self._parts.append(muon)
        else:
            groups.append({"params": matrices, "weight_decay": options.weight_decay})
        betas = (options.beta1, options.beta2)
        self._parts.append(torch.optim.AdamW(groups, lr=options.learning_rate, betas=betas, fused=True))

    def step(self, learning_rate: float) -> None:
        """Moves the parameters by their gradients, and forgets the gradients."""
        for part in self._parts:
            for group in part.param_groups:
                group["lr"] = learning_rate
            part.step()
            part.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, Tensor]:
        """The state by parameter name and kind, such as `wte.weight/exp_avg`."""
        return {
            f"{self._names[parameter]}/{kind}": torch.as_tensor(value)
            for part in self._parts
            for parameter, state in part.state.items()
            for kind, value in state.items()
        }

    def load_state_dict(self, tensors: dict[str, Tensor]) -> None:
        """Takes back what `state_dict` gave; raises BadCheckpoint if a parameter has none."""
        for part in self._parts:
            for group in part.param_groups:
                for parameter in group["params"]:
                    prefix = self._names[parameter] + "/"
                    state = {
                        # Copies: what was read may still be mapped to a file that is deleted later.
                        key.removeprefix(prefix): value.to(parameter.device, copy=True)
                        for key, value in tensors.items()
                        if key.startswith(prefix)
                    }
                    if not state:
                        raise BadCheckpoint(
                            f"The optimiser's state lacks {prefix}*; the run cannot be resumed from it."
                        )
                    part.state[parameter] = state
