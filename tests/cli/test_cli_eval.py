"""`gpt2 eval`: figures, their protocol, the table, the hardest passages; every kind of input, and bad input.

With --harness and --overlap too; what those count is tested in tests/unit.
"""

import gzip
import json
import math
import os
import sys
from pathlib import Path

import pytest
import torch

from gpt2.checkpoint import load, write_directory
from tests.generation_models import SHAPE, model, scripted, small_tokenizer
from tests.harness_tasks import made_up, write_tasks
from tests.unit.test_training_data import corpus

TEXT = "The cat sat on the mat, and the dog sat on the cat. " * 3


@pytest.fixture
def text_path(tmp_path):
    path = tmp_path / "cat.txt"
    path.write_text(TEXT, encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module")
def wide_path(tmp_path_factory):
    """A shape that every width can run."""
    path = tmp_path_factory.mktemp("models") / "wide"
    made = model(n_positions=64, **SHAPE)
    write_directory(made.network, made.tokenizer, path)
    return str(path)


def test_the_figures_are_those_of_the_plain_network(gpt2, model_path, text_path):
    answer = gpt2("eval", text_path, "--model", model_path, "--json").json
    made = load(model_path)
    ids = [made.tokenizer.end_of_text, *made.tokenizer.encode(TEXT)]
    with torch.no_grad():
        nats, scored = 0.0, 1
        for start in range(0, len(ids), 16):
            row = torch.tensor(ids[start : start + 33])
            logprobs = made.network(row[None, :-1])[0].log_softmax(-1)
            for place in range(scored - start - 1, len(row) - 1):
                nats -= float(logprobs[place, row[place + 1]])
            scored = start + len(row)
            if scored >= len(ids):
                break
    size = len(TEXT)
    assert answer["nats_per_token"] == pytest.approx(nats / size, rel=1e-5)
    assert answer["perplexity"] == pytest.approx(math.exp(nats / size), rel=1e-4)
    assert answer["bits_per_byte"] == pytest.approx(nats / size / math.log(2), rel=1e-5)
    assert answer["bits_per_character"] == answer["bits_per_byte"]
    assert (answer["tokens"], answer["words"], answer["bytes"]) == (size, len(TEXT.split()), size)
    assert "stride 16; every token scored once" in answer["protocol"]
    assert answer["interval"][0] < answer["perplexity"] < answer["interval"][1]
    assert answer["interval_over"] == "windows"
    [document] = answer["documents"]
    assert document["name"] == text_path
    assert document["perplexity"] == answer["perplexity"]
    assert len(answer["hardest"]) == 5
    assert all(each["before"] + each["text"] + each["behind"] in TEXT for each in answer["hardest"])


def test_people_see_figures_protocol_table_and_passages(gpt2, model_path, text_path, tmp_path):
    other = tmp_path / "other.jsonl"
    lines = [json.dumps({"text": TEXT[number:]}) for number in range(15)]
    other.write_text("\n".join([*lines, json.dumps({"text": ""})]), encoding="utf-8")
    answer = gpt2("eval", text_path, str(other), "--model", model_path)
    assert answer.code == 0
    assert answer.err == ""
    for wanted in (
        "perplexity ",
        "(95 %: ",
        "over documents",
        "bits a byte",
        "16 documents",
        "protocol: text as given; each document by itself, behind end of text; windows of 32 tokens, stride 16",
        "the worst first",
        "and 6 more",
        "»",
        "nats, ",
    ):
        assert wanted in answer.out, wanted
    found = gpt2("eval", text_path, str(other), "--model", model_path, "--json").json
    assert [each["name"] for each in found["documents"]] == [text_path, *(f"{other} #{n}" for n in range(1, 16))]
    assert gpt2("eval", str(tmp_path), "--model", model_path, "--json").json["tokens"] == found["tokens"]
    few = gpt2("eval", text_path, str(other), "--model", model_path, "--json", "--limit", "2").json
    assert few["documents"] == found["documents"][:2]


def test_compressed_files_and_tables_are_read_a_record_at_a_time(gpt2, model_path, tmp_path):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    texts = [TEXT[:30], TEXT[30:70], TEXT[70:]]
    lines = "".join(json.dumps({"body": text}) + "\n" for text in texts).encode()
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines))
    with pa.CompressedOutputStream(str(tmp_path / "b.jsonl.zst"), "zstd") as file:
        file.write(lines)
    parquet.write_table(pa.table({"body": texts, "number": [1, 2, 3]}), tmp_path / "c.parquet")
    asked = ("--model", model_path, "--text-field", "body", "--json")
    plain = None
    for name in ("a.jsonl.gz", "b.jsonl.zst", "c.parquet"):
        found = gpt2("eval", str(tmp_path / name), *asked).json
        assert [each["name"] for each in found["documents"]] == [f"{tmp_path / name} #{n}" for n in (1, 2, 3)]
        figures = [each["nats_per_token"] for each in found["documents"]]
        plain = plain or figures
        assert figures == pytest.approx(plain, abs=1e-6)
    whole = gpt2("eval", str(tmp_path), *asked).json
    assert [each["nats_per_token"] for each in whole["documents"]] == pytest.approx(plain * 3, abs=1e-6)
    # A name's ending that says nothing is text, compressed or not.
    (tmp_path / "wiki.test.raw").write_text(TEXT, encoding="utf-8")
    (tmp_path / "wiki.test.raw.gz").write_bytes(gzip.compress(TEXT.encode()))
    for name in ("wiki.test.raw", "wiki.test.raw.gz"):
        [document] = gpt2("eval", str(tmp_path / name), "--model", model_path, "--json").json["documents"]
        assert (document["name"], document["bytes"]) == (str(tmp_path / name), len(TEXT))


