"""The shape of a GPT-2, read from and written to Hugging Face's `config.json`.

This file knows which keys change what the model computes. Each such key is honoured or refused by name, so that a
checkpoint never runs as something it is not. It knows nothing of tensors.
"""

import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from gpt2.errors import BadCheckpoint, BadOption, Notice

# Names of activation functions that the model computes, with what each is. OpenAI's is `gelu_new`.
ACTIVATIONS = ("gelu_new", "gelu_pytorch_tanh", "gelu", "relu", "silu", "swish")

# Keys that change the result and have only one value here: (key, the value that is honoured, what another would mean).
_FIXED_KEYS: tuple[tuple[str, Any, str], ...] = (
    ("model_type", "gpt2", "another architecture"),
    ("tie_word_embeddings", True, "an output head of its own instead of the transposed embedding"),
    ("add_cross_attention", False, "attention to an encoder"),
    ("is_encoder_decoder", False, "an encoder"),
    ("pruned_heads", {}, "attention heads taken out"),
    ("quantization_config", None, "weights in a packed format"),
)

# Keys of Hugging Face's that say how a model was used or saved, and change nothing that it computes.
_HARMLESS_KEYS = frozenset(
    """
    architectures n_ctx bos_token_id eos_token_id pad_token_id sep_token_id cls_token_id decoder_start_token_id
    use_cache transformers_version torch_dtype dtype task_specific_params summary_type summary_use_proj
    summary_activation summary_first_dropout summary_proj_to_labels gradient_checkpointing id2label label2id
    num_labels _num_labels _name_or_path name_or_path output_attentions output_hidden_states output_past
    return_dict return_dict_in_generate output_scores torchscript use_bfloat16 chunk_size_feed_forward prefix
    problem_type finetuning_task tokenizer_class is_decoder cross_attention_hidden_size attn_implementation
    _attn_implementation _attn_implementation_autoset tf_legacy_loss predict_special_tokens bad_words_ids
    do_sample early_stopping max_length min_length temperature top_k top_p typical_p repetition_penalty
    length_penalty no_repeat_ngram_size encoder_no_repeat_ngram_size num_beams num_beam_groups diversity_penalty
    num_return_sequences remove_invalid_values exponential_decay_length_penalty suppress_tokens
    begin_suppress_tokens forced_bos_token_id forced_eos_token_id
    """.split()  # noqa: SIM905
)


