"""lm-evaluation-harness on our models: `evaluate` runs its tasks, `HarnessModel` is the model that it drives.

Prompts, metrics and aggregation are the library's own. Ours is what its interface leaves to a model: token ids,
log-probabilities and generation, on the engine. Ids, cut-off and windows are those of its Hugging Face backend (models/
huggingface.py of lm-eval 0.4.13): a context and its continuation are encoded together, with the spaces at the
context's end given to the continuation; what does not fit the window is cut from the beginning; an empty context is end
of text; a long text is scored in windows that do not overlap, but for the last, which is full.

Importing this needs the extra `harness`; without it, it raises Unavailable.
"""

import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from gpt2.errors import BadData, BadOption, Error, Unavailable
from gpt2.evaluation.rows import item
from gpt2.generation.api import as_completed
from gpt2.generation.options import GenerationOptions, SamplingOptions
from gpt2.generation.score import Item, Score, score
from gpt2.generation.shared import engine_of

try:
    import lm_eval.tasks
    import yaml
    from lm_eval import evaluator
    from lm_eval.api.model import TemplateLM
    from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text
    from lm_eval.tasks import TaskManager
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
except ImportError as error:
    raise Unavailable(
        f"lm-evaluation-harness cannot be imported ({error}): install the extra `harness` (see README)."
    ) from None

if TYPE_CHECKING:
    from gpt2.checkpoint import LanguageModel

VERSION = version("lm_eval")
# The library's own tasks.
_SHIPPED = Path(lm_eval.tasks.__file__).parent
# Resamples for the standard error of a metric that has no formula for it. The harness' own 100,000 take minutes.
_RESAMPLES = 1000
# What its Hugging Face backend takes where a task does not say: tokens to generate, and transformers' top_k.
_MOST_TOKENS, _TOP_K = 256, 50
# Options of generation that mean nothing at this value.
_NEUTRAL = {"num_beams": 1, "num_return_sequences": 1}
_SEED = 1234


