"""GPT-2, to be read beside the paper ("Language Models are Unsupervised Multitask Learners", section 2.3).

Plain PyTorch and nothing for speed: faster paths live in `runners/` and are tested equal to this file.
Weights have the shapes and names of OpenAI's and Hugging Face's files, so a file is loaded as it lies.

Letters in names and comments: B batch, T new tokens, S tokens attended to, C model width (n_embd), H heads,
D head width (C = H·D), F width of the MLP, V vocabulary.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpt2.cache import KVCache
from gpt2.config import GPT2Config
from gpt2.errors import BadPrompt, ContextOverflow


def activation(name: str, x: Tensor) -> Tensor:
    """GPT-2's is `gelu_new`, Hendrycks and Gimpel's tanh approximation; the others are for files that say so."""
    match name:
        case "gelu_new" | "gelu_pytorch_tanh":
            return F.gelu(x, approximate="tanh")
        case "gelu":
            return F.gelu(x)
        case "relu":
            return F.relu(x)
        case "silu" | "swish":
            return F.silu(x)
    raise ValueError(name)


def attention_scale(config: GPT2Config, layer: int) -> float:
    """What products of queries and keys are multiplied with: 1/√D, but for files that say otherwise."""
    scale = 1 / math.sqrt(config.head_dim) if config.scale_attn_weights else 1.0
    return scale / (layer + 1) if config.scale_attn_by_inverse_layer_idx else scale


class Projection(nn.Module):
    """y = x W + b, with W stored (in, out) as OpenAI's code has it (`nn.Linear` stores the transpose)."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(n_in, n_out))
        self.bias = nn.Parameter(torch.empty(n_out))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.t(), self.bias)


class Attention(nn.Module):
    """Causal self-attention with several heads; query, key and value come from one projection."""

    def __init__(self, config: GPT2Config, layer: int) -> None:
        super().__init__()
        self.config, self.layer = config, layer
        self.c_attn = Projection(config.n_embd, 3 * config.n_embd)
        self.c_proj = Projection(config.n_embd, config.n_embd)
        self.scale = attention_scale(config, layer)

    def forward(self, x_BTC: Tensor, cache: KVCache | None, mask_BTS: Tensor | None) -> Tensor:
        config = self.config
        B, T, C = x_BTC.shape
        # (B, T, 3C) -> three of (B, H, T, D)
        q, k, v = (
            part.view(B, T, config.n_head, config.head_dim).transpose(1, 2)
            for part in self.c_attn(x_BTC).split(C, dim=2)
        )
        if cache is not None:
            k, v = cache.write(self.layer, k, v)
        width = v.dtype
        if config.reorder_and_upcast_attn:
            q, k, v = q.float(), k.float(), v.float()
        y_BHTD = F.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=None if mask_BTS is None else mask_BTS[:, None],
            dropout_p=config.attn_pdrop if self.training else 0.0,
            # With nothing read before, token t sees tokens 0 to t; a single new token sees all.
            is_causal=mask_BTS is None and T > 1,
            scale=self.scale,
        )
        y_BTC = y_BHTD.to(width).transpose(1, 2).reshape(B, T, C)
        return F.dropout(self.c_proj(y_BTC), config.resid_pdrop, self.training)


class MLP(nn.Module):
    """Two projections with an activation between, the same for every position."""

    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        self.config = config
        self.c_fc = Projection(config.n_embd, config.mlp_width)
        self.c_proj = Projection(config.mlp_width, config.n_embd)

    def forward(self, x_BTC: Tensor) -> Tensor:
        h_BTF = activation(self.config.activation_function, self.c_fc(x_BTC))
        return F.dropout(self.c_proj(h_BTF), self.config.resid_pdrop, self.training)


class Block(nn.Module):
    """Attention, then MLP; each reads a normed copy of the residual stream and adds to the stream ("pre-norm")."""

    def __init__(self, config: GPT2Config, layer: int) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd, config.layer_norm_epsilon)
        self.attn = Attention(config, layer)
        self.ln_2 = nn.LayerNorm(config.n_embd, config.layer_norm_epsilon)
        self.mlp = MLP(config)

    def forward(self, x_BTC: Tensor, cache: KVCache | None, mask_BTS: Tensor | None) -> Tensor:
        x_BTC = x_BTC + self.attn(self.ln_1(x_BTC), cache, mask_BTS)
        x_BTC = x_BTC + self.mlp(self.ln_2(x_BTC))
        return x_BTC


