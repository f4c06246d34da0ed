"""`gpt2 corpus build` and `gpt2 corpus check`: what they print, and what they say about mistakes."""

import io
import json
import os
import signal
import time

import pytest
from rich.console import Console
from rich.text import Text

from gpt2.cli.corpus import _Watcher
from gpt2.corpus import CorpusOptions
from gpt2.tokenizer import write_tokenizer
from tests.helpers import byte_tokenizer


@pytest.fixture
def sources(tmp_path):
    made = tmp_path / "sources"
    made.mkdir()
    lines = [json.dumps({"text": f"Document {number} tells of {number * number}."}) for number in range(100)]
    (made / "a.jsonl").write_text("\n".join(lines))
    (made / "b.txt").write_text("A text of its own.")
    write_tokenizer(byte_tokenizer(), tmp_path / "bytes")
    return made


@pytest.fixture
def build(gpt2, sources, tmp_path):
    def call(*arguments: str, out: str = "out"):
        flags = ["--no-near", "--workers", "1", "--tokenizer", tmp_path / "bytes"]
        return gpt2("corpus", "build", sources, "--out", tmp_path / out, *flags, *arguments)

    return call


def test_build_prints_the_table_that_it_stores(build, tmp_path):
    answer = build()
    assert answer.code == 0
    assert (tmp_path / "out" / "corpus.md").read_text() in answer.out
    assert "| came in " in answer.out
    assert f"gpt2 train {tmp_path / 'out'}" in answer.out
    # No bar where there is no terminal, and a line for each stage.
    stages = [line.partition(":")[0] for line in answer.err.splitlines()]
    assert stages == ["reading", "duplicates", "vocabulary", "tokens", "moving in"]
    # What has no bytes to do has no units of them.
    assert answer.err.splitlines()[1:3] == ["duplicates", "vocabulary"]


def test_build_prints_one_document_for_machines(build, tmp_path):
    answer = build("--json", "--validation", "0.2", "--min-characters", "20")
    assert answer.json["total"]["documents"] == 101 - answer.json["steps"][1]["documents"]
    assert answer.json["settings"]["validation"] == 0.2
    assert answer.json["steps"][0]["step"] == "in"
    assert json.loads((tmp_path / "out" / "corpus.json").read_text()) == {
        name: value for name, value in answer.json.items() if name != "corpus"
    }


def test_every_switch_reaches_the_options(build):
    settings = build(
        *("--json", "--text-field", "text", "--url-field", "link", "--separator", "***", "--invalid", "refuse"),
        *("--broken", "refuse", "--extractor", "resiliparse", "--no-wikipedia", "--max-characters", "90", "--no-exact"),
        *("--threshold", "0.9"),
    ).json["settings"]
    wanted = {
        **{"text_field": "text", "url_field": "link", "separator": "***", "invalid": "refuse", "broken": "refuse"},
        **{"extractor": "resiliparse", "wikipedia": False, "max_characters": 90, "exact": False, "near": False},
        "threshold": 0.9,
    }
    assert {name: settings[name] for name in wanted} == wanted


def test_the_commands_defaults_are_the_options_defaults(gpt2, sources, tmp_path):
    answer = gpt2("corpus", "build", sources, "--out", tmp_path / "out", "--no-near", "--workers", "1", "--json")
    defaults = CorpusOptions(near=False).to_dict()
    del defaults["tokenizer"]
    assert {name: answer.json["settings"][name] for name in defaults} == defaults


def test_check_tells_what_is_in_it(build, gpt2, tmp_path):
    build("--validation", "0.2")
    answer = gpt2("corpus", "check", tmp_path / "out")
    assert answer.code == 0
    assert answer.out.splitlines()[-1] == "whole"
    assert answer.out.splitlines()[1].startswith("train: ")
    splits = gpt2("corpus", "check", tmp_path / "out", "--json").json["splits"]
    assert sum(split["documents"] for split in splits.values()) == 101


def test_check_names_damage_and_fails(build, gpt2, tmp_path):
    build()
    shard = tmp_path / "out" / "train-00000.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1] + b"\xff")
    answer = gpt2("corpus", "check", tmp_path / "out")
    assert answer.code == 1
    assert "train-00000.safetensors" in answer.out
    assert answer.out.splitlines()[-1] == "damaged"


@pytest.mark.parametrize("lost", ["tokenizer", "total", "settings", "steps", "vocab_size of tokenizer"])
def test_a_report_that_lacks_something_is_damaged_and_named(build, gpt2, tmp_path, lost):
    build()
    path = tmp_path / "out" / "corpus.json"
    report = json.loads(path.read_text())
    name, _, part = lost.partition(" of ")
    del (report[part] if part else report)[name]
    path.write_text(json.dumps(report))
    for answer in (gpt2("corpus", "check", tmp_path / "out"), build()):
        assert answer.code == 2
        assert f"corpus.json is damaged: it does not say {lost}" in answer.err
        assert len(answer.err.splitlines()) == 1


