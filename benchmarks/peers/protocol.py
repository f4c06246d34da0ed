"""How a worker is spoken to: one JSON object a line on stdin, one a line on stdout. Standard library only.

A worker is an object with these methods. The seconds that an answer carries are those of the method alone; what it
has to make ready for a call (tensors of the prompt) it may make in it, as any caller would have to.

    prepare(model, folder, width)       writes the peer's own form of a Hugging Face directory into a folder
    load(model, folder, width, threads) -> {"version": ...} and, if it differs from the plain count, "bytes": weights
                                           read per token
    decode(prompts, tokens)             -> ids that greedy decoding adds to each prompt, never end of text
    prefill(ids, every)                 -> the last position's logits; with `every`, all have been computed
    streams(prompts, tokens, slots)     -> ids, `tokens[i]` of them for prompt i, up to `slots` texts at once
"""

import ctypes
import json
import os
import signal
import sys
import time
import traceback
from typing import Any

END = 50256


def serve(worker: Any) -> None:
    """Answers requests until stdin ends. What libraries print on stdout goes to stderr."""
    _end_with_parent()
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    for line in sys.stdin:
        request = json.loads(line)
        name = request.pop("do")
        quiet = request.pop("quiet", False)
        try:
            started = time.perf_counter()
            result = getattr(worker, name)(**request)
            seconds = time.perf_counter() - started
            answer = {"seconds": seconds, "result": None if quiet else _plain(result)}
        except Exception as error:
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def _end_with_parent() -> None:
    """Asks Linux to end this process with the benchmark, however that ends: a stopped one would stay for ever."""
    if sys.platform == "linux":
        set_parent_death_signal = 1
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)


def _plain(result: Any) -> Any:
    """Arrays and tensors of any library as lists."""
    return result.tolist() if hasattr(result, "tolist") else result


def memory() -> dict[str, int]:
    """Bytes of this process in memory, now and at most (Linux)."""
    with open("/proc/self/status", encoding="ascii") as file:  # noqa: PTH123
        status = dict(line.split(":", 1) for line in file)
    return {key: int(status[name].split()[0]) * 1024 for key, name in (("now", "VmRSS"), ("peak", "VmHWM"))}