def test_a_missing_extra_a_corpus_and_end_of_text_in_a_text(gpt2, model_path, tmp_path, monkeypatch):
    folder = corpus(tmp_path / "corpus", small_tokenizer(), ["a text"])
    answer = gpt2("eval", str(folder), "--model", model_path)
    assert (answer.code, answer.err.count("\n")) == (2, 1)
    assert "is a corpus of tokens; it holds no text to read" in answer.err
    (folder / "corpus.json").write_text('{"format": "gpt2-corpus 1"}', encoding="utf-8")
    assert "corpus is a corpus; name it itself" in gpt2("eval", str(tmp_path), "--model", model_path).err
    spelt = tmp_path / "spelt.jsonl"
    spelt.write_text('{"text": "a<|endoftext|>b"}\n' * 2, encoding="utf-8")
    answer = gpt2("eval", str(spelt), "--model", model_path)
    assert answer.code == 0
    assert answer.err.count("spells <|endoftext|> in its text") == 1
    (tmp_path / "a.txt.zst").write_bytes(b"x")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    answer = gpt2("eval", str(tmp_path / "a.txt.zst"), "--model", model_path)
    assert (answer.code, answer.err.count("\n")) == (2, 1)
    assert "needs pyarrow: install the extra `corpus`" in answer.err


def test_standard_input(gpt2, model_path, text_path):
    answer = gpt2("eval", "-", "--model", model_path, "--json", stdin=TEXT.encode()).json
    assert answer["documents"][0]["name"] == "standard input"
    named = gpt2("eval", text_path, "--model", model_path, "--json").json
    assert answer["perplexity"] == named["perplexity"]


