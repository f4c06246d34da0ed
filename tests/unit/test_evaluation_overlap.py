"""What of a text stands in a corpus: against plain sets; over documents, pieces, shards and every kind of file."""

import gzip
import json
import random
import re
import runpy
from pathlib import Path

import numpy as np
import pytest

from gpt2.errors import BadData, BadOption
from gpt2.evaluation import overlap as room
from gpt2.evaluation.overlap import corpus_texts, overlap
from gpt2.evaluation.perplexity import Document
from gpt2.tokenizer import Tokenizer, write_tokenizer
from tests.generation_models import TEXT, small_tokenizer
from tests.unit.test_training_data import corpus

WORDS = ["the", "cat", "sat", "on", "mat", "Ünder", "日本", "x1", "it", "s"]


def plain(text: str) -> list[str]:
    return [word.lower() for word in re.findall(r"[^\W_]+", text)]


def runs(text: str, n: int) -> list[tuple[str, ...]]:
    words = plain(text)
    return [tuple(words[place : place + n]) for place in range(len(words) - n + 1)]


def random_text(seed: int, length: int) -> str:
    drawn = random.Random(seed)
    return "".join(drawn.choice(WORDS) + drawn.choice([" ", ", ", "\n", "-", "'", "_"]) for _ in range(length))


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_shares_are_those_of_plain_sets(n):
    held = [random_text(seed, 40 * seed) for seed in range(6)]
    texts = [random_text(seed, 60) for seed in range(10, 14)]
    found = overlap([Document(f"t{number}", text) for number, text in enumerate(texts)], held, n)
    seen = {gram for text in held for gram in runs(text, n)}
    for each, text in zip(found.documents, texts, strict=True):
        mine = runs(text, n)
        assert each.words == len(plain(text))
        assert (each.grams, each.found) == (len(mine), sum(gram in seen for gram in mine))
        assert (each.distinct, each.distinct_found) == (len(set(mine)), len(set(mine) & seen))
        assert each.share == each.found / each.grams
    everything = {gram for text in texts for gram in runs(text, n)}
    total = found.total
    assert (total.distinct, total.distinct_found) == (len(everything), len(everything & seen))
    assert total.grams == sum(each.grams for each in found.documents)
    assert total.found == sum(each.found for each in found.documents)
    assert (found.corpus_documents, found.corpus_words) == (6, sum(len(plain(text)) for text in held))
    assert n == 5 or total.found > 0
    assert n < 3 or total.found < total.grams


def test_case_and_marks_do_not_hide_a_copy_and_documents_are_not_joined():
    text = "It was the best of times, it was the worst of times; it was the age of wisdom."
    shouted = "…IT WAS--THE (best) OF_times. It: was 'the' WORST\nof\ttimes it was the age of wisdom"
    words = text.split()
    whole = overlap([Document("a", text)], [shouted])
    assert whole.total.share == 1
    assert whole.total.longest_words == 18
    assert whole.total.longest == text[:-1]
    halves = overlap([Document("a", text)], [" ".join(words[:9]), " ".join(words[9:])])
    # Of eleven runs of eight, the first two are in the one and the last two in the other.
    assert (halves.total.grams, halves.total.found) == (11, 4)
    assert halves.total.longest_words == 9
    assert halves.total.longest == "It was the best of times, it was the"


def test_the_longest_part_is_shown_as_it_stands():
    held = ["a b c d e f g h i j"]
    found = overlap([Document("x", "z A-b! c z c d, e f G. z"), Document("y", "nothing of it at all")], held, 2)
    assert found.documents[0].longest == "c d, e f G"
    assert found.documents[0].longest_words == 5
    assert (found.documents[1].longest, found.documents[1].longest_words, found.documents[1].share) == ("", 0, 0)
    assert found.total.longest == "c d, e f G"


def test_a_long_document_is_read_in_pieces_as_if_in_one(monkeypatch):
    held, text = random_text(3, 3000), random_text(4, 200)
    whole = overlap([Document("t", text)], [held], 4)
    for piece in (1, 7, 100):
        monkeypatch.setattr(room, "_PIECE", piece)
        assert overlap([Document("t", text)], [held], 4) == whole
    assert 0 < whole.total.found < whole.total.grams


def test_hashes_of_like_runs_differ():
    """Runs of the same words in another order are the likeliest to meet."""
    drawn = np.random.default_rng(1)
    a, b = drawn.integers(0, 2**63, 2, dtype=np.uint64)
    rows = (np.arange(256)[:, None] >> np.arange(8)) & 1
    grams = np.concatenate([room.gram_hashes(np.where(row, a, b), 8) for row in rows])
    assert len(np.unique(grams)) == 256
    assert len(np.unique(grams >> np.uint64(32))) == 256


