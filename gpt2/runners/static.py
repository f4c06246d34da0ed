"""The token step over static memory, as functions of tensors, and the slots around it.

`compiled.py` compiles this step and `graph.py` captures it; here it is plain PyTorch. It says again what `model.py`
says, for one new token of each row, with keys and values in memory that never moves and lengths that lie on the
device: nothing in it asks the host. Prompts are read in plain PyTorch, new ones of about equal length together.

Letters: B rows (one new token each), C model width, H heads, D head width, S places attended to, V vocabulary,
R and T rows and tokens of prompts.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from gpt2.config import GPT2Config
from gpt2.model import GPT2, Block, Projection, activation
from gpt2.runners.runner import Feed, check_fed, check_held, check_mode

# New prompts whose lengths differ by less are read together, padded; what is read behind a row's end is never seen.
_PADDING = 16
_MOST_TOKENS = {"cpu": 2**13, "cuda": 2**15}


class Layer(NamedTuple):
    """A block's parameters; projections as (out, in). scale: what queries are multiplied with, float32, no axes."""

    norm1_weight: Tensor
    norm1_bias: Tensor
    qkv_weight: Tensor
    qkv_bias: Tensor
    mix_weight: Tensor
    mix_bias: Tensor
    norm2_weight: Tensor
    norm2_bias: Tensor
    widen_weight: Tensor
    widen_bias: Tensor
    narrow_weight: Tensor
    narrow_bias: Tensor
    scale: Tensor


def layers_of(network: GPT2, copy: bool = False) -> list[Layer]:
    """The network's blocks; the tensors share its memory, or with `copy`, projections are laid out as (out, in)."""

    def turned(projection: Projection) -> Tensor:
        weight = projection.weight.detach().contiguous().t()
        return weight.contiguous() if copy else weight

    return [
        Layer(
            block.ln_1.weight.detach(),
            block.ln_1.bias.detach(),
            turned(block.attn.c_attn),
            block.attn.c_attn.bias.detach(),
            turned(block.attn.c_proj),
            block.attn.c_proj.bias.detach(),
            block.ln_2.weight.detach(),
            block.ln_2.bias.detach(),
            turned(block.mlp.c_fc),
            block.mlp.c_fc.bias.detach(),
            turned(block.mlp.c_proj),
            block.mlp.c_proj.bias.detach(),
            torch.tensor(block.attn.scale, dtype=torch.float32, device=network.device),
        )
        for block in cast(list[Block], list(network.h))
    ]


class Operations:
    """The four operations that a token step is made of, in plain PyTorch. `kernels.py` has faster ones for a GPU."""

    def __init__(self, config: GPT2Config) -> None:
        self.config = config

    def project(
        self,
        x_BI: Tensor,
        weight_OI: Tensor,
        bias_O: Tensor | None,
        *,
        norm: tuple[Tensor, Tensor] | None = None,
        act: bool = False,
        residual_BO: Tensor | None = None,
    ) -> Tensor:
        """x W + b, (B, O), of the normed x if `norm`; then the activation, then what is added."""
        if norm is not None:
            x_BI = F.layer_norm(x_BI, x_BI.shape[-1:], *norm, self.config.layer_norm_epsilon)
        y_BO = F.linear(x_BI, weight_OI, bias_O)
        if act:
            y_BO = activation(self.config.activation_function, y_BO)
        return y_BO if residual_BO is None else residual_BO + y_BO

    def attend(
        self,
        qkv_B3C: Tensor,
        keys: Tensor,
        values: Tensor,
        slots_B: Tensor,
        lengths_B: Tensor,
        places_S: Tensor,
        scale: Tensor,
    ) -> Tensor:
        """Writes each row's key and value at place `length` of its slot, and attends to places 0 to `length`: (B, C).

        keys, values: (slots, H, room, D), written in place. lengths_B: tokens read before. places_S: 0, 1, 2, ...
        beyond the longest row.
        """
        B, S = slots_B.shape[0], places_S.shape[0]
        H, D = self.config.n_head, self.config.head_dim
        q_BHD, k_BHD, v_BHD = qkv_B3C.view(B, 3, H, D).unbind(1)
        head_1H = torch.arange(H, device=keys.device)[None]
        here = (slots_B[:, None], head_1H, lengths_B[:, None])
        keys.index_put_(here, k_BHD)
        values.index_put_(here, v_BHD)
        seen_B1S1 = (places_S <= lengths_B[:, None])[:, None, :, None]
        # Places that nobody has read may hold anything, NaN too, which no weight of 0 would silence.
        k_BHSD = torch.where(seen_B1S1, keys[:, :, :S][slots_B], 0)
        v_BHSD = torch.where(seen_B1S1, values[:, :, :S][slots_B], 0)
        q_BHD = (q_BHD.float() * scale).to(q_BHD.dtype)
        if self.config.reorder_and_upcast_attn:
            q_BHD, k_BHSD, v_BHSD = q_BHD.float(), k_BHSD.float(), v_BHSD.float()
        y_BH1D = F.scaled_dot_product_attention(
            q_BHD[:, :, None], k_BHSD, v_BHSD, attn_mask=seen_B1S1.transpose(2, 3), scale=1.0
        )
        return y_BH1D.to(qkv_B3C.dtype).reshape(B, H * D)