def test_the_options_are_obeyed_and_told(gpt2, model_path, text_path):
    def ask(*options):
        return gpt2("eval", text_path, "--model", model_path, "--json", *options).json

    usual = ask()
    narrow = ask("--window", "16", "--stride", "4", "--hardest", "0")
    assert "windows of 16 tokens, stride 4" in narrow["protocol"]
    assert narrow["hardest"] == []
    assert narrow["nats_per_token"] != usual["nats_per_token"]
    assert ask("--context", "16", "--stride", "4")["perplexity"] == narrow["perplexity"]
    without = ask("--no-end-of-text-first")
    assert without["tokens"] == usual["tokens"] - 1
    assert "its first token not scored" in without["protocol"]
    recipe = ask("--transformers")
    assert "transformers' strided recipe" in recipe["protocol"]
    assert recipe["perplexity"] != without["perplexity"]
    assert ask("--threads", "1")["perplexity"] == pytest.approx(usual["perplexity"])


@pytest.mark.parametrize("dtype", ["bfloat16", "int8", "int4"])
def test_every_width(gpt2, wide_path, text_path, dtype):
    wide = gpt2("eval", text_path, "--model", wide_path, "--json").json
    narrow = gpt2("eval", text_path, "--model", wide_path, "--json", "--dtype", dtype).json
    assert narrow["dtype"] == dtype
    assert narrow["nats_per_token"] != wide["nats_per_token"]
    assert narrow["nats_per_token"] == pytest.approx(wide["nats_per_token"], rel=0.2)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("empty.txt", b"", "empty.txt holds no text to score"),
        ("binary.txt", b"\x7fELF\x02\x01\x01\x00\x00\x00", "binary.txt: binary file (it holds zero bytes"),
        ("late.txt", b"a" * 9000 + b"\0", "late.txt holds zero bytes, so it is no text"),
        ("latin.txt", "café".encode("latin-1"), "latin.txt: invalid UTF-8 (byte 3 is 0xe9)"),
        ("broken.jsonl", b'{"text": "fine"}\n{"text": ', "broken.jsonl, line 2: broken JSON"),
        ("other.jsonl", b'{"body": "fine"}', 'there is no field "text"; there are "body". Name the right field'),
        ("some.jsonl", b'{"text": "a"}\n{"body": "b"}', 'some.jsonl, line 2: no text field (there is no field "text"'),
        ("half.jsonl", b'{"text": "\\ud83d"}', "half.jsonl, line 1: lone surrogate"),
        ("cut.txt.gz", gzip.compress(os.urandom(9000).hex().encode())[:5000], "cut.txt.gz: broken compression"),
        ("no.parquet", b"PAR1", "no.parquet: broken parquet"),
        ("page.html", b"<p>hi", "page.html holds a page, not text"),
    ],
)
def test_bad_files_are_one_sentence(gpt2, model_path, tmp_path, name, data, message):
    path = tmp_path / name
    path.write_bytes(data)
    answer = gpt2("eval", str(path), "--model", model_path)
    assert (answer.code, answer.out, answer.err.count("\n")) == (2, "", 1)
    assert message in answer.err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--stride", "0"], "--stride is 0; it must be at least 1"),
        (["--stride", "33"], "stride is 33; it must be between 1 and the window, 32"),
        (["--stride", "9", "--window", "8"], "--stride is 9; it must be between 1 and the window, 8"),
        (["--window", "64"], "window is 64; it must be between 1 and the model's window, 32"),
        (["--limit", "0"], "--limit"),
        (["/nowhere.txt"], "/nowhere.txt is not here: no file, no folder"),
        (["-", "-"], "can be read once"),
        (["--model", "./nowhere"], "There is no file or folder"),
    ],
)
def test_bad_options_are_one_sentence(gpt2, model_path, text_path, options, message):
    answer = gpt2("eval", text_path, "--model", model_path, *options)
    assert (answer.code, answer.out, answer.err.count("\n")) == (2, "", 1)
    assert message in answer.err


def test_nothing_given_and_one_token_only(gpt2, model_path):
    assert "Give text files to score" in gpt2("eval", "--model", model_path).err
    answer = gpt2("eval", "-", "--model", model_path, "--no-end-of-text-first", stdin=b"x")
    assert answer.code == 2
    assert "no document has a second token" in answer.err
    assert gpt2("eval", "-", "--model", model_path, "--json", stdin=b"x").json["tokens"] == 1


