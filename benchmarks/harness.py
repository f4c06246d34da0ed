"""lm-evaluation-harness on our models beside its own Hugging Face backend, at the same dtype: one JSON line a task.

python -m benchmarks.harness --data FOLDER [--model PATH] [--limit N] [--threads N] [--batch-sizes 1 8 32 auto]

Tasks with the protocols of lambada_openai, hellaswag and wikitext on local files: FOLDER holds lambada_test.jsonl,
hellaswag_val.jsonl(.gz) and wiki.test.raw, in sub-folders too. Wall time of `evaluate`, with tokenisation and metrics
and without loading, standard errors off. Our side is what `gpt2 eval --harness` does; the backend runs at its default,
batch size 1, and at each of the other sizes, of which the fastest is its best. They take turns. Without --model: random
weights of GPT-2's smallest size. `auto` may be named as a size, but wants memory and patience on a CPU: the backend
tries 64 rows of the longest text five times over, with all their logits (13 GB for WikiText).
"""

import argparse
import contextlib
import gzip
import io
import json
import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lm_eval import evaluator
from lm_eval.models.huggingface import HFLM

from benchmarks.common import alternate
from gpt2.checkpoint import load, write_directory
from gpt2.config import SIZES
from gpt2.evaluation.harness import HarnessModel, Tasks
from gpt2.model import GPT2
from gpt2.tokenizer import Tokenizer
from tests.harness_tasks import write_tasks


def found(folder: Path, *names: str) -> Path:
    """A file by one of its names, in sub-folders too."""
    for name in names:
        for path in sorted(folder.rglob(name)):
            return path
    raise SystemExit(f"{folder} holds no {' or '.join(names)}.")


def rows(data: Path, limit: int, pages: int) -> dict[str, list[dict[str, Any]]]:
    """The first items of each set; WikiText's articles are its pages."""
    questions = found(data, "hellaswag_val.jsonl.gz", "hellaswag_val.jsonl")
    opened = gzip.open if questions.suffix == ".gz" else open
    with opened(questions, "rt", encoding="utf-8") as lines:
        endings = [json.loads(line) for line, _ in zip(lines, range(limit), strict=False)]
    with found(data, "lambada_test.jsonl").open(encoding="utf-8") as lines:
        passages = [json.loads(line) for line, _ in zip(lines, range(limit), strict=False)]
    text = found(data, "wiki.test.raw").read_text(encoding="utf-8")
    articles, article = [], ""
    for line in text.splitlines(keepends=True):
        if line.startswith(" = ") and not line.startswith(" = =") and article.strip():
            articles.append({"page": article})
            article = ""
        article += line
    return {"last_word": passages, "endings": endings, "pages": articles[:pages]}


def runner(model: Any, tasks: Tasks, kept: dict[str, Any], key: str) -> Callable[[], None]:
    def run() -> None:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            # Tasks keep their requests, so each turn has its own.
            loaded = tasks.manager.load(tasks.names)
            for task in loaded["tasks"].values():
                task.set_config(key="num_fewshot", value=0)
            kept[key] = evaluator.evaluate(lm=model, task_dict=loaded, bootstrap_iters=0, log_samples=False)["results"]

    return run


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", help="a directory (default: GPT-2's smallest size, random)")
    parser.add_argument("--limit", type=int, default=64, help="items of lambada and hellaswag")
    parser.add_argument("--pages", type=int, default=4, help="articles of wikitext")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--threads", type=int)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--batch-sizes", nargs="+", default=["1", "4", "16", "64"], help="of the backend; auto too, see above"
    )
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    sizes = list(dict.fromkeys(["1", *options.batch_sizes]))
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        path = options.model
        if path is None:
            path = str(folder / "model")
            write_directory(GPT2(SIZES["gpt2"].config).initialise(0).eval(), Tokenizer.gpt2(), Path(path))
        write_tasks(folder, rows(options.data, options.limit, options.pages))
        ours = HarnessModel(load(path, dtype=options.dtype))
        for name in ("last_word", "endings", "pages"):
            tasks, kept = Tasks([name], folder), {}
            runs = {"ours": runner(ours, tasks, kept, "ours")}
            backend = HFLM(pretrained=path, device="cpu", dtype=options.dtype)
            for size in sizes:
                runs[size] = _sized(backend, size, runner(backend, tasks, kept, size))
            seconds = alternate(runs, options.repeats)
            best = min(sizes, key=seconds.__getitem__)
            line = {
                "work": f"lm-evaluation-harness, {name}",
                "items": options.pages if name == "pages" else options.limit,
                "dtype": options.dtype,
                "threads": torch.get_num_threads(),
                "seconds": {key: round(value, 2) for key, value in seconds.items()},
                "best_batch": best,
                "times_best": round(seconds[best] / seconds["ours"], 2),
                "times_default": round(seconds["1"] / seconds["ours"], 2),
                "agree": _agree(kept["ours"][name], kept["1"][name], options.dtype),
            }
            print(json.dumps(line), flush=True)


def _sized(backend: Any, size: str, run: Callable[[], None]) -> Callable[[], None]:
    """The one backend at a batch size of its own, set as its constructor sets it."""

    def sized() -> None:
        backend.batch_schedule, backend.batch_sizes = 1, {}
        backend.batch_size_per_gpu = "auto" if size == "auto" else int(size)
        run()

    return sized


def _agree(ours: dict[str, Any], other: dict[str, Any], dtype: str) -> bool:
    """Whether the figures are the same: to 0.1 % in float32."""
    near = 1e-3 if dtype == "float32" else 5e-2
    keys = [key for key in other if key.endswith(",none") and isinstance(other[key], int | float)]
    return all(math.isclose(ours[key], other[key], rel_tol=near, abs_tol=1e-9) for key in keys)


if __name__ == "__main__":
    main()
