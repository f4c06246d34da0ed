"""Text out of web pages: token F1 against the true text, must-have snippets, and speed, beside trafilatura alone.

python -m benchmarks.extraction DATA [--repeats N]

DATA holds `article_extraction/` (ground-truth.json and pages/*.html.gz, as in article-extraction-benchmark by
scrapinghub) and, if there, `trafilatura/` (evaldata_subset.json and pages/).

A token is a match of `\\w+` in the lower-cased text. A page's precision and recall are over the bags of tokens of what
was extracted and of the true article text (`articleBody`: no headline, no captions), F1 is their harmonic mean; the
figures are means over pages. Four tokens in a row, case kept, are that benchmark's own measure: F1 of mean
precision and mean recall. A snippet counts as found if it stands in the text, white space squeezed. Speed is bytes of
HTML by processor time, decoding included: the median of the repeats, the extractors taking turns.
"""

import argparse
import functools
import gzip
import json
import re
import statistics
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import trafilatura

from gpt2.corpus.documents import Document
from gpt2.corpus.extract import EXTRACTORS, extract

Extractor = Callable[[bytes], str]


def shares(found: Counter[Any], wanted: Counter[Any]) -> tuple[float, float, float]:
    common = (found & wanted).total()
    precision = common / found.total() if found else float(not wanted)
    recall = common / wanted.total() if wanted else 1.0
    return precision, recall, 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def fours(text: str) -> Counter[Any]:
    words = re.findall(r"\w+", text)
    return Counter(zip(*(words[start:] for start in range(4)), strict=False)) if len(words) >= 4 else Counter([*words])


def read(path: Path) -> bytes:
    packed = path.with_name(path.name + ".gz")
    return gzip.decompress(packed.read_bytes()) if packed.exists() else path.read_bytes()


def ours(name: str, page: bytes) -> str:
    return extract(Document("", "", html=page), name).text


def articles(data: Path, run: Extractor) -> dict[str, float]:
    truth = json.loads((data / "article_extraction" / "ground-truth.json").read_text(encoding="utf-8"))
    single, four = [], []
    for name, entry in truth.items():
        text, wanted = run(read(data / "article_extraction" / "pages" / f"{name}.html")), entry["articleBody"]
        words = [Counter(re.findall(r"\w+", each.lower())) for each in (text, wanted)]
        single.append(shares(*words))
        four.append(shares(fours(text), fours(wanted)))
    precision, recall, f1 = (statistics.mean(column) for column in zip(*single, strict=True))
    p4, r4, _ = (statistics.mean(column) for column in zip(*four, strict=True))
    return {"precision": precision, "recall": recall, "f1": f1, "f1_fours": 2 * p4 * r4 / (p4 + r4)}


def snippets(data: Path, run: Extractor) -> dict[str, float]:
    found = missed = intruded = 0
    for entry in json.loads((data / "trafilatura" / "evaldata_subset.json").read_text(encoding="utf-8")).values():
        text = " ".join(run(read(data / "trafilatura" / "pages" / entry["file"])).split())
        hits = [" ".join(snippet.split()) in text for snippet in entry["with"]]
        found, missed = found + sum(hits), missed + len(hits) - sum(hits)
        intruded += sum(" ".join(snippet.split()) in text for snippet in entry["without"])
    return {
        "snippet_precision": found / (found + intruded),
        "snippet_recall": found / (found + missed),
        "snippet_f1": 2 * found / (2 * found + intruded + missed),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()

    runs: dict[str, Extractor] = {name: functools.partial(ours, name) for name in EXTRACTORS}
    runs["trafilatura alone"] = lambda page: trafilatura.extract(page, include_comments=False) or ""
    runs["trafilatura alone, favor_precision"] = lambda page: (
        trafilatura.extract(page, include_comments=False, favor_precision=True) or ""
    )

    pages = [read(path.with_suffix("")) for path in sorted((options.data / "article_extraction/pages").glob("*.gz"))]
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(options.repeats + 1):
        for name, run in runs.items():
            started = time.process_time()
            for page in pages:
                run(page)
            if turn:
                seconds[name].append(time.process_time() - started)

    megabytes = sum(map(len, pages)) / 1e6
    for name, run in runs.items():
        figures = articles(options.data, run)
        if (options.data / "trafilatura").is_dir():
            figures |= snippets(options.data, run)
        rounded = {key: round(value, 4) for key, value in figures.items()}
        speed = round(megabytes / statistics.median(seconds[name]), 1)
        print(
            json.dumps({"extractor": name, "pages": len(pages), **rounded, "megabytes_per_second": speed}), flush=True
        )


if __name__ == "__main__":
    main()