def test_a_second_run_says_that_it_is_finished(build):
    build()
    answer = build()
    assert answer.code == 0
    assert "finished already" in answer.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--workers", "0"], "workers"),
        (["--engine", "spark"], "spark"),
        (["--threshold", "2"], "threshold is 2.0"),
        (["--vocab-size", "300"], "exclude each other"),
        (["--links", "nowhere.jsonl"], "nowhere.jsonl"),
        (["--min-characters", "100000"], "Nothing is left of 101 documents"),
    ],
)
def test_mistakes_are_one_line(build, arguments, said):
    answer = build(*arguments)
    assert answer.code == 2
    assert said in answer.err
    *stages, last = answer.err.splitlines()
    assert last.startswith("gpt2: ")
    assert [line.partition(":")[0] for line in stages] == ["reading", "duplicates"][: len(stages)]


@pytest.mark.skipif(os.name == "nt", reason="left out: Windows has no SIGTERM")
def test_sigterm_ends_a_build_as_ctrl_c_does(build, monkeypatch):
    def slow(*_: object, **__: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)

    monkeypatch.setattr("gpt2.corpus.build", slow)
    before = signal.signal(signal.SIGTERM, lambda *_: pytest.fail("the command did not take it"))
    try:
        assert build().code == 130
        assert signal.getsignal(signal.SIGTERM) is not signal.default_int_handler
    finally:
        signal.signal(signal.SIGTERM, before)


def test_sources_that_are_not_there_are_said(gpt2, tmp_path):
    answer = gpt2("corpus", "build", tmp_path / "nowhere", "--out", tmp_path / "out", "--no-near")
    assert answer.code == 2
    assert "nowhere" in answer.err
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_no_corpus_is_said(gpt2, tmp_path):
    answer = gpt2("corpus", "check", tmp_path)
    assert answer.code == 2
    assert "no corpus.json" in answer.err


def test_a_folder_that_is_not_there_is_said(gpt2, tmp_path):
    answer = gpt2("corpus", "check", tmp_path / "nowhere")
    assert (answer.code, answer.err) == (2, f"gpt2: {tmp_path / 'nowhere'} is no corpus: there is no such folder.\n")


def test_one_is_no_plural(gpt2, build, sources, tmp_path):
    (sources / "a.jsonl").unlink()
    build("--validation", "0")
    said = gpt2("corpus", "check", tmp_path / "out").out
    assert "train: 1 document, " in said
    assert said.splitlines()[1].endswith(" of text, 1 shard")


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch):
    made = Clock()
    monkeypatch.setattr("gpt2.cli.corpus.time.monotonic", made)
    return made


def staged(clock, terminal, width=80):
    """What a watcher shows of a build of two stages."""
    out = io.StringIO()
    console = Console(file=out, width=width, force_terminal=terminal, highlight=False, legacy_windows=False)
    with _Watcher(console) as watcher:
        watcher.stage("reading", 84_000_000)
        for done in range(0, 84_000_001, 1_000_000):
            clock.now += 1
            watcher.progress(done)
        watcher.stage("duplicates", 0)
        clock.now += 7
        watcher.progress(0)
        watcher.stage("tokens", 50)
        watcher.progress(50)
    return out.getvalue()


def test_without_a_terminal_a_long_stage_says_now_and_then_how_far_it_is(clock):
    said = staged(clock, terminal=False).splitlines()
    assert said[0] == "reading: 84.0 MB"
    assert said[1:3] == [
        "reading: 29.0 MB of 84.0 MB, 57 s left",
        "reading: 59.0 MB of 84.0 MB, 25 s left",
    ]
    assert said[3:] == ["duplicates", "tokens: 50 bytes"]


def test_on_a_terminal_finished_stages_stand_still_and_bytes_are_told_of_bytes_alone(clock):
    shown = staged(clock, terminal=True, width=60)
    last = Text.from_ansi(shown.replace("\r", "\n")).plain.splitlines()
    reading, duplicates, tokens = [line.rstrip() for line in last if line.strip()][-3:]
    full = "\N{BOX DRAWINGS HEAVY HORIZONTAL}" * 12
    assert reading == f"reading    {full} 84.0 MB in 1 min 25 s"
    assert duplicates == f"duplicates {full} in 7 s"
    assert tokens == f"tokens     {full} 50 bytes in 0 s"
    assert "?" not in Text.from_ansi(shown).plain.replace("[?25", "")


def test_a_terminal_gets_tables_of_its_width(build, monkeypatch):
    def narrow():
        return Console(width=60, force_terminal=True, color_system=None, highlight=False)

    monkeypatch.setattr("gpt2.cli.corpus.console", narrow)
    answer = build()
    *said, _ = answer.out.splitlines()
    assert max(map(len, said)) <= 60
    assert "|" not in "".join(said)
    row = next(line.split() for line in said if line.startswith(" sources"))
    assert row[0] == "sources"
    assert row[1] == "101"
