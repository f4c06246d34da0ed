"""What can be set about a training run, and the recipes: named sets of values in short TOML files.

The resolved options of a run are written beside it as `recipe.toml`, which can be read back as a recipe.
"""

import dataclasses
import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gpt2.config import GPT2Config
from gpt2.errors import BadOption
from gpt2.threads import check_threads
from gpt2.training.trackers import check_names

GPT2_VOCABULARY = 50257
RECIPES = Path(__file__).parent / "recipes"


def _option(default: Any, help: str) -> Any:
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True, slots=True)
class TrainingOptions:
    """Everything about a run but its data. The help of every field is what `gpt2 train --help` prints.

    Some fields say where and how a run is computed, not what is learnt (`HOW`): a run may go on with others.
    """

    init: str = _option("", "A model to begin with, by name or folder: its shape and vocabulary. None: random weights.")
    n_layer: int = _option(6, "Blocks.")
    n_head: int = _option(6, "Attention heads.")
    n_embd: int = _option(384, "Width of the model.")
    context: int = _option(256, "Window in tokens (n_positions).")
    vocab_size: int = _option(0, "Learn a vocabulary of this many tokens on the training text; 0: GPT-2's own 50,257.")
    dropout: float = _option(0.0, "Dropout on the embedding and on what each block adds.")
    attention_dropout: float = _option(0.0, "Dropout on attention weights (slow on a CPU).")

    steps: int = _option(1000, "Optimiser steps.")
    batch_size: int = _option(32, "Sequences per step.")
    batch_tokens: int = _option(0, "Tokens per step, instead of batch_size; 0: batch_size says.")
    micro_batch_size: int = _option(0, "Sequences per forward pass; gradients add up to the batch. 0: what fits.")
    optimizer: str = _option("adamw", "adamw, or muon (Muon for the blocks' matrices and AdamW for the rest).")
    learning_rate: float = _option(1e-3, "Highest learning rate; of muon's matrices, matched to AdamW's steps.")
    adamw_share: float = _option(1.0, "Learning rate of what AdamW moves beside muon, as a share of learning_rate.")
    min_learning_rate: float = _option(0.1, "Lowest learning rate, as a share of the highest.")
    schedule: str = _option("cosine", "cosine, or wsd (warm-up, stable, decay).")
    warmup_steps: int = _option(100, "Steps of linear warm-up.")
    decay_share: float = _option(0.3, "Share of the steps in which wsd decays.")
    weight_decay: float = _option(0.1, "Decoupled weight decay, on matrices only.")
    beta1: float = _option(0.9, "AdamW's first-moment decay.")
    beta2: float = _option(0.95, "AdamW's second-moment decay.")
    grad_clip: float = _option(1.0, "Largest norm of the gradient; 0: no clipping.")
    skip_spikes: float = _option(0.0, "Skip steps whose loss or gradient is so many deviations too high; 0: never.")

    validation: float = _option(0.1, "Share held out: of the documents by hash, or of a single document its end.")
    eval_every: int = _option(100, "Steps between validation losses; 0: at the end only.")
    eval_tokens: int = _option(0, "Validation tokens scored during training; 0: all. The end scores all of them.")
    sample_every: int = _option(250, "Steps between samples; 0: at the end only.")
    save_every: int = _option(250, "Steps between checkpoints; 0: at the end only.")
    keep: int = _option(2, "Newest checkpoints kept, beside the best one; 0: all.")

    seed: int = _option(1, "Decides the first weights, the order of the data and the dropout.")
    dtype: str = _option("float32", "float32, or bfloat16 (to compute with; the weights that are kept stay float32).")
    device: str = _option("cpu", "cpu, cuda, cuda:1, mps.")
    threads: int = _option(0, "CPU threads; 0: as many as torch takes.")
    compile: bool = _option(False, "Compile the model (torch.compile).")
    parallel: str = _option("auto", "Under torchrun: ddp (every process has all weights), fsdp (shards), or auto.")
    trackers: str = _option("auto", "Beside metrics.jsonl: tensorboard, wandb, trackio, several by comma, none, auto.")

    def __post_init__(self) -> None:
        positive = ("n_layer", "n_head", "n_embd", "context", "steps", "batch_size")
        whole = (
            "vocab_size",
            "batch_tokens",
            "micro_batch_size",
            "warmup_steps",
            "eval_every",
            "eval_tokens",
            "sample_every",
        )
        for name in (*positive, *whole, "save_every", "keep", "seed", "threads"):
            value, least = getattr(self, name), 1 if name in positive else 0
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise BadOption(f"{name} is {value!r}, but it must be a whole number of at least {least}.")
        for name in (
            "learning_rate",
            "adamw_share",
            "min_learning_rate",
            "decay_share",
            "weight_decay",
            "grad_clip",
            "skip_spikes",
        ):
            value = getattr(self, name)
            if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < float("inf"):
                raise BadOption(f"{name} is {value!r}, but it must be a number of at least 0.")
        for name in ("dropout", "attention_dropout", "beta1", "beta2", "validation"):
            value = getattr(self, name)
            if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < 1:
                raise BadOption(f"{name} is {value!r}, but it must lie in [0, 1).")
        check_threads(self.threads)
        if self.seed >= 2**64:
            raise BadOption(f"seed is {self.seed}, but it must be below 2**64: choose a shorter number.")
        if self.min_learning_rate > 1 or self.decay_share > 1:
            raise BadOption("min_learning_rate and decay_share are shares: at most 1.")
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                raise BadOption(f"{name} is {getattr(self, name)!r}; it must be one of {', '.join(allowed)}.")
        for name in ("init", "parallel", "trackers"):
            if not isinstance(getattr(self, name), str):
                raise BadOption(f"{name} is {getattr(self, name)!r}, but it must be text.")
        check_names(self.trackers)
        if self.dtype == "float16":
            raise BadOption(
                "dtype float16 is not trained in: its range is so small that gradients vanish without warning. "
                "bfloat16 is as fast and has none of that."
            )
        if self.batch_tokens:
            if self.batch_tokens % self.context:
                raise BadOption(
                    f"batch_tokens = {self.batch_tokens} is no multiple of context = {self.context}; choose one."
                )
            # The one field that another one decides; a resolved recipe says both alike.
            object.__setattr__(self, "batch_size", self.batch_tokens // self.context)
        if self.micro_batch_size and self.batch_size % self.micro_batch_size:
            raise BadOption(
                f"micro_batch_size = {self.micro_batch_size} does not divide batch_size = {self.batch_size}; "
                "choose a divisor."
            )
        # A shape that no GPT-2 has is refused here, before any data is read.
        self.model_config(vocab_size=self.vocab_size or GPT2_VOCABULARY)

    def model_config(self, vocab_size: int) -> GPT2Config:
        """The shape of the model, for a vocabulary of this many tokens."""
        return GPT2Config(
            vocab_size=vocab_size,
            n_positions=self.context,
            n_embd=self.n_embd,
            n_layer=self.n_layer,
            n_head=self.n_head,
            embd_pdrop=self.dropout,
            resid_pdrop=self.dropout,
            attn_pdrop=self.attention_dropout,
        )

    def learning_rate_at(self, step: int) -> float:
        """The learning rate of a step, the first being step 0."""
        floor = self.min_learning_rate
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        if self.schedule == "cosine":
            return self.learning_rate * _cosine(floor, step - self.warmup_steps, self.steps - self.warmup_steps)
        decay_steps = max(1, round(self.decay_share * self.steps))
        left = min(self.steps - step, decay_steps)
        return self.learning_rate * (floor + (1 - floor) * left / decay_steps)

    def to_toml(self) -> str:
        """The options as TOML that `from_mapping` reads back."""
        # Characters as they are: JSON's pairs of escapes for an emoji are no TOML.
        return "".join(
            f"{name} = {json.dumps(value, ensure_ascii=False)}\n" for name, value in dataclasses.asdict(self).items()
        )

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any], source: str) -> "TrainingOptions":
        """Options from a recipe's values; `source` is the name that errors give it. Raises BadOption."""
        _check_names(values, source)
        return cls(**values)