def test_odd_text_is_shown_safely(gpt2, model_path):
    answer = gpt2("eval", "-", "--model", model_path, stdin="[bold]a\x1b[31mb\nc[/]\u202e🙂".encode())
    assert answer.code == 0
    assert "\x1b" not in answer.out
    assert "\u202e" not in answer.out
    assert "↵" in answer.out


def test_out_gets_what_json_prints(gpt2, model_path, text_path, tmp_path):
    out = tmp_path / "sub" / "eval.json"
    shown = gpt2("eval", text_path, "--model", model_path, "--out", str(out))
    assert "perplexity" in shown.out
    assert json.loads(out.read_text(encoding="utf-8")) == gpt2("eval", text_path, "--model", model_path, "--json").json


@pytest.fixture
def tasks_path(tmp_path):
    return str(write_tasks(tmp_path, {name: made_up()[name] for name in ("last_word", "endings", "written")}))


def test_tasks_of_the_harness(gpt2, wide_path, tasks_path, tmp_path):
    pytest.importorskip("lm_eval")
    asked = ("eval", "--harness", "last_word,endings", "--include-path", tasks_path, "--model", wide_path)
    answer = gpt2(*asked, "--limit", "4", "--num-fewshot", "1", "--json", "--out", str(tmp_path / "out.json"))
    assert answer.err == ""
    found = answer.json
    assert found == json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    assert "only the first 4 items" in found["protocol"]
    assert [(each["task"], each["items"], each["num_fewshot"]) for each in found["tasks"]] == [
        ("last_word", 4, 1),
        ("endings", 4, 1),
    ]
    metrics = {each["metric"]: each["value"] for each in found["tasks"][0]["metrics"]}
    assert metrics["perplexity"] > 1
    assert 0 <= metrics["acc"] <= 1
    shown = gpt2(*asked, "--limit", "4")
    assert shown.code == 0
    for wanted in ("last_word", "perplexity ↓", "endings", "acc_norm ↑", "±", "protocol: lm-evaluation-harness"):
        assert wanted in shown.out, wanted


def test_bad_tasks_are_one_sentence(gpt2, model_path, tasks_path, monkeypatch):
    pytest.importorskip("lm_eval")
    written = f"{tasks_path}/written.yaml"
    (tmp := Path(tasks_path) / "last_word.jsonl").unlink()
    for arguments, message in (
        (["--harness", "last_word", "--include-path", tasks_path], "The task last_word cannot be had"),
        (["--harness", "a,,b"], "give names of tasks with commas"),
        (["--harness", "x", "--include-path", str(tmp)], "which is no folder of tasks"),
        (["--harness", "written", "--include-path", tasks_path], "no room for a prompt in this model's window of 4"),
    ):
        model = model_path
        if "window of 4" in message:
            made = scripted("abcd", window=4)
            model = str(Path(tasks_path) / "narrow")
            write_directory(made.network, made.tokenizer, Path(model))
        answer = gpt2("eval", "--model", model, *arguments)
        assert (answer.code, answer.out, answer.err.count("\n")) == (2, "", 1), answer.err
        assert message in answer.err
    assert Path(written).exists()
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.delitem(sys.modules, "gpt2.evaluation.harness")
    answer = gpt2("eval", "--model", model_path, "--harness", "last_word")
    assert (answer.code, answer.err.count("\n")) == (2, 1)
    assert "install the extra `harness`" in answer.err


