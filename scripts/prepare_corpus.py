"""The open corpus, divided for good into what the shipped models learn from and what they are judged on.

    python scripts/prepare_corpus.py FOLDER OUT [--without COPIES.json]

FOLDER holds part-*.jsonl.zst and valid.jsonl.zst. OUT gets train.jsonl, validation.jsonl and heldout.jsonl, a document
a line (text, set, title, part, id). A document is held out by the hash of its text, `gpt2.shards.heldout`'s, so that no
order of files and no later run can move it to the other side:

- below 0.01 in every part: what the first shipped model, which read parts 0 to 2, left out. These are validation.jsonl,
  so that `gpt2 train train.jsonl validation.jsonl --validation 0.01` holds out exactly them while it trains;
- in the parts which that model never read, more (`MORE`), since a set's interval needs documents;
- valid.jsonl.zst as a whole.

heldout.jsonl is all of that. `--without` leaves held-out documents out of it of which `scripts/overlap.py` found copies
in the text trained on; they are trained on no more than before.
"""

import argparse
import json
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gpt2.shards import digest

FIRST_MODEL_PARTS = ("part-0", "part-1", "part-2")
FIRST_MODEL_SHARE = 0.01
MORE = {"classic_books_pd": 0.05}
MORE_OF_OTHERS = 0.10
FILES = {"train": ("train",), "validation": ("validation", "heldout"), "heldout": ("heldout",), "copies": ()}


def read(path: Path) -> Iterator[dict[str, Any]]:
    """The documents of a compressed file."""
    with subprocess.Popen(["zstd", "-dc", path], stdout=subprocess.PIPE) as process:
        assert process.stdout
        for line in process.stdout:
            yield json.loads(line)
    if process.returncode:
        raise SystemExit(f"{path} is damaged.")


def place(text: str) -> float:
    """A number in [0, 1) that the text alone decides: the one by which training holds out."""
    return digest(text.encode())[0] / 2**64


def side(document: dict[str, Any], part: str) -> str:
    """Where a document belongs: "train", "validation" (held out, also by the first model's rule) or "heldout"."""
    share = place(document["text"])
    if part == "valid":
        return "heldout"
    if share < FIRST_MODEL_SHARE:
        return "validation"
    more = 0.0 if part in FIRST_MODEL_PARTS else MORE.get(document["set"], MORE_OF_OTHERS)
    return "heldout" if share < more else "train"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--without", type=Path, help="what overlap.py wrote: copies are not scored")
    options = parser.parse_args()

    copies = set(json.loads(options.without.read_text())["copies"]) if options.without else set()
    options.out.mkdir(parents=True, exist_ok=True)
    counts: Counter[tuple[str, str, str]] = Counter()
    names = ("train", "validation", "heldout")
    files = {name: (options.out / f"{name}.jsonl").open("w", encoding="utf-8") for name in names}
    for path in sorted(options.folder.glob("*.jsonl.zst")):
        part = path.name.removesuffix(".jsonl.zst")
        for document in read(path):
            kept = {key: document.get(key) for key in ("text", "set", "title")}
            kept |= {"part": part, "id": f"{place(document['text']):.12f}"}
            where = side(document, part)
            if where != "train" and kept["id"] in copies:
                where = "copies"
            line = json.dumps(kept, ensure_ascii=False) + "\n"
            for name in FILES[where]:
                files[name].write(line)
            counts[document["set"], where, "documents"] += 1
            counts[document["set"], where, "bytes"] += len(document["text"].encode())
    for file in files.values():
        file.close()
    table: dict[str, dict[str, dict[str, int]]] = {}
    for (name, where, what), count in sorted(counts.items()):
        table.setdefault(name, {}).setdefault(where, {})[what] = count
    (options.out / "counts.json").write_text(json.dumps(table, indent=1) + "\n")
    print(json.dumps(table, indent=1))


if __name__ == "__main__":
    main()
