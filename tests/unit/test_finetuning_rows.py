import csv
import gzip
import json

import pytest

from gpt2.errors import BadData
from gpt2.finetuning.rows import Problems, read_rows


def rows(path, columns=("a", "b"), skip=False, problems=None):
    problems = problems or Problems(skip)
    found = [row for _, _, row in read_rows([str(path)], columns, problems)]
    problems.check()
    return found


def write(tmp_path, name, data):
    path = tmp_path / name
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


def test_lines_of_json(tmp_path):
    path = write(tmp_path, "x.jsonl", '\ufeff{"a": "é", "b": 3, "c": []}\n\n{"b": null, "a": true}\r\n')
    assert rows(path) == [{"a": "é", "b": "3"}, {"a": "true", "b": ""}]
    packed = tmp_path / "x.jsonl.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    assert rows(packed) == rows(path)


@pytest.mark.parametrize("name", ["x.parquet.gz", "wiki.test.raw.gz", "x.tokens.zst", "x.jsonl.bz2", "x.xml.gz"])
def test_kinds_that_are_not_read_compressed_are_told_as_that(tmp_path, name):
    with pytest.raises(BadData, match="of no kind that has rows"):
        rows(write(tmp_path, name, b"x"))


def test_half_of_the_lines_are_broken(tmp_path):
    path = write(tmp_path, "x.jsonl", "".join(f'{{"a": "{n}", "b": ""}}\n{{"a": {n},\n' for n in range(20)))
    with pytest.raises(BadData, match=r"20 of 40 rows cannot .*x\.jsonl: line 2 \(no JSON.*line 4 .*--skip-bad"):
        rows(path)
    assert len(rows(path, skip=True)) == 20


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b'["a"]', "a list, not an object"),
        (b'{"a": "x"}', "no column 'b', there are 'a'"),
        (b'{"a": "x", "b": ["y"]}', "column 'b' holds a list, not text"),
        (b'{"a": "\\ud800", "b": ""}', "column 'a' holds half characters"),
        (b'{"a": "\xff", "b": ""}', "no UTF-8 at byte 7"),
        (b"[" * 100_000, "no JSON"),
    ],
)
def test_rows_that_cannot_be_used(tmp_path, line, said):
    path = write(tmp_path, "x.jsonl", b'{"a": "x", "b": "y"}\n' + line + b"\n")
    problems = Problems(True)
    assert rows(path, problems=problems) == [{"a": "x", "b": "y"}]
    assert said in problems.said[str(path)][0]
    assert problems.said[str(path)][0].startswith("line 2 ")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_tables_of_odd_values(tmp_path, encoding):
    values = [['say "hi", twice', "line\nline\r\nline"], [" spaced ", "1,5"], ["", "é " + "long" * 100_000]]
    path = tmp_path / "x.csv"
    with path.open("w", encoding=encoding, newline="") as file:
        csv.writer(file).writerows([["a", "b"], *values])
    assert rows(path) == [dict(zip("ab", each, strict=True)) for each in values]
    assert csv.field_size_limit() == 131072


def test_tabs_and_a_bare_quote_inside_a_value(tmp_path):
    assert rows(write(tmp_path, "x.tsv", 'a\tb\nthe 5" disk\tx\n')) == [{"a": 'the 5" disk', "b": "x"}]


def test_rows_of_another_length_are_told_by_line(tmp_path):
    path = write(tmp_path, "x.csv", 'a,b\n"1\n1",2\n1,2,3\n4\n\n5,6\n')
    with pytest.raises(BadData, match=r"2 of 4 rows .*line 4 \(3 values, not 2\), line 5 \(1 values, not 2\)"):
        rows(path)
    assert rows(path, skip=True) == [{"a": "1\n1", "b": "2"}, {"a": "5", "b": "6"}]


@pytest.mark.parametrize("skip", [False, True])
def test_a_quote_that_is_never_closed_does_not_swallow_the_rest(tmp_path, skip):
    path = write(tmp_path, "x.csv", 'a,b\n1,2\n"3,4\n5,6\n' * 3)
    with pytest.raises(BadData, match="quot"):
        rows(path, skip=skip)


def test_columns_that_are_not_there_are_listed(tmp_path):
    with pytest.raises(BadData, match=r"no column 'summary'; there are 'article', 'highlights'"):
        rows(write(tmp_path, "x.csv", "article,highlights\n1,2\n"), ("article", "summary"))
    with pytest.raises(BadData, match=r"no column 'summary'; there are 'article', 'highlights'"):
        rows(write(tmp_path, "x.jsonl", '{"article": "1", "highlights": "2"}\n' * 9), ("article", "summary"), skip=True)
    with pytest.raises(BadData, match="two columns called 'a'"):
        rows(write(tmp_path, "y.csv", "a,a,b\n1,2,3\n"))


def test_parquet(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    path = tmp_path / "x.parquet"
    parquet.write_table(pyarrow.table({"a": ["x", None], "n": [1, 2], "b": [1.5, 2.0]}), path)
    assert rows(path) == [{"a": "x", "b": "1.5"}, {"a": "", "b": "2.0"}]
    with pytest.raises(BadData, match="there are 'a', 'n', 'b'"):
        rows(path, ("z",))
    with pytest.raises(BadData, match="cannot be read as parquet"):
        rows(write(tmp_path, "y.parquet", b"PAR1 and no more"))


def test_what_names_no_rows(tmp_path):
    for place, said in [
        (tmp_path, "holds no file with rows"),
        (tmp_path / "none.csv", "no file and no folder"),
        (write(tmp_path, "x.txt", "text"), "of no kind that has rows"),
        (write(tmp_path, "x.csv.bz2", "text"), "of no kind that has rows"),
    ]:
        with pytest.raises(BadData, match=said):
            rows(place)


def test_a_folder_is_its_files_and_no_file_is_read_twice(tmp_path):
    first = write(tmp_path, "1.jsonl", json.dumps({"a": "1", "b": ""}))
    write(tmp_path, "2.csv", "a,b\n2,\n")
    places = [str(tmp_path), str(first)]
    assert [row["a"] for _, _, row in read_rows(places, ("a",), Problems(False))] == ["1", "2"]


def test_a_set_on_the_hub_is_streamed(monkeypatch):
    asked = []

    def stream(name, config, split):
        asked.append((name, config, split))
        yield {"title": "Cat", "text": "A cat is an animal.\n\nIt purrs.\n\nHistory\n\nLong ago.", "id": 1}

    monkeypatch.setattr("gpt2.corpus.hub.stream", stream)
    assert rows("wikimedia/wikipedia:20231101.en", ("title", "lead", "body")) == [
        {"title": "Cat", "lead": "A cat is an animal.\nIt purrs.", "body": "History\nLong ago."}
    ]
    assert asked == [("wikimedia/wikipedia", "20231101.en", "train")]
