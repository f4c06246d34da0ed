"""Speed of this package beside its peers: same weights and prompts, equal work, two threads, in turn in one run.

python -m benchmarks.speed [--only decode,prefill,...] [--widths float32,...] [--peers ours,...] [--quick] [--xl]

`make bench-peers` installs the peers; one that is missing is skipped, and named. Figures go to a JSON document, out of
which `report.py` makes tables and a picture. What is measured and how, by work: `works.py` and `fresh.py`.
"""

import argparse
import datetime
import json
import os
import platform
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks import fresh, works
from benchmarks.peers.catalogue import PEERS, ROOT, peer
from benchmarks.report import print_tables
from benchmarks.workers import FILES, Failed, Worker, config, model_folder
from benchmarks.works import Row, Scale

WIDTHS = ("float32", "bfloat16", "int8", "int4")
LIVING = ("decode", "prefill", "streams")
OTHERS = ("busy", "cold", "memory")
BUSY_WIDTHS = ("float32", "int8")
SLOW_TO_START = ("transformers-compiled",)


def main() -> None:
    options = _arguments()
    only, widths, names = options.only.split(","), options.widths.split(","), options.peers.split(",")
    shape, threads = options.shape, options.threads
    scale = Scale(repeats=options.repeats, long_repeats=(options.repeats + 1) // 2)
    if options.quick:
        scale = Scale(tokens=16, prefills=(64, 128), streams=8, slots=4, calls=20, repeats=1, long_repeats=1)
    model_folder(shape)
    document = Document(options.out or _default_path(options.quick), shape, threads)
    for width in widths:
        if "prepare" in only:
            with _started(names, options, width, load=False):
                continue
        living = [work for work in LIVING if work in only]
        if living:
            with _started(names, options, width) as group:
                _measure(document, group, width, living, options, scale)
        if "busy" in only and width in BUSY_WIDTHS:
            print(f"busy, {width} ...", flush=True)
            with _started(names, options, width, beside=True) as group:
                document.add(works.busy(group, width, scale))
    if "cold" in only:
        document.add(fresh.cold_start(shape, scale))
    if "memory" in only:
        wanted = [("ours", width) for width in WIDTHS] + [(each.name, "float32") for each in PEERS[1:]]
        wanted += [(each.name, "int8") for each in PEERS[1:] if "int8" in each.widths]
        wanted = [(name, width) for name, width in wanted if name in names and peer(name).python.is_file()]
        document.add(fresh.memory(shape, wanted, threads, scale))
    if options.xl:
        document.limits("gpt2-xl", "int8", threads)
        document.add(fresh.largest(threads, scale))
    if not document.content["rows"]:
        return
    print_tables(document.content)
    print(f"\n{document.path}: `python -m benchmarks.report` makes docs/performance.md of it.")


class Document:
    """The figures, written to disk after every work; works that are measured anew replace their old figures."""

    def __init__(self, path: Path, shape: str, threads: int) -> None:
        from gpt2.runners.machine import describe

        self.path = path
        old = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        self.content: dict[str, Any] = {
            "date": datetime.date.today().isoformat(),
            "machine": describe(),
            "python": platform.python_version(),
            "shape": shape,
            "threads": threads,
            "versions": old.get("versions", {}),
            "missing": old.get("missing", {}),
            "limits": old.get("limits", {}),
            "rows": old.get("rows", []),
        }

    def add(self, rows: Sequence[Row]) -> None:
        """Puts rows in, instead of those of the same work and width."""
        new = [asdict(row) | {"rate": row.rate} for row in rows]
        keys = {(row["work"], row["width"]) for row in new}
        kept = [row for row in self.content["rows"] if (row["work"], row["width"]) not in keys]
        self.content["rows"] = kept + new
        self.save()

    def limits(self, shape: str, width: str, threads: int) -> None:
        """Measures the machine's rates; of several measurements in one run, the best is kept."""
        worker = Worker(peer("ours"), shape, width, threads)
        size = bytes_per_token(shape, width)
        try:
            _, rates = worker.ask("limits", size=size, dtypes=["float32", "bfloat16"], threads=threads)
        finally:
            worker.close()
        known = self.content["limits"].setdefault(f"{shape} {width}", {"bytes_per_token": size, "read": 0.0})
        known["read"] = max(known["read"], rates.pop("read"))
        for dtype, rate in rates.items():
            self.content["limits"][dtype] = max(rate, self.content["limits"].get(dtype, 0.0))
        self.save()

    def save(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(json.dumps(self.content, indent=1) + "\n", encoding="utf-8")


def bytes_per_token(shape: str, width: str) -> int:
    """Bytes of weights that a token has to read: every matrix once, the embedding as head; vectors do not count."""
    size = config(shape)
    matrices, head = size.n_layer * 12 * size.n_embd**2, size.vocab_size * size.n_embd
    if width == "int4":
        # A float16 scale for 32 weights; the head is int8.
        return matrices * 9 // 16 + head
    return (matrices + head) * {"float32": 4, "bfloat16": 2, "int8": 1}[width]


@contextmanager
def _started(
    names: Sequence[str], options: argparse.Namespace, width: str, *, beside: bool = False, load: bool = True
) -> Iterator[list[Worker]]:
    """Workers with the model loaded, of those that have this width. beside: for work beside a busy process."""
    workers: list[Worker] = []
    try:
        for each in PEERS:
            if each.name not in names or width not in each.widths or (beside and each.name in SLOW_TO_START):
                continue
            if not each.python.is_file():
                print(f"{each.title}: not installed (make bench-peers); skipped", flush=True)
                continue
            # Who can choose waits passively beside a busy process: spinning threads collapse there.
            waiting = options.waiting or ("passive" if beside and each.variables else None)
            worker = Worker(each, options.shape, width, options.threads, waiting)
            try:
                worker.prepare()
                workers.append(worker)
                if load:
                    worker.load()
            except Failed as failure:
                print(f"{each.title}, {width}: {failure}; skipped", flush=True)
                workers = [each for each in workers if each is not worker]
                worker.close()
        yield workers
    finally:
        for worker in workers:
            worker.close()


def _measure(
    document: Document, group: list[Worker], width: str, living: list[str], options: argparse.Namespace, scale: Scale
) -> None:
    shape, threads = options.shape, options.threads
    for worker in group:
        document.content["versions"][worker.peer.name] = worker.version
        if worker.bytes_per_token:
            own = document.content["limits"].setdefault("own_bytes_per_token", {})
            own[f"{worker.peer.name} {width}"] = worker.bytes_per_token
    missing = [each.name for each in PEERS if width in each.widths and each.name not in {w.peer.name for w in group}]
    document.content["missing"][width] = missing
    document.limits(shape, width, threads)
    if "decode" in living:
        print(f"decode, {width} ...", flush=True)
        document.add(works.decode(group, width, scale))
    if "prefill" in living:
        print(f"prefill, {width} ...", flush=True)
        document.add(works.prefill(group, width, scale, _reference(shape, threads, scale)))
    if "streams" in living:
        print(f"streams, {width} ...", flush=True)
        document.add(works.streams(group, width, scale))
    document.limits(shape, width, threads)


def _reference(shape: str, threads: int, scale: Scale) -> list[float] | None:
    """Last logits of the first prefill text, by transformers in float32; kept beside the model."""
    path = FILES / shape / f"reference-{scale.prefills[0]}.json"
    if not path.is_file():
        worker = Worker(peer("transformers"), shape, "float32", threads)
        try:
            worker.load()
            _, last = worker.ask("prefill", ids=works.prompt(1000, scale.prefills[0]), every=True)
        except Failed:
            return None
        finally:
            worker.close()
        path.write_text(json.dumps(last), encoding="utf-8")
    values: list[float] = json.loads(path.read_text(encoding="utf-8"))
    return values


def _default_path(quick: bool) -> Path:
    from gpt2.runners.machine import processor

    if quick:
        return FILES / "quick.json"
    machine = re.sub(r"[^a-z0-9]+", "-", f"{processor()} {os.cpu_count()} cores".lower()).strip("-")
    return ROOT / "benchmarks" / "results" / f"{datetime.date.today().isoformat()}-{machine}.json"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument(
        "--only",
        default=",".join(LIVING + OTHERS),
        help="works, by name; `prepare` only converts the model for every peer",
    )
    parser.add_argument("--widths", default=",".join(WIDTHS))
    parser.add_argument("--peers", default=",".join(each.name for each in PEERS))
    parser.add_argument("--shape", default="gpt2")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="little of everything, to see that it runs")
    parser.add_argument(
        "--waiting", choices=("active", "passive"), help="of idle threads, for all; default: each its better"
    )
    parser.add_argument("--xl", action="store_true", help="the 1,558M shape too: 6 GB of disk, and minutes")
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