class HarnessModel(TemplateLM):  # type: ignore[misc]  # the library has no types
    """A model as lm-evaluation-harness asks for it; give it as `model` to `lm_eval.simple_evaluate`.

    progress: called with what is being done, how many of its requests are done, and how many there are.
    """

    def __init__(self, model: "LanguageModel", progress: Callable[[str, int, int], None] = lambda *_: None) -> None:
        super().__init__()
        self._engine = engine_of(model)
        self._progress = progress
        self._names = tuple(model.tokenizer.special_tokens)

    @property
    def max_length(self) -> int:
        """The model's window in tokens."""
        return self._engine.config.n_positions

    @property
    def eot_token_id(self) -> int:
        """End of text. Raises BadOption for a vocabulary without it."""
        end = self._engine.tokenizer.end_of_text
        if end is None:
            raise BadOption("This task begins at end of text, and this model's vocabulary has no <|endoftext|>.")
        return end

    def tok_encode(self, string: str, add_special_tokens: bool | None = None) -> list[int]:
        """A text's ids. As in transformers, the name of a control token in it is that token."""
        return self._engine.tokenizer.encode(string, allowed_special=self._names)

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """(log-probability in nats, whether it is what greedy decoding gives) of each (text, context, continuation)."""
        empty = next((text for text, _, continuation in requests if not continuation), None)
        if empty is not None:
            raise BadData(f"The task asks how likely nothing is, behind {empty[0][-40:]!r}.")
        items = (item(context, continuation, self.max_length) for _, context, continuation in requests)
        answers = []
        for (text, _, _), found in zip(requests, self._scores(items, len(requests)), strict=True):
            answers.append((found.total, found.greedy))
            self.cache_hook.add_partial("loglikelihood", text, answers[-1])
        return answers

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-probability in nats of each request's text behind end of text, in windows."""
        texts = [request.args[0] for request in requests]
        cut = [
            [
                Item(*make_disjoint_window(window))
                for window in get_rolling_token_windows(self.tok_encode(text), self.eot_token_id, self.max_length, 1)
            ]
            for text in texts
        ]
        scores = self._scores((each for windows in cut for each in windows), sum(map(len, cut)))
        answers = []
        for text, windows in zip(texts, cut, strict=True):
            answers.append(sum(found.total for found in islice(scores, len(windows))))
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), answers[-1])
        return answers

    def _scores(self, items: Iterable[Item], count: int) -> Iterator[Score]:
        return score(self._engine, items, progress=lambda done: self._progress("scored", done, count))

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """The text that the model writes behind each request's context, up to the first of its stop strings."""
        # Prompts with the same options run side by side.
        groups: dict[str, list[int]] = {}
        for number, request in enumerate(requests):
            groups.setdefault(repr(request.args[1]), []).append(number)
        answers, done = [""] * len(requests), 0
        for numbers in groups.values():
            wanted = requests[numbers[0]].args[1]
            options, until = self._options(wanted, [_SEED + number for number in numbers])
            room = self.max_length - options.max_tokens
            if room < 1:
                raise BadOption(
                    f"The task has {options.max_tokens} tokens written (max_gen_toks), which leaves no room for a "
                    f"prompt in this model's window of {self.max_length}."
                )
            prompts = [self.tok_encode(requests[number].args[0])[-room:] for number in numbers]
            for place, written in as_completed(self._engine, prompts, options):
                if written.error is not None:
                    raise Error(written.error)
                # The stop strings are cut as the library cuts them: the first in the list goes first.
                text = postprocess_generated_text(self._engine.tokenizer.decode(written.ids), until, None)
                answers[numbers[place]] = text
                self.cache_hook.add_partial("generate_until", requests[numbers[place]].args, text)
                done += 1
                self._progress("written", done, len(requests))
        return answers

    def _options(self, wanted: Mapping[str, Any], seeds: Sequence[int]) -> tuple[GenerationOptions, list[str]]:
        """A task's generation_kwargs as our options, and its stop strings. Raises BadOption for what we do not do."""
        given: dict[str, Any] = dict(normalize_gen_kwargs(dict(wanted), _MOST_TOKENS))
        end = self._engine.tokenizer.end_of_text
        name = None if end is None else self._engine.tokenizer.decode([end])
        until = [stop for stop in handle_stop_sequences(given.pop("until"), eos=name) if stop]
        most, is_drawn, temperature = given.pop("max_gen_toks"), given.pop("do_sample"), given.pop("temperature", 0.0)
        sampling: dict[str, Any] = {"temperature": temperature if is_drawn else 0.0}
        for option in ("top_k", "top_p", "min_p", "repetition_penalty"):
            if option in given:
                sampling[option] = given.pop(option)
        if is_drawn:
            sampling.setdefault("top_k", _TOP_K)
        for option, value in given.items():
            if _NEUTRAL.get(option) != value:
                raise BadOption(f"The task has its answers written with {option} = {value!r}, which is not done here.")
        return GenerationOptions(most, until, seeds, None, "error", SamplingOptions(**sampling)), until


@dataclass(frozen=True, slots=True)
class Figure:
    """A metric of a task. filter: what was made of the answers first ("none"); stderr: None where it has none."""

    metric: str
    filter: str
    value: float
    stderr: float | None
    higher_is_better: bool | None


@dataclass(frozen=True, slots=True)
class Result:
    """What a task, or a group of tasks, came to. shots: examples in the prompt; items: 0 for a group."""

    task: str
    version: str
    shots: int | None
    items: int
    figures: tuple[Figure, ...]


class _Tasks(TaskManager):  # type: ignore[misc]
    """The library's index of tasks; what cannot be loaded is told in a sentence."""

    def load(self, task_list: list[str]) -> dict[str, Any]:
        """As the library's, one name after the other."""
        loaded: dict[str, Any] = {"tasks": {}, "groups": {}, "group_map": {}}
        for name in task_list:
            # Anything may go wrong in a task's own code, and in what fetches its data.
            try:
                for kind, found in super().load([name]).items():
                    loaded[kind] |= found
            except Exception as error:
                reason = (str(error).strip().splitlines() or ["no reason given"])[0]
                what = f"The task {name} cannot be had ({type(error).__name__}: {reason:.200})."
                entry = self.task_index.get(name)
                file = Path(name) if entry is None else entry.yaml_path
                offline = isinstance(error, ConnectionError) or "Connect" in type(error).__name__
                if file is not None and not file.is_relative_to(_SHIPPED) and not offline:
                    raise BadData(f"{what} It is a task of your own: mend {file}, or what that names.") from None
                raise Unavailable(
                    f"{what} Its data come from the hub by name; without a network, give tasks with data files of your "
                    "own (--include-path)."
                ) from None
        return loaded