def _check_names(values: Mapping[str, Any], source: str) -> None:
    unknown = sorted(set(values) - {item.name for item in dataclasses.fields(TrainingOptions)})
    if unknown:
        raise BadOption(f"{source} sets {', '.join(unknown)}, which no option is called; see `gpt2 train --help`.")


_CHOICES: Mapping[str, tuple[str, ...]] = {
    "optimizer": ("adamw", "muon"),
    "schedule": ("cosine", "wsd"),
    "dtype": ("float32", "bfloat16"),
    "parallel": ("auto", "ddp", "fsdp"),
}

HOW = frozenset(
    (
        *("steps", "eval_every", "eval_tokens", "sample_every", "save_every", "keep"),
        *("device", "threads", "compile", "parallel", "trackers"),
    )
)
"""Fields that may change when a run goes on: they say how long, how often and where, not what is learnt."""


def _cosine(floor: float, step: int, steps: int) -> float:
    from math import cos, pi

    return floor + (1 - floor) * (1 + cos(pi * min(1.0, step / max(1, steps)))) / 2


def recipe_names() -> list[str]:
    """The recipes in the package."""
    return sorted(path.stem for path in RECIPES.glob("*.toml"))


def read_recipe(name: str) -> dict[str, Any]:
    """The values that a recipe sets: one of the package's by name, or a TOML file by its path. Raises BadOption."""
    path = RECIPES / f"{name}.toml"
    if name not in recipe_names():
        path = Path(name)
        if not path.is_file():
            known = ", ".join(recipe_names())
            raise BadOption(f"There is no recipe called {name!r} and no such file; the package has {known}.")
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadOption(f"{path} is not valid TOML ({error}).") from None
    # A run's recipe.toml says what data it had, too.
    values.pop("run", None)
    _check_names(values, str(path))
    return values