def block_step(
    operations: Operations,
    x_BC: Tensor,
    keys: Tensor,
    values: Tensor,
    slots_B: Tensor,
    lengths_B: Tensor,
    places_S: Tensor,
    layer: Layer,
) -> Tensor:
    """One block of the token step: x (B, C) in and out, keys and values written. See `Operations.attend`."""
    project = operations.project
    norm1, norm2 = (layer.norm1_weight, layer.norm1_bias), (layer.norm2_weight, layer.norm2_bias)
    qkv_B3C = project(x_BC, layer.qkv_weight, layer.qkv_bias, norm=norm1)
    y_BC = operations.attend(qkv_B3C, keys, values, slots_B, lengths_B, places_S, layer.scale)
    x_BC = project(y_BC, layer.mix_weight, layer.mix_bias, residual_BO=x_BC)
    h_BF = project(x_BC, layer.widen_weight, layer.widen_bias, norm=norm2, act=True)
    return project(h_BF, layer.narrow_weight, layer.narrow_bias, residual_BO=x_BC)


def prompt_block(
    operations: Operations, x_RTC: Tensor, keys: Tensor, values: Tensor, slots_R: Tensor, start: int, layer: Layer
) -> Tensor:
    """One block for T tokens of R rows, which all hold `start` tokens; with a start above 0, of one row alone."""
    config, (R, T, C) = operations.config, x_RTC.shape
    project = operations.project
    qkv_RT3C = project(x_RTC, layer.qkv_weight, layer.qkv_bias, norm=(layer.norm1_weight, layer.norm1_bias))
    q, k, v = qkv_RT3C.view(R, T, 3, config.n_head, config.head_dim).permute(2, 0, 3, 1, 4)
    keys[slots_R, :, start : start + T] = k
    values[slots_R, :, start : start + T] = v
    mask_TS = None
    if start:
        k, v = keys[slots_R, :, : start + T], values[slots_R, :, : start + T]
        place = torch.arange(start + T, device=x_RTC.device)
        mask_TS = place <= place[start:, None]
    q = (q.float() * layer.scale).to(q.dtype)
    if config.reorder_and_upcast_attn:
        q, k, v = q.float(), k.float(), v.float()
    y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask_TS, is_causal=start == 0, scale=1.0)
    y_RTC = y.to(x_RTC.dtype).transpose(1, 2).reshape(R, T, C)
    x_RTC = project(y_RTC, layer.mix_weight, layer.mix_bias, residual_BO=x_RTC)
    norm2 = (layer.norm2_weight, layer.norm2_bias)
    h_RTF = project(x_RTC, layer.widen_weight, layer.widen_bias, norm=norm2, act=True)
    return project(h_RTF, layer.narrow_weight, layer.narrow_bias, residual_BO=x_RTC)