class Tasks:
    """Chosen tasks, found by name before anything is loaded.

    names: of tasks, groups or tags, with * and ?; or paths of .yaml files. include_path: a folder of tasks of one's
    own, which win over the library's of the same name. Raises BadOption for a name that there is not.
    """

    def __init__(self, names: Sequence[str], include_path: Path | None = None) -> None:
        if include_path is not None and not include_path.is_dir():
            raise BadOption(f"--include-path is {include_path}, which is no folder of tasks.")
        files = [name for name in names if name.endswith((".yaml", ".yml")) and Path(name).is_file()]
        named = [name for name in names if name not in files]
        self.manager, self.names = _index(named, include_path), files
        for name in named:
            matches = self.manager.match_tasks([name])
            if not matches:
                near = get_close_matches(name, self.manager.all_tasks, 3)
                like = f"; there are {', '.join(near)}" if near else ""
                if broken := None if include_path is None else _broken(include_path):
                    raise BadData(f"There is no task {name!r}{like}, and {broken}.")
                raise BadOption(f"lm-evaluation-harness {VERSION} has no task {name!r}{like}.")
            self.names += [match for match in matches if match not in self.names]


def _index(names: Sequence[str], include_path: Path | None) -> TaskManager:
    """An index that has the names. That of all the library's tasks takes many seconds, so it is made last."""
    own = [] if include_path is None else [include_path]
    near = [folder for folder in sorted(_SHIPPED.iterdir()) if any(name.startswith(folder.name) for name in names)]
    for folders in ([*own], [*near, *own]):
        small = _Tasks(include_path=folders, include_defaults=False) if folders else None
        # Groups and tags may have members elsewhere.
        if small is not None and set(names) <= set(small.all_subtasks):
            return small
    return _Tasks(include_path=own or None)


def _broken(folder: Path) -> str | None:
    """What is wrong with a file of tasks; the library passes over what it cannot read."""
    for file in sorted(folder.rglob("*.y*ml")):
        try:
            # The structure alone: tasks have tags of the library's.
            yaml.compose(file.read_text(encoding="utf-8"))
        except (OSError, ValueError, yaml.YAMLError) as error:
            return f"{file} is no YAML: {' '.join(str(error).split()):.200}"
    return None


def evaluate(
    model: "LanguageModel",
    tasks: Tasks | Sequence[str],
    *,
    limit: int | None = None,
    num_fewshot: int | None = None,
    progress: Callable[[str, int, int], None] = lambda *_: None,
) -> list[Result]:
    """Runs tasks of lm-evaluation-harness on a model.

    limit: only the first so many items of each; num_fewshot: examples in the prompt, for tasks that allow it.

    Raises BadOption for a task that there is not or that asks for what we do not do, Unavailable for one that cannot be
    loaded, such as for want of its data, and what `score` and `generate` raise. The library prints on both standard
    streams.
    """
    chosen = tasks if isinstance(tasks, Tasks) else Tasks(tasks)
    # What `simple_evaluate` does before it calls this, with its seeds; it goes on to list the machine's packages, which
    # takes seconds.
    random.seed(0)
    np.random.seed(_SEED)
    torch.manual_seed(_SEED)
    progress("loading tasks", 0, len(chosen.names))
    loaded = chosen.manager.load(chosen.names)
    for task in loaded["tasks"].values():
        usual = task.get_config("num_fewshot")
        # Some tasks allow no examples, and say so with 0.
        if usual is None or (num_fewshot is not None and usual != 0):
            task.set_config(key="num_fewshot", value=num_fewshot or 0)
        task.set_fewshot_seed(seed=_SEED)
    found: Any = evaluator.evaluate(
        lm=HarnessModel(model, progress),
        task_dict=loaded,
        limit=limit,
        bootstrap_iters=_RESAMPLES,
        log_samples=False,
    )
    parts = {**found["results"], **found.get("groups", {})}
    return [_result(name, found, part) for name, part in parts.items()]


def _result(name: str, found: Mapping[str, Any], part: Mapping[str, Any]) -> Result:
    better = found["higher_is_better"].get(name) or {}
    figures = []
    for key, value in part.items():
        metric, _, filter = key.partition(",")
        if filter and not metric.endswith("_stderr") and isinstance(value, int | float):
            stderr = part.get(f"{metric}_stderr,{filter}")
            known = float(stderr) if isinstance(stderr, int | float) else None
            figures.append(Figure(metric, filter, float(value), known, better.get(metric)))
    return Result(
        name,
        str(found["versions"].get(name, "")),
        found["n-shot"].get(name),
        int((found["n-samples"].get(name) or {}).get("effective", 0)),
        tuple(figures),
    )
