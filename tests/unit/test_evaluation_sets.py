"""Where test sets are found, under which names, and what is said when they are not there."""

import gzip
import io
import json
import zipfile

import pyarrow
import pytest
from pyarrow import parquet

from gpt2.errors import BadData, Unavailable
from gpt2.evaluation import lambada, language
from gpt2.evaluation.sets import SOURCES, Found, Sets


def test_the_layout_of_the_shared_folder_is_found(shared):
    sets = Sets(shared / "data/eval")
    there = {name: sets.get(SOURCES[name]).where for name in SOURCES if name in _SHARED}
    assert {name: where.split("data/eval/")[1] for name, where in there.items()} == _SHARED


_SHARED = {
    "lambada-openai": "lambada/lambada_test.jsonl",
    "wikitext-raw": "wikitext2/wiki.test.raw",
    "wikitext-2": "wikitext2/wiki.test.tokens",
    "wikitext-103": "wikitext103/wiki.test.tokens",
    "ptb": "ptb/ptb.test.txt",
    "winograd": "winograd/WSCollection.xml",
}


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("wikitext-raw", "wikitext-2-raw/wiki.test.raw"),
        ("wikitext-raw", "wiki.test.raw"),
        ("wikitext-raw", "wikitext-103-raw/wiki.test.raw"),
        ("wikitext-2", "wikitext-2/wiki.test.tokens"),
        ("wikitext-103", "wikitext-103/wiki.test.tokens"),
        ("ptb", "simple-examples/data/ptb.test.txt"),
        ("cbt-cn", "CBTest/data/cbtest_CN_test_2500ex.txt"),
        ("1bw", "heldout-monolingual.tokenized.shuffled/news.en-00000-of-00100"),
        ("enwik8", "enwik8"),
        ("lambada-original", "lambada-dataset/lambada_test_plain_text.txt"),
        ("lambada-openai", "LAMBADA_TEST.JSONL"),
        # As the hub has them.
        ("wikitext-raw", "wikitext-103-raw-v1/test-00000-of-00001.parquet"),
        ("wikitext-2", "wikitext-2-v1/test-00000-of-00001.parquet"),
        ("lambada-original", "lambada/plain_text/test-00000-of-00001.parquet"),
        ("cbt-ne", "cbt/NE/test-00000-of-00001.parquet"),
        ("ptb", "ptb_text_only/penn_treebank/test/0000.parquet"),
        ("winograd", "wsc285/test/0000.parquet"),
        ("coqa", "coqa/data/validation-00000-of-00001.parquet"),
    ],
)
@pytest.mark.parametrize("zipped", [False, True])
def test_sets_are_found_as_people_have_them(tmp_path, name, file, zipped):
    if zipped:
        with zipfile.ZipFile(tmp_path / "some.zip", "w") as archive:
            archive.writestr(file, "contents")
    else:
        path = tmp_path / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("contents")
    found = Sets(tmp_path).get(SOURCES[name])
    assert found.data == b"contents"


def test_the_two_tokenised_wikitexts_are_not_taken_for_each_other(tmp_path):
    (tmp_path / "wikitext-103").mkdir()
    (tmp_path / "wikitext-103/wiki.test.tokens").write_text("x")
    with pytest.raises(Unavailable):
        Sets(tmp_path).get(SOURCES["wikitext-2"])


def test_a_patterns_star_is_within_one_folder(tmp_path):
    path = tmp_path / "wikitext-2-and-103/wikitext-103/wiki.test.tokens"
    path.parent.mkdir(parents=True)
    path.write_text("x")
    sets = Sets(tmp_path)
    assert sets.get(SOURCES["wikitext-103"]).data == b"x"
    with pytest.raises(Unavailable):
        sets.get(SOURCES["wikitext-2"])


def test_all_shards_of_a_set_are_read(tmp_path):
    folder = tmp_path / "nq_open"
    folder.mkdir()
    for number in range(2):
        table = pyarrow.table({"question": [f"q{number}"], "answer": [["a"]]})
        parquet.write_table(table, folder / f"validation-{number:05}-of-00002.parquet")
    assert Sets(tmp_path).get(SOURCES["nq-open"]).column("question") == ["q0", "q1"]
    (folder / "validation-00001-of-00002.parquet").unlink()
    with pytest.raises(Unavailable, match=r"is one of 2 shards, and 1 of them are missing: number 1"):
        Sets(tmp_path).get(SOURCES["nq-open"])


@pytest.mark.parametrize(
    "names",
    [
        ("nq_open/VALIDATION-00000-OF-00002.JSONL", "nq_open/VALIDATION-00001-OF-00002.JSONL"),
        ("nq_open/validation-00000-of-00002-0123456789abcdef.jsonl", "nq_open/validation-00001-of-00002-00aa.jsonl"),
        ("nq_open/validation-00000-of-00000.jsonl",),
    ],
)
def test_shards_by_other_names(tmp_path, names):
    (tmp_path / "nq_open").mkdir()
    names = [name.replace("-00aa", "-fedcba9876543210") for name in names]
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        for name in names:
            archive.writestr(name, json.dumps({"question": name}) + "\n")
    assert Sets(tmp_path).get(SOURCES["nq-open"]).column("question") == names


def test_numbered_shards_of_the_hubs_conversions_are_read_together(tmp_path):
    folder = tmp_path / "penn_treebank/test"
    folder.mkdir(parents=True)
    for number in (1, 0):
        parquet.write_table(pyarrow.table({"sentence": [f"s{number}"]}), folder / f"{number:04}.parquet")
    assert Sets(tmp_path).get(SOURCES["ptb"]).column("sentence") == ["s0", "s1"]