def test_short_texts_empty_corpora_and_bad_lengths():
    short = Document("short", "only three words")
    found = overlap([short, Document("long", TEXT)], [TEXT])
    assert found.documents[0].share is None
    assert found.documents[0].words == 3
    assert found.total.share == 1
    with pytest.raises(BadData, match=r"None of the texts has 8 words in a row \(the longest has 3\)"):
        overlap([short], [TEXT])
    with pytest.raises(BadData, match="The corpus holds no words"):
        overlap([Document("a", TEXT)], ["...", ""])
    with pytest.raises(BadOption, match="n is 0"):
        overlap([short], [TEXT], 0)
    told = []
    overlap([Document("a", TEXT)], ["a b", "c"], progress=lambda *state: told.append(state))
    assert told == [(1, 2), (2, 3)]


def test_shards_are_read_as_the_documents_that_they_hold(tmp_path, monkeypatch):
    tokenizer = small_tokenizer()
    documents = [random_text(seed, 50) for seed in range(8)]
    # Documents go over the ends of shards, and of what is read at once.
    folder = corpus(tmp_path / "corpus", tokenizer, documents, ["held out"])
    assert len(list(folder.glob("train-*"))) > 8
    for size in (2**20, 97, 1):
        monkeypatch.setattr(room, "_TOKENS", size)
        assert list(corpus_texts(str(folder))) == documents
    text = Document("t", random_text(9, 300))
    assert overlap([text], corpus_texts(str(folder)), 3) == overlap([text], documents, 3)
    [first] = corpus_texts(str(folder / "train-00000.safetensors"))
    assert documents[0].startswith(first)
    other = corpus(tmp_path / "other", tokenizer, ["a text"])
    write_tokenizer(Tokenizer.from_merges([]), other)
    with pytest.raises(BadData, match="another tokenizer"):
        corpus_texts(str(other))


def test_every_kind_of_file(tmp_path):
    texts = [random_text(seed, 30) for seed in range(4)]
    (tmp_path / "one.txt").write_text(texts[0], encoding="utf-8")
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts[1:3])
    (tmp_path / "two.jsonl").write_text(lines, encoding="utf-8")
    with gzip.open(tmp_path / "more.jsonl.gz", "wt", encoding="utf-8") as file:
        file.write(json.dumps({"text": texts[3]}) + "\n")
    assert sorted(corpus_texts(str(tmp_path))) == sorted(texts)
    assert list(corpus_texts(str(tmp_path / "one.txt"))) == texts[:1]
    (tmp_path / "broken.jsonl").write_text("{", encoding="utf-8")
    with pytest.raises(BadData, match=r"broken\.jsonl"):
        list(corpus_texts(str(tmp_path / "broken.jsonl")))
    with pytest.raises(BadData, match="is not here"):
        corpus_texts(str(tmp_path / "nowhere.txt"))
    (tmp_path / "page.html").write_text("<p>hi", encoding="utf-8")
    with pytest.raises(BadData, match="holds a page, not text"):
        corpus_texts(str(tmp_path / "page.html"))


def test_the_script_counts_the_same_and_finds_copies(tmp_path, monkeypatch, capsys):
    held = [random_text(seed, 40) for seed in range(3)]
    trained = [random_text(seed, 60) for seed in range(10, 13)] + [f"Before. {held[1]} And after."]
    for name, texts in (("held", held), ("trained", trained)):
        rows = [
            {"id": f"{name} {number}", "set": "a", "title": f"t{number}", "text": text}
            for number, text in enumerate(texts)
        ]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    out = tmp_path / "out.json"
    arguments = ["x", str(tmp_path / "held.jsonl"), "--against", str(tmp_path / "trained.jsonl"), "--out", str(out)]
    monkeypatch.setattr("sys.argv", arguments)
    runpy.run_path(str(Path(__file__).parents[2] / "scripts" / "overlap.py"), run_name="__main__")
    assert "1 copies" in capsys.readouterr().out
    found = json.loads(out.read_text(encoding="utf-8"))
    assert {name: (each["of"], each["share"]) for name, each in found["copies"].items()} == {"held 1": ("t3", 1.0)}
    total = overlap([Document(str(number), text) for number, text in enumerate(held)], trained).total
    assert found["sets"]["a"]["8-grams"] == total.grams
    assert found["sets"]["a"]["8-grams met"] == pytest.approx(total.share, abs=1e-5)
