"""`gpt2 paper`: its table, its JSON, and its exit codes."""

import json
import re

import pytest

from gpt2.evaluation import paper


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "ptb.test.txt").write_text(" no it was n't black \n the traders ' N shares \n")
    return folder


@pytest.fixture
def run(gpt2, model_path, data, tmp_path):
    def call(*arguments):
        return gpt2("paper", "--model", model_path, "--data", str(data), "--out", str(tmp_path / "out"), *arguments)

    return call


def test_the_table_says_what_is_scored_how_and_what_is_not(run):
    answer = run("--only", "ptb,text8", "--control")
    assert answer.code == 0
    assert answer.err == ""
    head = answer.out.splitlines()[0]
    assert [word for word in ("this model", "random", "paper, 117M", "items") if word not in head] == []
    assert "65.85" in answer.out
    lines = answer.out.splitlines()
    [common] = [line for line in lines if line.startswith("PTB: ")]
    assert "every token scored once" in common
    [note] = [line for line in lines if line.startswith("   1 de-tokenised, per word: de-tokenised by our rules 'ptb'")]
    assert "every token scored once" not in note, "what all readings have in common is said once"
    assert "text8: text8 is not in" in answer.out
    assert "mattmahoney.net" in answer.out


def test_where_the_paper_has_its_largest_model_alone_the_table_says_so(run, data):
    (data / "cnn_dailymail_test.jsonl").write_text('{"article": "It rained.", "highlights": "Rain."}\n')
    answer = run("--only", "ptb,cnn-dailymail")
    assert re.search(r"ROUGE-1 F1 %, TL;DR: .* 29\.34\*", answer.out)
    assert re.search(r"ROUGE-1 F1 %, lead-3 .* 40\.38 ", answer.out)
    assert "of the paper's largest model, 1542M" in answer.out
    assert "largest model" not in run("--only", "ptb").out


def test_json_is_one_document_with_every_protocol(run):
    answer = run("--only", "ptb", "--json", "--control")
    assert answer.code == 0
    [row] = answer.json["rows"]
    assert answer.json["nearest"] == {"size": "117M", "parameters": 124_439_808}
    assert [cell["reading"] for cell in row["cells"]] == ["de-tokenised, per word", "as it lies, per word"]
    for cell in row["cells"]:
        assert cell["paper"] == {"117M": 65.85, "345M": 47.33, "762M": 40.31, "1542M": 35.76}
        assert cell["paper_nearest"] == 65.85
        assert cell["interval"][0] <= cell["value"] <= cell["interval"][1]
        assert cell["control"] > 1
        assert "words and line ends" in cell["protocol"]
        assert cell["items"] >= 2
    assert json.loads(answer.out) == answer.json


def test_where_nothing_could_be_scored_the_code_says_so(run):
    answer = run("--only", "enwik8,cbt-ne")
    assert answer.code == 2
    assert "cbtest_NE_test_2500ex.txt" in answer.out
    assert answer.err == "gpt2: none of the rows could be scored.\n"


def test_a_limit_is_told_in_the_protocol(run):
    answer = run("--only", "ptb", "--limit", "1", "--json")
    [cell, _] = answer.json["rows"][0]["cells"]
    assert cell["items"] == 1
    assert cell["interval"] is None
    assert "only the first 1 of" in cell["protocol"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--only", "lambda"], "There is no row 'lambda'; there are lambada"),
        (["--only", "ptb,"], "--only is 'ptb,'"),
        (["--only", "ptb", "--stride", "99"], "stride is 99"),
        (["--limit", "0"], "--limit"),
        (["--data", "nowhere"], "nowhere is no folder"),
    ],
)
def test_mistakes_are_one_line_and_code_2(gpt2, model_path, data, arguments, said):
    answer = gpt2("paper", "--model", model_path, "--data", str(data), *arguments)
    assert answer.code == 2
    assert answer.out == ""
    assert said in answer.err
    assert len(answer.err.splitlines()) == 1


def test_after_ctrl_c_the_same_command_goes_on(run, monkeypatch):
    from gpt2.evaluation.store import Store

    real, kept = Store.put, []

    def stop(self, key, value):
        real(self, key, value)
        kept.append(key)
        if len(kept) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(Store, "put", stop)
    answer = run("--only", "ptb")
    assert answer.code == 130
    assert "goes on from there" in answer.err
    monkeypatch.setattr(Store, "put", lambda self, key, value: (real(self, key, value), kept.append(key))[0])
    assert run("--only", "ptb").code == 0
    assert len(kept) == len(set(kept))


def test_the_help_names_every_row(gpt2):
    answer = gpt2("paper", "--help")
    assert answer.code == 0
    text = "".join(answer.out.split())  # lines end at hyphens, too
    assert ",".join(row.name for row in paper.all_rows()) in text
