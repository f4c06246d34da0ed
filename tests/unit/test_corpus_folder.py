"""The corpus folder: whose it is, what it was begun with, and whether it is still what was written."""

import os
import time
from pathlib import Path

import pytest
from filelock import FileLock

from gpt2 import corpus
from gpt2.corpus import CorpusOptions
from gpt2.corpus.filters import FilterOptions
from gpt2.corpus.folder import begin, begun, settings_of
from gpt2.corpus.sources import find
from gpt2.errors import BadData, BadOption, Busy
from tests.unit.test_corpus_pipeline import PLAIN, Notes, documents, folder

__all__ = ["documents", "folder"]


def test_a_finished_corpus_is_not_built_again(folder, tmp_path):
    first = corpus.build([str(folder)], tmp_path / "out", PLAIN, workers=1)
    notes = Notes()
    assert corpus.build([str(folder)], tmp_path / "out", PLAIN, workers=1, watcher=notes) == first
    assert "finished already" in notes.notes[0]


def test_other_settings_are_refused_by_name(folder, tmp_path):
    corpus.build([str(folder)], tmp_path / "out", PLAIN, workers=1)
    with pytest.raises(BadOption, match=r"begun with other settings: validation was 0.005 and is 0.01"):
        corpus.build([str(folder)], tmp_path / "out", CorpusOptions(near=False, validation=0.01), workers=1)
    with (folder / "0.jsonl").open("a") as file:
        file.write('{"text": "one more"}\n')
    with pytest.raises(
        BadOption, match=r"8 files of [\d,]+ bytes then, 8 of .* newer than the build is sources/0\.jsonl"
    ):
        corpus.build([str(folder)], tmp_path / "out", PLAIN, workers=1)
    file = str(folder / "1.jsonl")
    with pytest.raises(BadOption, match=f"the sources were {folder} and are {file}"):
        corpus.build([file], tmp_path / "out", PLAIN, workers=1)


def test_a_file_that_was_touched_is_named(folder, tmp_path):
    corpus.build([str(folder)], tmp_path / "out", PLAIN, workers=1)
    later = time.time() + 60
    os.utime(folder / "2.jsonl", (later, later))
    with pytest.raises(BadOption, match=r"changed since, though not in size; newer than the build is sources/2\.jsonl"):
        corpus.build([str(folder)], tmp_path / "out", PLAIN, workers=1)


def test_a_folder_that_is_not_there_is_said(tmp_path):
    with pytest.raises(BadData, match="nowhere is no corpus: there is no such folder"):
        corpus.check(tmp_path / "nowhere")


def test_two_builds_into_one_folder_are_one_too_many(folder, tmp_path):
    (tmp_path / "out").mkdir()
    with FileLock(tmp_path / "out" / "lock"), pytest.raises(Busy, match="Another process is building"):
        corpus.build([str(folder)], tmp_path / "out", PLAIN, workers=1)


def test_a_folder_that_holds_something_else_is_left_alone(folder, tmp_path):
    with pytest.raises(BadOption, match=r"holds something else, such as 0\.jsonl"):
        corpus.build([str(folder)], folder, PLAIN, workers=1)


@pytest.mark.parametrize("inside", ["house.txt", "deep/house.txt", ".house.txt"])
def test_a_building_of_somebody_else_is_left_alone(folder, tmp_path, inside):
    theirs = tmp_path / "out" / "building" / inside
    theirs.parent.mkdir(parents=True)
    theirs.write_text("brick")
    with pytest.raises(BadOption, match="holds something else, such as building"):
        corpus.build([str(folder)], tmp_path / "out", PLAIN, workers=1)
    assert theirs.read_text() == "brick"


def test_a_build_that_was_killed_while_it_wrote_its_settings_goes_on(folder, tmp_path):
    building = tmp_path / "out" / "building"
    building.mkdir(parents=True)
    (building / ".settings.json.x1.tmp").write_text("{")
    corpus.build([str(folder)], tmp_path / "out", PLAIN, workers=1)
    assert not building.exists()


def test_a_corpus_inside_a_source_can_go_on(folder, tmp_path, monkeypatch):
    """What the build wrote itself is no source: neither the half-done nor the tables and vocabulary of the end."""
    out = folder / "corpus"
    with monkeypatch.context() as patch:
        patch.setattr("gpt2.corpus.pipeline.decide", lambda *_: (_ for _ in ()).throw(BadData("stopped here")))
        with pytest.raises(BadData, match="stopped here"):
            corpus.build([str(folder)], out, PLAIN, workers=1)
    (out / "notes.md").write_text("ours")
    report = corpus.build([str(folder)], out, PLAIN, workers=1)
    assert report["total"]["documents"] == 400
    assert corpus.build([str(folder)], out, PLAIN, workers=1) == report


def test_a_wrong_name_does_not_bind_the_folder(folder, tmp_path):
    wrong = CorpusOptions(read=corpus.ReadOptions(text_field="body"), near=False)
    with pytest.raises(BadData, match="--text-field"):
        corpus.build([str(folder)], tmp_path / "out", wrong, workers=1)
    assert corpus.build([str(folder)], tmp_path / "out", PLAIN, workers=1)["total"]["documents"] == 400


def test_the_list_of_links_is_part_of_the_settings_and_never_in_memory_whole(folder, tmp_path, monkeypatch):
    links = tmp_path / "links.jsonl"
    links.write_text('{"url": "http://a.org/1", "score": 5}\n')
    monkeypatch.setattr(Path, "read_bytes", lambda path: pytest.fail(f"{path} was read whole"))
    options = CorpusOptions(filters=FilterOptions(links=links))
    first = settings_of([str(folder)], [], options, None)
    links.write_text('{"url": "http://a.org/2", "score": 5}\n')
    now = settings_of([str(folder)], [], options, None)
    assert {name for name in now if now[name] != first[name]} == {"links_digest"}


def test_a_list_of_links_that_has_changed_is_told_as_such(folder, tmp_path):
    links = tmp_path / "links.jsonl"
    links.write_text('{"url": "http://a.org/1", "score": 5}\n')
    options = CorpusOptions(near=False, filters=FilterOptions(links=links))
    sources = find([str(folder)])
    settings = settings_of([str(folder)], sources, options, None)
    begin(tmp_path / "out", settings)
    assert begun(tmp_path / "out", settings, sources) is None
    links.write_text('{"url": "http://a.org/2", "score": 5}\n')
    with pytest.raises(BadOption) as caught:
        begun(tmp_path / "out", settings_of([str(folder)], sources, options, None), sources)
    assert f"other settings: what is in {links} (--links) has changed since. Choose" in str(caught.value)


def test_a_folder_that_cannot_be_made_is_said(folder, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(BadOption, match=r"cannot be written|is a file"):
        corpus.build([str(folder)], tmp_path / "file" / "out", PLAIN, workers=1)


def test_damage_is_found_and_named(folder, tmp_path):
    out = tmp_path / "out"
    corpus.build([str(folder)], out, PLAIN, workers=1)
    shard = out / "train-00000.safetensors"
    data = bytearray(shard.read_bytes())
    data[-100] ^= 1
    shard.write_bytes(data)
    damage = corpus.check(out)["damage"]
    assert damage
    assert all("train-00000.safetensors" in one for one in damage)
    shard.unlink()
    assert corpus.check(out)["damage"]


def test_a_folder_that_is_no_corpus_is_said(folder):
    with pytest.raises(BadData, match="no finished corpus"):
        corpus.check(folder)