class GPT2(nn.Module):
    """The decoder: embed, add positions, blocks, a last norm, project back onto the embedding.

    Parameters are made empty: load them, or call `initialise`. On the meta device a model of any size costs nothing:
    `with torch.device("meta"): GPT2(config)`.
    """

    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        self.config = config
        # Empty parameters: nn.Embedding would draw random numbers that are thrown away.
        self.wte = nn.Embedding(config.vocab_size, config.n_embd, _weight=torch.empty(config.vocab_size, config.n_embd))
        self.wpe = nn.Embedding(
            config.n_positions, config.n_embd, _weight=torch.empty(config.n_positions, config.n_embd)
        )
        self.h = nn.ModuleList(Block(config, layer) for layer in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd, config.layer_norm_epsilon)

    def hidden(self, ids_BT: Tensor, cache: KVCache | None = None) -> Tensor:
        """The last norm's output (B, T, C) for token ids (B, T) int64; arguments and errors as `forward`."""
        T = ids_BT.shape[1]
        if cache is not None:
            cache.check_room(T)
        elif self.config.n_positions < T:
            raise ContextOverflow(f"{T} tokens do not fit in this model's window of {self.config.n_positions}.")
        self._check_ids(ids_BT)
        position_BT, mask_BTS = self._place(ids_BT, cache)
        x_BTC = self.wte(ids_BT) + self.wpe(position_BT)
        x_BTC = F.dropout(x_BTC, self.config.embd_pdrop, self.training)
        for block in self.h:
            x_BTC = block(x_BTC, cache, mask_BTS)
        if cache is not None:
            cache.advance(T)
        normed_BTC: Tensor = self.ln_f(x_BTC)
        return normed_BTC

    def forward(self, ids_BT: Tensor, cache: KVCache | None = None) -> Tensor:
        """Logits (B, T, V): for every token, how likely each token of the vocabulary is to come next.

        ids_BT: token ids (B, T), int64. With a cache the new tokens follow what each row has already read, and the
        cache then holds them too; without one they stand at positions 0 to T-1.

        Raises ContextOverflow past the window (checked before anything runs) and BadPrompt for an id that is not in
        the vocabulary.
        """
        return F.linear(self.hidden(ids_BT, cache), self.wte.weight)

    def loss(self, ids_BT: Tensor, targets_BT: Tensor) -> Tensor:
        """Summed cross-entropy in nats, a float32 scalar, over all targets (B, T) int64 that are not -100.

        A sum and not a mean: a batch in pieces then adds up to the batch, however ragged its targets are.
        """
        logits_BTV = self(ids_BT)
        # A float64 model (gradient tests) keeps its width; narrower ones take their loss in float32.
        wide = torch.promote_types(logits_BTV.dtype, torch.float32)
        return F.cross_entropy(
            logits_BTV.flatten(0, 1).to(wide), targets_BT.flatten(), ignore_index=-100, reduction="sum"
        )

    def initialise(self, seed: int, position_std: float | None = None) -> "GPT2":
        """Fills the parameters at random, in place, and returns the model.

        Weights are normal with `initializer_range` (0.02), biases 0, norms 1 and 0. The two projections of each block
        that write to the residual stream are scaled by 1/√(2·n_layer), as section 2.3 says (OpenAI's published code
        leaves that out). Hugging Face draws the positions at 0.02 like everything else, the default here; OpenAI's
        code draws them at 0.01 (`position_std=0.01`).
        The numbers depend on the seed and the shape alone, not on the device.
        """
        random = torch.Generator().manual_seed(seed)
        std = self.config.initializer_range
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                if name.endswith("bias"):
                    parameter.zero_()
                elif ".ln_" in name or name.startswith("ln_f"):
                    parameter.fill_(1)
                else:
                    scale = std
                    if name == "wpe.weight" and position_std is not None:
                        scale = position_std
                    elif name.endswith("c_proj.weight"):
                        scale = std / math.sqrt(2 * self.config.n_layer)
                    parameter.copy_(torch.empty(parameter.shape).normal_(0, scale, generator=random))
        return self

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.wte.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """The parameters' dtype."""
        return self.wte.weight.dtype

    def new_cache(self, rows: int = 1, capacity: int | None = None) -> KVCache:
        """An empty cache that fits this model."""
        return KVCache(self.config, rows, capacity, dtype=self.dtype, device=self.device)

    def _check_ids(self, ids_BT: Tensor) -> None:
        # On the CPU the check is nearly free; on a GPU it would wait for the device at every step, and whoever
        # launches work there checks ids on the host.
        if ids_BT.device.type == "cpu" and ids_BT.numel() and not torch.compiler.is_compiling():
            low, high = int(ids_BT.min()), int(ids_BT.max())
            if low < 0 or high >= self.config.vocab_size:
                bad = low if low < 0 else high
                raise BadPrompt(f"Token id {bad} is not in this model's vocabulary of {self.config.vocab_size}.")

    def _place(self, ids_BT: Tensor, cache: KVCache | None) -> tuple[Tensor, Tensor | None]:
        """Positions of the new tokens, (B, T) or (1, T), and who may see whom, (B, T, S); None: plainly causal."""
        T, device = ids_BT.shape[1], ids_BT.device
        new_T = torch.arange(T, device=device)
        if cache is None or len(cache) == 0:
            return new_T[None], None
        position_BT = cache.lengths.to(device)[:, None] + new_T
        if T == 1 and int(cache.lengths.min()) == len(cache):
            return position_BT, None
        place_S = torch.arange(len(cache) + T, device=device)
        return position_BT, place_S <= position_BT[:, :, None]