@dataclass(frozen=True, slots=True)
class GPT2Config:
    """A GPT-2's shape, with Hugging Face's names and defaults (the defaults are OpenAI's 124M).

    Sizes are counts: `n_positions` is the window in tokens, `n_embd` the model width, `n_inner` the width of the MLP
    (None: four times the model width). The dropouts are probabilities and act in training only.

    Raises BadOption for a shape that no GPT-2 has.
    """

    vocab_size: int = 50257
    n_positions: int = 1024
    n_embd: int = 768
    n_layer: int = 12
    n_head: int = 12
    n_inner: int | None = None
    activation_function: str = "gelu_new"
    layer_norm_epsilon: float = 1e-5
    initializer_range: float = 0.02
    embd_pdrop: float = 0.0
    attn_pdrop: float = 0.0
    resid_pdrop: float = 0.0
    scale_attn_weights: bool = True
    scale_attn_by_inverse_layer_idx: bool = False
    reorder_and_upcast_attn: bool = False

    def __post_init__(self) -> None:
        for name in ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head", "n_inner"):
            value = getattr(self, name)
            if name == "n_inner" and value is None:
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise BadOption(f"{name} is {value!r}, but it must be a whole number of at least 1.")
            if value > 2**24:
                raise BadOption(f"{name} is {value!r}, which no model has; it is at most {2**24}.")
        if self.n_embd % self.n_head:
            raise BadOption(
                f"n_embd is {self.n_embd}, which n_head = {self.n_head} does not divide; "
                "choose a width that is a multiple of the number of heads."
            )
        if self.activation_function not in ACTIVATIONS:
            raise BadOption(
                f"activation_function is {self.activation_function!r}; this package computes {', '.join(ACTIVATIONS)}."
            )
        for name in ("embd_pdrop", "attn_pdrop", "resid_pdrop"):
            if not 0 <= getattr(self, name) < 1:
                raise BadOption(f"{name} is {getattr(self, name)!r}, but a dropout lies in [0, 1).")
        if not self.layer_norm_epsilon > 0:
            raise BadOption(f"layer_norm_epsilon is {self.layer_norm_epsilon!r}, but it must be above 0.")

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.n_embd // self.n_head

    @property
    def mlp_width(self) -> int:
        """Width of the MLP's hidden layer."""
        return self.n_inner or 4 * self.n_embd

    def parameters_by_part(self) -> dict[str, int]:
        """Number of parameters of each part; their sum is the model's (the tied head counts once, in the embedding)."""
        width, inner = self.n_embd, self.mlp_width
        return {
            "token embedding": self.vocab_size * width,
            "position embedding": self.n_positions * width,
            "attention": self.n_layer * (width * 3 * width + 3 * width + width * width + width),
            "mlp": self.n_layer * (width * inner + inner + inner * width + width),
            "norms": self.n_layer * 4 * width + 2 * width,
        }

    @property
    def parameters(self) -> int:
        """Number of parameters."""
        return sum(self.parameters_by_part().values())

    @classmethod
    def from_json(cls, text: str, source: str = "config.json") -> "GPT2Config":
        """Reads the text of a `config.json`; `source` is the name that errors give it.

        Raises BadCheckpoint for text that is no JSON object, for a key whose value changes the result and is not
        honoured here, and for a shape that no GPT-2 has. Warns (Notice) about keys that nobody here knows.
        """
        try:
            data = json.loads(text)
        except ValueError as error:
            raise BadCheckpoint(f"{source} is not valid JSON ({error}).") from None
        if not isinstance(data, dict):
            raise BadCheckpoint(f"{source} holds a {type(data).__name__}, but a config is a JSON object.")
        return cls.from_dict(data, source)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], source: str = "config.json") -> "GPT2Config":
        """As `from_json`, for what the JSON holds."""
        for key, honoured, meaning in _FIXED_KEYS:
            value = data.get(key, honoured)
            if value != honoured and not (not value and not honoured):
                raise BadCheckpoint(
                    f"{source} says {key} = {value!r}, which means {meaning}; "
                    f"this package runs {key} = {honoured!r} only."
                )
        known = {field.name for field in fields(cls)}
        fixed = {key for key, _, _ in _FIXED_KEYS}
        unknown = sorted(set(data) - known - fixed - _HARMLESS_KEYS)
        if unknown:
            warnings.warn(
                f"{source} has keys that are not known here and were ignored: {', '.join(unknown)}.",
                Notice,
                stacklevel=2,
            )
        values = {name: data[name] for name in known if name in data}
        # JSON written elsewhere may say 1 for 1.0 or 0 for false; a boolean where a number belongs is a mistake.
        for name in ("scale_attn_weights", "scale_attn_by_inverse_layer_idx", "reorder_and_upcast_attn"):
            if not isinstance(values.get(name, False), bool):
                raise BadCheckpoint(f"{source} says {name} = {values[name]!r}, but it must be true or false.")
        for name in ("layer_norm_epsilon", "initializer_range", "embd_pdrop", "attn_pdrop", "resid_pdrop"):
            value = values.get(name, 0.0)
            if not isinstance(value, int | float) or isinstance(value, bool):
                raise BadCheckpoint(f"{source} says {name} = {value!r}, but it must be a number.")
        try:
            return cls(**values)
        except BadOption as error:
            raise BadCheckpoint(f"{source}: {error}") from None

    def to_dict(self, end_of_text: int | None = None) -> dict[str, Any]:
        """What `config.json` holds, for Hugging Face and for llama.cpp's converter (which needs `n_ctx`).

        `end_of_text` is the tokenizer's end-of-text id, GPT-2's only control token: it begins and ends documents.
        """
        return {
            "architectures": ["GPT2LMHeadModel"],
            "model_type": "gpt2",
            **{field.name: getattr(self, field.name) for field in fields(self)},
            "n_ctx": self.n_positions,
            "tie_word_embeddings": True,
            "bos_token_id": end_of_text,
            "eos_token_id": end_of_text,
        }


@dataclass(frozen=True, slots=True)
class Size:
    """One of the paper's sizes: its shape, and the number of parameters that the paper's title page and files give."""

    config: GPT2Config
    published: str


# The four sizes (paper, table 2). "Published" is what the paper printed; OpenAI corrected the first two counts later.
SIZES: Mapping[str, Size] = {
    "gpt2": Size(GPT2Config(n_embd=768, n_layer=12, n_head=12), "117M"),
    "gpt2-medium": Size(GPT2Config(n_embd=1024, n_layer=24, n_head=16), "345M"),
    "gpt2-large": Size(GPT2Config(n_embd=1280, n_layer=36, n_head=20), "762M"),
    "gpt2-xl": Size(GPT2Config(n_embd=1600, n_layer=48, n_head=25), "1542M"),
}