def test_overlap_of_files(gpt2, text_path, tmp_path):
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    (corpus / "a.txt").write_text(f"Once more: {TEXT[:60]} and on.", encoding="utf-8")
    other = tmp_path / "other.txt"
    other.write_text("Nothing of this stands anywhere in what was read before it.", encoding="utf-8")
    found = gpt2("eval", text_path, str(other), "--overlap", str(corpus), "--json").json
    assert [each["name"] for each in found["documents"]] == [text_path, str(other)]
    assert found["corpus"] == {"source": str(corpus), "documents": 1, "words": 19}
    assert found["documents"][0]["longest"] == TEXT[:59]
    assert 0 < found["documents"][0]["share"] < 1
    assert found["documents"][1]["share"] == 0
    assert found["found"] == found["documents"][0]["found"]
    assert "8-grams of words" in found["protocol"]
    shown = gpt2("eval", text_path, str(other), "--overlap", str(corpus), "--n", "3")
    assert shown.code == 0
    for wanted in ("3-grams are in", "longest run of words", "the most overlap first", "The cat sat on the mat, and"):
        assert wanted in shown.out, wanted


def test_a_corpus_may_have_its_text_in_another_field(gpt2, tmp_path):
    words = "one two three four five six seven eight nine ten"
    (tmp_path / "rows.jsonl").write_text(json.dumps({"body": words, "text": "nothing of it"}) + "\n")
    rows = str(tmp_path / "rows.jsonl")
    assert gpt2("eval", rows, "--overlap", rows, "--text-field", "body", "--json").json["share"] == 1
    (tmp_path / "it.txt").write_text(words)
    assert gpt2("eval", str(tmp_path / "it.txt"), "--overlap", rows, "--json").json["share"] == 0
    # Samples come from no file, and the corpus still does.
    asked = ("eval", "--overlap", rows, "--samples", "1", "--n", "2", "--max-tokens", "9")
    assert "means nothing" not in gpt2(*asked, "--text-field", "body", "--model", "no/model").err


def test_overlap_of_what_the_model_writes(gpt2, tmp_path):
    path, corpus = tmp_path / "model", tmp_path / "corpus.txt"
    made = scripted("learnt by heart, word for word. ", window=64)
    write_directory(made.network, made.tokenizer, path)
    corpus.write_text("What it learnt by heart, word for word.", encoding="utf-8")
    asked = ("eval", "--overlap", str(corpus), "--samples", "3", "--n", "4", "--model", str(path), "--max-tokens", "33")
    found = gpt2(*asked, "--top-k", "1", "--json").json
    assert [each["name"] for each in found["documents"]] == ["seed 1", "seed 2", "seed 3"]
    for each in found["documents"]:
        assert each["longest"] == "learnt by heart, word for word"
        assert each["longest_words"] == 6
    assert (found["max_tokens"], found["top_k"], found["seed"]) == (33, 1, 1)
    assert found["model"] == str(path)
    assert "“" not in gpt2(*asked, "--top-k", "1").err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--harness", "a", "--overlap", "b"], "--harness or --overlap, not both"),
        (["--harness", "a", "x.txt"], "leave the files out"),
        (["--harness", "a", "--text-field", "x"], "--text-field means nothing without files"),
        (["--harness", "a", "--stride", "4"], "--stride means nothing with --harness"),
        (["--harness", "a", "--hardest", "4"], "--hardest means nothing with --harness"),
        (["--harness", "a", "--samples", "4"], "--samples means nothing with --harness"),
        (["--overlap", "a"], "Give text files to look up, or --samples"),
        (["--overlap", "a", "x.txt", "--samples", "2"], "not both"),
        (["--overlap", "a", "x.txt", "--seed", "2"], "--seed means nothing without --samples"),
        (["--overlap", "a", "x.txt", "--window", "2"], "--context means nothing with --overlap"),
        (["--overlap", "/nowhere/a", "x.txt"], "/nowhere/a is not here"),
        (["x.txt", "--num-fewshot", "2"], "--num-fewshot means nothing without --harness"),
        (["x.txt", "--n", "2"], "--n means nothing without --overlap"),
        (["--overlap", "a", "--n", "0", "x.txt"], "--n"),
    ],
)
def test_flags_of_another_way_are_refused(gpt2, model_path, options, message):
    answer = gpt2("eval", "--model", model_path, *options)
    assert (answer.code, answer.out, answer.err.count("\n")) == (2, "", 1)
    assert message in answer.err
