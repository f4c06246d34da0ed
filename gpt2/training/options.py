"""What can be set about a training run, and the recipes: named sets of values in short TOML files.

The resolved options of a run are written beside it as `recipe.toml`, which can be read back as a recipe.
"""

import dataclasses
import difflib
import json
import math
import tomllib
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gpt2.config import GPT2Config
from gpt2.errors import BadOption, Notice
from gpt2.threads import check_threads
from gpt2.training.trackers import check_names

GPT2_VOCABULARY = 50257
RECIPES = Path(__file__).parent / "recipes"


def _option(default: Any, help: str, least: int = 0, most: float = math.inf, below: float = math.inf) -> Any:
    """A field; a number is at least `least`, at most `most` and below `below`."""
    return field(default=default, metadata={"help": help, "least": least, "most": most, "below": below})


@dataclass(frozen=True, slots=True)
class TrainingOptions:
    """Everything about a run but its data. The help of every field is what `gpt2 train --help` prints.

    Some fields say where and how a run is computed, not what is learnt (`HOW`): a run may go on with others.
    """

    init: str = _option(
        "",
        "A model to begin with, by name or folder: its shape and vocabulary. `gpt2 train`: none, random weights; `gpt2 "
        "finetune`: the recipe's, gpt2 (fetched from the hub); bookworm ships.",
    )
    n_layer: int = _option(6, "Blocks.", least=1)
    n_head: int = _option(6, "Attention heads.", least=1)
    n_embd: int = _option(384, "Width of the model.", least=1)
    context: int = _option(256, "Window in tokens (n_positions).", least=1)
    vocab_size: int = _option(0, "Learn a vocabulary of this many tokens on the training text; 0: GPT-2's own 50,257.")
    dropout: float = _option(
        0.0,
        "Dropout on the embedding and on what each block adds. Its masks are drawn for a micro-batch at a time, so set "
        "micro_batch_size where the number of processes will change.",
        below=1,
    )
    attention_dropout: float = _option(0.0, "Dropout on attention weights (slow on a CPU).", below=1)

    steps: int = _option(1000, "Optimiser steps.", least=1)
    batch_size: int = _option(32, "Sequences per step.", least=1)
    batch_tokens: int = _option(0, "Tokens per step, instead of batch_size; 0: batch_size says.")
    micro_batch_size: int = _option(
        0,
        "Sequences per forward pass; gradients add up to the batch. 0: what fits; a resumed run keeps it. With dropout "
        "other numbers of processes learn the same only where it divides the share that each has of a batch.",
    )
    optimizer: str = _option("adamw", "adamw, or muon (Muon for the blocks' matrices and AdamW for the rest).")
    learning_rate: float = _option(1e-3, "Highest learning rate; of muon's matrices, matched to AdamW's steps.")
    adamw_share: float = _option(1.0, "Learning rate of what AdamW moves beside muon, as a share of learning_rate.")
    min_learning_rate: float = _option(0.1, "Lowest learning rate, as a share of the highest.", most=1)
    schedule: str = _option("cosine", "cosine, or wsd (warm-up, stable, decay).")
    warmup_steps: int = _option(
        -1,
        "Steps of linear warm-up; -1: a tenth of the steps, at most 100. A recipe's is cut to a tenth of typed steps.",
        least=-1,
    )
    decay_share: float = _option(0.3, "Share of the steps in which wsd decays.", most=1)
    weight_decay: float = _option(0.1, "Decoupled weight decay, on matrices only.")
    beta1: float = _option(0.9, "AdamW's first-moment decay.", below=1)
    beta2: float = _option(0.95, "AdamW's second-moment decay.", below=1)
    grad_clip: float = _option(1.0, "Largest norm of the gradient; 0: no clipping.")
    skip_spikes: float = _option(0.0, "Skip steps whose loss or gradient is so many deviations too high; 0: never.")

    validation: float = _option(0.1, "Share held out: of documents by hash, or of a single document its end.", below=1)
    eval_every: int = _option(100, "Steps between validation losses; 0: at the end only.")
    eval_tokens: int = _option(0, "Validation tokens scored during training; 0: all. The end scores all of them.")
    patience: int = _option(0, "Stop after so many validations in a row without a better one; 0: never.")
    sample_every: int = _option(250, "Steps between samples; 0: at the end only.")
    save_every: int = _option(250, "Steps between checkpoints, beside those of better validations; 0: at the end only.")
    keep: int = _option(2, "Newest checkpoints kept, beside the best one; 0: all.")

    seed: int = _option(1, "Decides the first weights, the order of the data and the dropout.")
    dtype: str = _option("float32", "float32, or bfloat16 (to compute with; the weights that are kept stay float32).")
    device: str = _option("cpu", "cpu, cuda, cuda:1, mps.")
    threads: int = _option(0, "CPU threads; 0: as many as torch takes.")
    compile: bool = _option(False, "Compile the model (torch.compile).")
    parallel: str = _option("auto", "Under torchrun: ddp (every process has all weights), fsdp (shards), or auto.")
    trackers: str = _option("auto", "Beside metrics.jsonl: tensorboard, wandb, trackio, several by comma, none, auto.")

    def __post_init__(self) -> None:
        for item in dataclasses.fields(self):
            _check_value(item, getattr(self, item.name))
        check_threads(self.threads)
        if self.seed >= 2**64:
            raise BadOption(f"seed is {self.seed}, but it must be below 2**64: choose a shorter number.")
        check_names(self.trackers)
        if self.dtype == "float16":
            raise BadOption(
                "dtype float16 is not trained in: its range is so small that gradients vanish without warning. "
                "bfloat16 is as fast and has none of that."
            )
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                raise BadOption(f"{name} is {getattr(self, name)!r}; it must be one of {', '.join(allowed)}.")
        if self.patience and not self.eval_every:
            raise BadOption("patience counts validations on the way: set eval_every, too.")
        if self.warmup_steps == -1:
            object.__setattr__(self, "warmup_steps", self._usual_warmup)
        if self.warmup_steps > self._most_warmup:
            decay = f", the last {self._decay_steps:,} of which decay" if self.schedule == "wsd" else ""
            raise BadOption(
                f"warmup_steps = {self.warmup_steps:,} does not fit into a run of {self.steps:,} steps{decay}; "
                f"choose more --steps, or --warmup-steps {self._usual_warmup} (with --resume also --allow-changes)."
            )
        if self.batch_tokens:
            if self.batch_tokens % self.context:
                raise BadOption(
                    f"batch_tokens = {self.batch_tokens} is no multiple of context = {self.context}; choose one."
                )
            # A field that another one decides; a resolved recipe says both alike.
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
        left = min(self.steps - step, self._decay_steps)
        return self.learning_rate * (floor + (1 - floor) * left / self._decay_steps)

    @property
    def _decay_steps(self) -> int:
        return max(1, round(self.decay_share * self.steps))

    @property
    def _most_warmup(self) -> int:
        """The longest warm-up after which there is something left of the run, and that does not reach into its decay:
        past that, the rate would never be what was asked for, or fall in one step."""
        return max(0, self.steps - (self._decay_steps if self.schedule == "wsd" else 1))

    @property
    def _usual_warmup(self) -> int:
        return min(100, self.steps // 10, self._most_warmup)

    def share(self, processes: int, name: str = "processes") -> int:
        """Sequences of a step for each of many processes; `name` is what an error calls them. Raises BadOption for a
        batch that cannot be shared evenly."""
        share, rest = divmod(self.batch_size, processes)
        if rest:
            raise BadOption(
                f"A batch of {self.batch_size} sequences cannot be shared evenly by {processes} {name}; "
                "choose another number of either."
            )
        return share

    def rows_at_once(self, processes: int = 1) -> int:
        """Sequences of a forward pass on each of many processes: a micro-batch, or what divides it and their share."""
        share = self.share(processes)
        return math.gcd(share, self.micro_batch_size or share)

    def with_rows(self, rows: int, processes: int = 1) -> "TrainingOptions":
        """The options with a batch that is one pass of `rows` sequences on each process."""
        return dataclasses.replace(self, batch_tokens=0, batch_size=rows * processes, micro_batch_size=rows)

    def of_shape(self, config: GPT2Config) -> "TrainingOptions":
        """The options with the shape of the model that `init` names: whatever a recipe says, the weights decide.

        Raises BadOption for a context that its window cannot hold.
        """
        if self.context > config.n_positions:
            raise BadOption(f"context is {self.context}, but {self.init} has a window of {config.n_positions}.")
        shape = {name: getattr(config, name) for name in ("n_layer", "n_head", "n_embd")}
        return dataclasses.replace(self, vocab_size=0, **shape)

    def changed(self, changes: Mapping[str, Any]) -> "TrainingOptions":
        """The options with some fields changed by hand. Raises BadOption."""
        return TrainingOptions(**laid_over(dataclasses.asdict(self), changes))

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


def chosen_options(recipe: str | None, given: Mapping[str, Any]) -> TrainingOptions:
    """A recipe's values (`read_recipe`), and over them those that were typed. Raises BadOption."""
    values = over_recipe(read_recipe(recipe) if recipe else {}, given)
    shape = [name for name in ("n_layer", "n_head", "n_embd", "vocab_size") if given.get(name)]
    if values.get("init") and shape:
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in shape)
        raise BadOption(
            f"{flags} is for a new model, but init = {values['init']!r} brings its shape and vocabulary along; "
            "leave one of them out (--init '' begins with random weights)."
        )
    return TrainingOptions.from_mapping(values, "the command line")


