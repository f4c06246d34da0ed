"""From web pages to a trained model: pages, corpus, shards that check out, training that beats counting letters.

And the same corpus built by two processes of Ray, byte for byte.
"""

import importlib.util
import json
import math
import os
import random
import subprocess
import sys
from collections import Counter

import pytest

from gpt2.shards import open_shards
from gpt2.tokenizer import write_tokenizer
from tests.helpers import byte_tokenizer


def missing(*modules: str) -> bool:
    return any(importlib.util.find_spec(module) is None for module in modules)


def gpt2(*arguments: object) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "gpt2", *map(str, arguments)],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def page(source: random.Random, title: str) -> str:
    """A page with what is around the text of pages, and sentences with an order that can be learnt."""
    subjects, verbs = (
        ["The farmer", "A sailor", "The old teacher", "My neighbour"],
        ["found", "sold", "painted", "lost"],
    )
    things, places = ["a red boat", "the small door", "an iron key", "his best coat"], ["in the harbour", "by the mill"]
    paragraphs = [
        " ".join(
            f"{source.choice(subjects)} {source.choice(verbs)} {source.choice(things)} {source.choice(places)}."
            for _ in range(8)
        )
        for _ in range(6)
    ]
    body = "".join(f"<p>{paragraph}</p>" for paragraph in paragraphs)
    return (
        f"<html><head><title>{title}</title><script>var tracking = 1;</script></head><body>"
        "<nav><a href='/'>Home</a> <a href='/about'>About</a></nav>"
        f"<article><h1>{title}</h1>{body}</article><footer>Copyright, all rights reserved</footer></body></html>"
    )


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    source = random.Random(0)
    for number in range(60):
        (folder / f"{number:02d}.html").write_text(page(source, f"Story {number}"))
    (folder / "60.html").write_text((folder / "07.html").read_text())
    return folder


@pytest.mark.skipif(missing("resiliparse", "rensa"), reason="left out: it needs the extra `corpus`")
def test_pages_become_a_model_that_beats_the_unigram_entropy(pages, tmp_path):
    write_tokenizer(byte_tokenizer(), tmp_path / "bytes")
    out = tmp_path / "corpus"
    built = json.loads(
        gpt2(
            *("corpus", "build", pages, "--out", out, "--json", "--workers", 1),
            *("--tokenizer", tmp_path / "bytes", "--validation", 0.1),
        )
    )
    steps = {row["step"]: row["documents"] for row in built["steps"]}
    assert steps["in"] == 61
    assert steps["extracted"] == 61
    assert steps["exact duplicates"] == 1
    assert json.loads(gpt2("corpus", "check", out, "--json"))["damage"] == []

    shards = open_shards(out, "train")
    shards.check_tokenizer(byte_tokenizer())
    ids = shards.read(0, len(shards))
    text = byte_tokenizer().decode(ids[ids != shards.end_of_text].tolist())
    assert "The farmer" in text
    assert "<p>" not in text
    assert "tracking" not in text

    counts = Counter(ids.tolist())
    entropy = -sum(count / len(ids) * math.log(count / len(ids)) for count in counts.values())
    trained = json.loads(
        gpt2(
            *("train", out, "--out", tmp_path / "run", "--json", "--n-layer", 2, "--n-head", 2, "--n-embd", 64),
            *("--context", 64, "--batch-size", 16, "--steps", 150, "--warmup-steps", 10, "--learning-rate", 3e-3),
            *("--eval-every", 0, "--sample-every", 0, "--save-every", 0, "--trackers", "none", "--threads", 1),
        )
    )
    assert trained["validation_loss"] < entropy - 0.5


@pytest.mark.skipif(missing("ray", "datatrove"), reason="left out: it needs the extra `corpus`")
def test_two_processes_of_ray_change_no_byte(pages, tmp_path):
    write_tokenizer(byte_tokenizer(), tmp_path / "bytes")
    lines = [json.dumps({"text": f"Line {number} of a file. " * 20}) for number in range(200)]
    (tmp_path / "lines.jsonl").write_text("\n".join(lines))
    for engine, workers in (("local", 1), ("ray", 2)):
        gpt2(
            *("corpus", "build", tmp_path / "lines.jsonl", pages, "--out", tmp_path / engine, "--engine", engine),
            *("--workers", workers, "--tokenizer", tmp_path / "bytes", "--validation", 0.1),
        )
    files = sorted(path.name for path in (tmp_path / "local").glob("*.safetensors"))
    assert len(files) == 2
    for name in files:
        assert (tmp_path / "local" / name).read_bytes() == (tmp_path / "ray" / name).read_bytes()