def test_a_file_that_cannot_be_read_is_its_sets_trouble_alone(tmp_path):
    (tmp_path / "ptb.test.txt").symlink_to(tmp_path / "nowhere")
    (tmp_path / "enwik8.zip").write_bytes(b"PK\x03\x04 and no more")
    sets = Sets(tmp_path)
    with pytest.raises(BadData, match=r"ptb.test.txt cannot be read: No such file"):
        sets.get(SOURCES["ptb"])
    with pytest.raises(Unavailable, match=r"\(1 of its .zip files cannot be read, such as enwik8.zip\): put"):
        sets.get(SOURCES["enwik8"])


def test_a_table_is_one_whatever_the_case_of_its_name():
    line = b'\xef\xbb\xbf{"text": "one two"}\n'
    found = Found(SOURCES["lambada-openai"], "x", "LAMBADA_TEST.JSONL", line)
    assert lambada._texts(found) == ["one two"]


def test_a_missing_set_is_said_with_how_to_get_it(tmp_path):
    with pytest.raises(Unavailable, match=r"text8 is not in .*: put text8.zip from mattmahoney.net"):
        Sets(tmp_path).get(SOURCES["text8"])


def test_a_folder_that_is_not_there_is_an_error_at_once(tmp_path):
    with pytest.raises(BadData, match="no folder"):
        Sets(tmp_path / "nowhere")


def test_without_a_folder_the_hub_is_asked_and_its_silence_is_said(monkeypatch):
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    asked = []

    def refuse(repository, file, **options):
        asked.append((repository, file, options["repo_type"]))
        raise LocalEntryNotFoundError("no network")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)
    sets = Sets()
    with pytest.raises(Unavailable, match=r"the hub cannot be reached; get wiki.test.raw .* --data"):
        sets.get(SOURCES["wikitext-raw"])
    with pytest.raises(Unavailable, match="the hub cannot be reached"):
        sets.get(SOURCES["ptb"])
    # A network that is not there is not waited for twice.
    assert asked == [("Salesforce/wikitext", "wikitext-2-raw-v1/test-00000-of-00001.parquet", "dataset")]
    with pytest.raises(Unavailable, match="enwik8 is not on the hub"):
        sets.get(SOURCES["enwik8"])


def test_what_the_hub_gives_is_read(monkeypatch, tmp_path):
    import huggingface_hub

    path = tmp_path / "x.parquet"
    parquet.write_table(pyarrow.table({"text": ["one", "two"]}), path)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *_, **__: str(path))
    found = Sets().get(SOURCES["lambada-openai"])
    assert found.is_table
    assert found.column("text") == ["one", "two"]
    with pytest.raises(BadData, match='no field "page"; there are text'):
        found.column("page")


@pytest.mark.parametrize(
    ("records", "said"),
    [([{"text": "a b"}, {"text": None}], "record 2: the field .text. is null"), ([{"text": 7}], "is of type int, not")],
)
@pytest.mark.parametrize("read", [lambda found: language.table_text(found, "text"), lambada._texts])
def test_a_null_or_a_number_is_no_text_and_the_record_is_named(records, said, read):
    buffer = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(records), buffer)
    with pytest.raises(BadData, match=said):
        read(Found(SOURCES["ptb"], "some.parquet", "some.parquet", buffer.getvalue()))


def _found(data: bytes) -> Found:
    return Found(SOURCES["ptb"], "some.jsonl", "some.jsonl", data)


def test_json_lines_are_read_packed_or_not_and_a_broken_one_is_named():
    lines = b'{"a": 1}\n\n{"a": 2}\n'
    assert _found(lines).records() == _found(gzip.compress(lines)).records() == [{"a": 1}, {"a": 2}]
    with pytest.raises(BadData, match=r"some.jsonl, line 2: no JSON"):
        _found(b'{"a": 1}\n{"a": \n').records()
    with pytest.raises(BadData, match="line 1: expected an object, not list"):
        _found(json.dumps([1]).encode()).records()


def test_a_damaged_table_and_bytes_that_are_no_text_are_errors():
    buffer = io.BytesIO()
    parquet.write_table(pyarrow.table({"text": ["one"]}), buffer)
    with pytest.raises(BadData, match="damaged parquet"):
        _found(buffer.getvalue()[:40]).records()
    with pytest.raises(BadData, match="is not utf-8 text"):
        _found(b"\xff\xfe").text()


def test_a_damaged_archive_is_an_error_where_it_is_wanted(tmp_path):
    cut = gzip.compress(b'{"text": "a"}')[:-9]
    with pytest.raises(BadData, match="damaged gzip"):
        Found(SOURCES["lambada-openai"], "there", "lambada_test.jsonl", cut).records()
    (tmp_path / "other.zip").write_bytes(b"PK\x03\x04 no more")
    packed = tmp_path / "sets.zip"
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("ptb.test.txt", "no it was n't black monday " * 99)
    content = bytearray(packed.read_bytes())
    content[60] ^= 0xFF
    packed.write_bytes(content)
    with pytest.raises(BadData, match="cannot be read from"):
        Sets(tmp_path).get(SOURCES["ptb"])


def test_line_ends_of_another_system_do_not_count():
    assert _found("\ufeffa\r\nb\r\n".encode()).text() == "a\nb\n"
