"""The works of the speed benchmark that need a fresh process each: cold start, memory, and the largest size."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.peers.catalogue import ROOT, peer
from benchmarks.workers import FILES, Failed, Worker, model_folder, packed_folder
from benchmarks.works import Row, Scale, prompt

_TEXT = "The old house stood at the end of the road, and"

_OUR_API = """
import sys, gpt2
model = gpt2.load(sys.argv[1], dtype=sys.argv[2])
print(gpt2.generate(model, sys.argv[3], max_tokens=1, temperature=0).ids, flush=True)
"""

_TRANSFORMERS = """
import sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=getattr(torch, sys.argv[2]))
ids = tokenizer(sys.argv[3], return_tensors="pt")
out = model.generate(**ids, max_new_tokens=1, do_sample=False, pad_token_id=50256)
print(out[0, -1:].tolist(), flush=True)
"""


def cold_start(shape: str, scale: Scale) -> list[Row]:
    """Seconds from the start of a process to the first token on its standard output, files in the disk's cache."""
    model, python = str(model_folder(shape)), sys.executable
    line = [python, "-m", "gpt2", "generate", _TEXT, "--model", model, "--max-tokens", "1", "--no-echo"]
    commands = {
        ("first token", "float32", "transformers"): [python, "-c", _TRANSFORMERS, model, "float32", _TEXT],
        ("first token, Python API", "float32", "ours"): [python, "-c", _OUR_API, model, "float32", _TEXT],
        ("first token, Python API", "int8", "ours"): [python, "-c", _OUR_API, model, "int8", _TEXT],
        ("first token, command line", "float32", "ours"): [*line, "--dtype", "float32"],
        ("first token, command line", "int8", "ours"): [*line, "--dtype", "int8"],
        ("import torch", "", "torch"): [python, "-c", "import torch; print(torch.__version__)"],
        ("gpt2 --help", "", "ours"): [python, "-m", "gpt2", "--help"],
    }
    rows = {key: Row("cold start", *key, amount=1) for key in commands}
    for turn in range(scale.repeats + 1):
        for key, command in commands.items():
            row = rows[key]
            if row.reason is None:
                try:
                    seconds = _until_output(command, shape)
                except Failed as failure:
                    row.reason, row.seconds = str(failure), []
                    continue
                if turn:
                    row.seconds.append(seconds)
    return list(rows.values())


def memory(shape: str, names: list[tuple[str, str]], threads: int, scale: Scale) -> list[Row]:
    """Resident bytes of a fresh process that loads a model and writes 128 tokens; and ours after many calls."""
    rows = []
    for name, width in names:
        row = Row("memory", f"load, {scale.prompt} + {scale.tokens} tokens", width, name, scale.tokens)
        rows.append(row)
        worker = Worker(peer(name), shape, width, threads)
        try:
            if name == "ours":
                # Packs the weights, if that is how they are run; what is measured is a start after that.
                _decode_once(worker, scale)
                worker.close()
                worker = Worker(peer(name), shape, width, threads)
            worker.prepare()
            row.seconds.append(_decode_once(worker, scale))
            row.extra |= worker.ask("memory")[1]
            if name == "ours":
                every = max(1, scale.calls // 10)
                _, readings = worker.ask("calls", prompt=prompt(3, 16), tokens=4, count=scale.calls, every=every)
                row.extra |= {"calls": scale.calls, "resident_during_calls": readings}
        except Failed as failure:
            row.reason = str(failure)
        finally:
            worker.close()
    return rows


def largest(threads: int, scale: Scale) -> list[Row]:
    """The 1,558M shape at int8, ours: memory while it is packed and while it runs, and its pace. Needs 8 GB of disk."""
    shape, width = "gpt2-xl", "int8"
    if shutil.disk_usage(ROOT).free < 12e9:
        return [Row("largest", "", width, "ours", scale.tokens, reason="less than 12 GB of disk are free")]
    row = Row("largest", f"{scale.prompt} + {scale.tokens} tokens", width, "ours", scale.tokens)
    try:
        # In a process of its own: making 1,558M random weights takes 6 GB that nobody needs afterwards.
        code = f"from benchmarks.workers import model_folder; model_folder({shape!r})"
        subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
        for case in ("first start", "second start"):
            worker = Worker(peer("ours"), shape, width, threads)
            try:
                started = time.perf_counter()
                _decode_once(worker, scale)
                row.extra[case] = {"seconds": time.perf_counter() - started, **worker.ask("memory")[1]}
                if case == "second start":
                    firsts = []
                    for turn in range(1, scale.long_repeats + 1):
                        firsts.append(worker.ask("decode", prompts=[prompt(2 * turn, scale.prompt)], tokens=1)[0])
                        ids = [prompt(2 * turn + 1, scale.prompt)]
                        row.seconds.append(worker.ask("decode", prompts=ids, tokens=scale.tokens)[0])
                    after = sorted(row.seconds)[scale.long_repeats // 2] - sorted(firsts)[scale.long_repeats // 2]
                    row.extra["tokens_per_second_after_prompt"] = (scale.tokens - 1) / after
            finally:
                worker.close()
    except (Failed, subprocess.CalledProcessError) as failure:
        row.reason = str(failure)
    finally:
        shutil.rmtree(FILES / shape, ignore_errors=True)
    return [row]


def _decode_once(worker: Worker, scale: Scale) -> float:
    worker.load()
    return worker.ask("decode", prompts=[prompt(1, scale.prompt)], tokens=scale.tokens)[0]


def _until_output(command: list[str], shape: str) -> float:
    """Seconds until the first line with something on it."""
    log = FILES / "cold.log"
    environment = os.environ | {"GPT2_CACHE": str(packed_folder(shape)), "HF_HUB_OFFLINE": "1"}
    with log.open("ab") as errors:
        started = time.perf_counter()
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=errors)
        assert process.stdout
        said = process.stdout.read(1)
        seconds = time.perf_counter() - started
        process.stdout.read()
    if not said or process.wait():
        raise Failed(f"{Path(command[0]).name} ended with {process.wait()}; see {log.relative_to(ROOT)}")
    return seconds