class StaticSlots:
    """Slots of static memory and what reads into them; a runner adds how one token of many rows is stepped.

    keys, values: one tensor (slots + 1, H, room, D) per layer; the last slot is nobody's. Zeros on the CPU cost
    nothing until they are written.

    Raises BadOption for a network in training mode whose dropout would act.
    """

    # Matrix products of other shapes may add in another order.
    batch_invariant = False

    def __init__(self, network: GPT2, slots: int, *, copy: bool = False) -> None:
        config = network.config
        check_mode(network)
        self.config, self.slots, self.network, self.device = config, slots, network, network.device
        self.dtype = str(network.dtype).removeprefix("torch.")
        self.layers = layers_of(network, copy)
        self.operations = Operations(config)
        self._prompt_block: Callable[..., Tensor] = prompt_block
        # More room than the window has places, so that no shape hangs on their being equal.
        self.room = (config.n_positions // 16 + 1) * 16
        shape = (slots + 1, config.n_head, self.room, config.head_dim)
        self.keys, self.values = (
            [torch.zeros(shape, dtype=network.dtype, device=self.device) for _ in self.layers] for _ in range(2)
        )
        self._lengths = [0] * slots

    def length(self, slot: int) -> int:
        """Tokens that the slot holds."""
        return self._lengths[slot]

    def rewind(self, slot: int, length: int) -> None:
        """Forgets all but the slot's first `length` tokens; raises BadOption if it holds fewer."""
        check_held(slot, self._lengths[slot], length)
        self._lengths[slot] = length

    def copy(self, source: int, target: int, length: int) -> None:
        """Makes the target hold the source's first `length` tokens; raises BadOption if the source holds fewer."""
        check_held(source, self._lengths[source], length)
        if source != target:
            for memory in (*self.keys, *self.values):
                memory[target, :, :length] = memory[source, :, :length]
        self._lengths[target] = length

    @torch.no_grad()
    def read(self, feeds: Sequence[Feed]) -> Tensor:
        """Reads tokens into different slots; float32 logits (sum of `logits`, V), in order. Errors: see `Runner`."""
        check_fed(self.config, self._lengths, feeds)
        logits: dict[int, Tensor] = {}
        steps = [place for place, feed in enumerate(feeds) if len(feed.ids) == 1]
        if steps:
            step_BV = self._step([feeds[each].slot for each in steps], [feeds[each].ids[0] for each in steps])
            logits.update(
                (each, row_1V[: feeds[each].logits]) for each, row_1V in zip(steps, step_BV[:, None], strict=True)
            )
        hidden: dict[int, Tensor] = {}
        for group in self._groups(feeds):
            x_RTC = self._read_together([feeds[each] for each in group])
            for row, each in enumerate(group):
                end = len(feeds[each].ids)
                hidden[each] = x_RTC[row, end - feeds[each].logits : end]
        for feed in feeds:
            self._lengths[feed.slot] += len(feed.ids)
        if hidden:
            prompt_NV = self._head(torch.cat(list(hidden.values())))
            parts = torch.split(prompt_NV, [len(part) for part in hidden.values()])
            logits.update(zip(hidden, parts, strict=True))
        empty = [torch.empty(0, self.config.vocab_size, device=self.device)]
        return torch.cat(empty + [logits[place] for place in range(len(feeds))])

    def _step(self, slots: list[int], ids: list[int]) -> Tensor:
        """Logits (B, V), float32, after one more token of each of these slots. Lengths are not counted up here."""
        raise NotImplementedError

    def _embed(self, ids: Tensor, positions: Tensor) -> Tensor:
        return F.embedding(ids, self.network.wte.weight) + F.embedding(positions, self.network.wpe.weight)

    def _head(self, x_NC: Tensor) -> Tensor:
        """Logits (N, V), float32."""
        last = self.network.ln_f
        norm = (last.weight, last.bias)
        return self.operations.project(x_NC, self.network.wte.weight, None, norm=norm).float()

    def _groups(self, feeds: Sequence[Feed]) -> list[list[int]]:
        """Which feeds of several tokens are read together: into empty slots, of about equal lengths; others alone."""
        groups: list[list[int]] = []
        most = _MOST_TOKENS.get(self.device.type, _MOST_TOKENS["cpu"])
        last = -1
        for place in sorted(range(len(feeds)), key=lambda place: len(feeds[place].ids), reverse=True):
            count = len(feeds[place].ids)
            if count == 1:
                continue
            if self._lengths[feeds[place].slot]:
                groups.append([place])
                continue
            longest = len(feeds[groups[last][0]].ids) if last >= 0 else 0
            if last >= 0 and longest - count < _PADDING and (len(groups[last]) + 1) * longest <= most:
                groups[last].append(place)
            else:
                last = len(groups)
                groups.append([place])
        return groups

    def _read_together(self, feeds: Sequence[Feed]) -> Tensor:
        """The last block's output (R, T, C) for feeds that start at the same place; shorter rows have junk behind."""
        start, T = self._lengths[feeds[0].slot], max(len(feed.ids) for feed in feeds)
        ids_RT = torch.tensor([[*feed.ids, *[0] * (T - len(feed.ids))] for feed in feeds], device=self.device)
        slots_R = torch.tensor([feed.slot for feed in feeds], device=self.device)
        x_RTC = self._embed(ids_RT, torch.arange(start, start + T, device=self.device)[None])
        for layer, keys, values in zip(self.layers, self.keys, self.values, strict=True):
            x_RTC = self._prompt_block(self.operations, x_RTC, keys, values, slots_R, start, layer)
        return x_RTC
