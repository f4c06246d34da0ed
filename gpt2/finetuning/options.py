"""What can be asked of a fine-tuning beside training's own options, and its recipes: short TOML files.

A recipe has a table [task] with these options; what stands before it are values of TrainingOptions, laid over those of
training's recipe `finetune`. No torch here.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gpt2.errors import BadOption
from gpt2.tasks.template import Template
from gpt2.training.options import read_recipe, recipe_file

RECIPES = Path(__file__).parent / "recipes"
MATRICES = ("c_attn", "c_proj", "c_fc")
SCORES = ("rouge", "bleu")


def _option(default: Any, help: str) -> Any:
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True, slots=True)
class FinetuneOptions:
    """What is learnt from rows, and into what. Raises BadOption, naming the field, its value and what it may be."""

    name: str = _option("", "Name of the task, for task.json; the recipe's.")
    template: str = _option(
        "",
        "Prompt and target, with columns in braces: '{article}\\nTL;DR: {summary}'. The target is the last field (or "
        "what stands behind {|}). None: plain text files, every token of which is learnt.",
    )
    classify: bool = _option(False, "The target is one of a few labels: their accuracy is told at the end.")
    lora: int = _option(0, "Rank of a LoRA adapter that is learnt instead of the weights; 0: all weights.")
    lora_alpha: float = _option(0.0, "Its strength: the product is multiplied by alpha / rank; 0: twice the rank.")
    lora_targets: str = _option("c_attn,c_proj,c_fc", "Matrices that get one, by comma.")
    epochs: float = _option(0.0, "Times that every example is read; sets --steps. 0: --steps says.")
    rows: int = _option(0, "Most rows that are read: of a large dump, or a set on the hub. 0: all.")
    held_out: str = _option("", "A file with rows to validate on; none: a share of the rows (--validation).")
    skip_bad: bool = _option(False, "Leave out rows that cannot be used, and count them.")
    score: str = _option(
        "",
        "Scores of the answers at the end: rouge, bleu, both by comma (extra `finetune`); none.",
    )
    examples: int = _option(3, "Held-out examples that are shown with the answers before and after.")
    scored: int = _option(200, "Most held-out examples that are answered for --score or labelled for --classify.")

    def __post_init__(self) -> None:
        for name in ("lora", "rows", "examples", "scored"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 0:
                raise BadOption(f"{name} is {value!r}, but it must be a whole number of at least 0.")
        for name in ("lora_alpha", "epochs"):
            value = getattr(self, name)
            if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < float("inf"):
                raise BadOption(f"{name} is {value!r}, but it must be a number of at least 0.")
        for name in ("classify", "skip_bad"):
            if not isinstance(getattr(self, name), bool):
                raise BadOption(f"{name} is {getattr(self, name)!r}, but it must be true or false.")
        for name in ("name", "template", "lora_targets", "held_out", "score"):
            if not isinstance(getattr(self, name), str):
                raise BadOption(f"{name} is {getattr(self, name)!r}, but it must be text.")
        _check_listed("lora_targets", self.matrices, MATRICES)
        _check_listed("score", self.scores, SCORES)
        if self.lora and not self.matrices:
            raise BadOption(f"lora_targets is empty; name some of {', '.join(MATRICES)}.")
        if self.template:
            Template(self.template)
        elif self.classify or self.scores or self.held_out or self.epochs:
            raise BadOption("classify, score, held_out and epochs are for rows of columns: give a --template, too.")

    @property
    def matrices(self) -> tuple[str, ...]:
        """The matrices that get an adapter."""
        return tuple(part.strip() for part in self.lora_targets.split(",") if part.strip())

    @property
    def scores(self) -> tuple[str, ...]:
        """The scores that are asked for."""
        return tuple(part.strip() for part in self.score.split(",") if part.strip() not in ("", "none"))

    @property
    def alpha(self) -> float:
        """The adapter's strength."""
        return self.lora_alpha or 2.0 * self.lora

    def record(self) -> dict[str, Any]:
        """The options for a run's recipe.toml."""
        return dataclasses.asdict(self)

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any], source: str) -> "FinetuneOptions":
        """Options from a recipe's table; `source` is the name that errors give it. Raises BadOption."""
        unknown = sorted(set(values) - {item.name for item in dataclasses.fields(cls)})
        if unknown:
            raise BadOption(
                f"{source} sets {', '.join(unknown)}, which no option is called; see `gpt2 finetune --help`."
            )
        return cls(**values)


def _check_listed(name: str, given: tuple[str, ...], known: tuple[str, ...]) -> None:
    unknown = [part for part in given if part not in known]
    if unknown:
        raise BadOption(f"{name} names {unknown[0]!r}; it knows {', '.join(known)}.")


def task_recipe_names() -> list[str]:
    """The fine-tuning recipes in the package."""
    return sorted(path.stem for path in RECIPES.glob("*.toml"))


def read_task_recipe(name: str | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """A recipe's values for TrainingOptions and for FinetuneOptions: one of the package's, or a TOML file by its path.

    None: training's recipe `finetune` alone. Raises BadOption.
    """
    base = read_recipe("finetune")
    if name is None:
        return base, {}
    path, values = recipe_file(name, RECIPES, "fine-tuning")
    task = values.pop("task", {})
    # What a run has left may serve as a recipe, too.
    run = values.pop("run", {})
    if not task and isinstance(run, dict):
        task = {name: value for name, value in run.get("finetune", {}).items() if name != "data"}
    if not isinstance(task, dict):
        raise BadOption(f"{path}: task must be a table, [task].")
    return base | values, {"name": path.stem} | task