def over_recipe(recipe: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe's values, and over them those that were typed (`laid_over`).

    A warm-up that the recipe sets, and nobody typed, belongs to a run of the recipe's length (`shorter_warmup`). The
    resolved recipe has the shorter one.
    """
    values = laid_over(recipe, given)
    steps, warmup, own = given.get("steps"), values.get("warmup_steps"), recipe.get("steps", _DEFAULTS["steps"])
    if "warmup_steps" not in given and isinstance(steps, int) and isinstance(warmup, int) and isinstance(own, int):
        values["warmup_steps"] = shorter_warmup(warmup, own, steps, " (--warmup-steps sets another)")
    return values


def shorter_warmup(warmup: int, own: int, steps: int, hint: str = "") -> int:
    """The warm-up that a run of `own` steps has, for a run of `steps`: at most a tenth of those if they are fewer.

    A shorter one is told (Notice), and `hint` after it.
    """
    most = max(0, steps) // 10
    if steps >= own or warmup <= most:
        return warmup
    warnings.warn(
        f"the recipe's warm-up of {warmup:,} steps is long for a run of {steps:,}: it is {most:,} here{hint}",
        Notice,
        stacklevel=3,
    )
    return most


def laid_over(values: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Values, and over them those that were typed. What a typed batch makes meaningless is dropped."""
    merged = {**values, **given}
    if given.get("batch_size") and given.get("batch_tokens"):
        raise BadOption("batch_size and batch_tokens are two ways to say the same; give one of them.")
    if "batch_size" in given:
        merged["batch_tokens"] = 0
    micro = merged.get("micro_batch_size", 0)
    if given.keys() & {"batch_size", "batch_tokens", "context"} and micro and "micro_batch_size" not in given:
        # Nobody typed it, and what fits is found again. (If it is no number, the options say so.)
        sizes = {name: merged.get(name, _DEFAULTS[name]) for name in ("batch_size", "batch_tokens", "context")}
        if all(isinstance(size, int) for size in (micro, *sizes.values())) and sizes["context"] > 0:
            rows = sizes["batch_tokens"] // sizes["context"] or sizes["batch_size"]
            merged["micro_batch_size"] = 0 if rows % micro else micro
    return merged


def _check_value(item: "dataclasses.Field[Any]", value: Any) -> None:
    """Raises BadOption for a value of another type than the field's, or outside its bounds."""
    kind, least, most, below = item.type, item.metadata["least"], item.metadata["most"], item.metadata["below"]
    if kind is bool or kind is str:
        right, wanted = isinstance(value, kind), "true or false" if kind is bool else "text"
    else:
        number = isinstance(value, int if kind is int else int | float) and not isinstance(value, bool)
        right = number and least <= value <= most and value < below
        finite = "finite " * (isinstance(value, float) and not math.isfinite(value))
        wanted = f"a {finite}{'whole ' * (kind is int)}number of at least {least}"
        wanted += f" and at most {most}" * (most < math.inf) + f" and below {below}" * (below < math.inf)
    if not right:
        raise BadOption(f"{item.name} is {value!r}, but it must be {wanted}.")


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

_DEFAULTS: Mapping[str, Any] = {item.name: item.default for item in dataclasses.fields(TrainingOptions)}

HOW = frozenset(
    (
        *("steps", "eval_every", "eval_tokens", "patience", "sample_every", "save_every", "keep"),
        *("device", "threads", "compile", "parallel", "trackers"),
    )
)
"""Fields that may change when a run goes on: they say how long, how often and where, not what is learnt."""


def _cosine(floor: float, step: int, steps: int) -> float:
    return floor + (1 - floor) * (1 + math.cos(math.pi * min(1.0, step / max(1, steps)))) / 2


def recipe_names() -> list[str]:
    """The recipes in the package."""
    return sorted(path.stem for path in RECIPES.glob("*.toml"))


def recipe_file(name: str, folder: Path, whose: str) -> tuple[Path, dict[str, Any]]:
    """Where a recipe is, and all that it says: one of a folder's by name, or a TOML file by its path.

    whose: who has the folder's recipes, for the message. Raises BadOption.
    """
    known = sorted(path.stem for path in folder.glob("*.toml"))
    path = folder / f"{name}.toml" if name in known else Path(name)
    if not path.is_file():
        near = difflib.get_close_matches(name, known, n=1)
        meant = f"did you mean {near[0]}? " if near else ""
        raise BadOption(f"There is no recipe called {name!r} and no such file; {meant}{whose} has {', '.join(known)}.")
    try:
        return path, tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadOption(f"{path} is not valid TOML ({error}).") from None


def read_recipe(name: str) -> dict[str, Any]:
    """The values that a recipe sets: one of the package's by name, or a TOML file by its path. Raises BadOption."""
    path, values = recipe_file(name, RECIPES, "the package")
    # A run's recipe.toml says what data it had, too.
    values.pop("run", None)
    _check_names(values, str(path))
    return values
