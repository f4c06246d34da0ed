"""What sources there are, and reading each kind of them, sound and damaged."""

import gzip
import io
import json
import os
import pickle
import random
from pathlib import Path

import pytest

from gpt2.corpus import documents as kinds
from gpt2.corpus import readers, streams
from gpt2.corpus.documents import KINDS, Document, Problems, ReadOptions
from gpt2.corpus.sources import check_sources, find, read
from gpt2.errors import BadData, BadOption, Unavailable


def everything(*paths: object, **options: str) -> tuple[list[Document], Problems]:
    problems = Problems()
    documents: list[Document] = []
    for source in find([str(path) for path in paths]):
        documents += read(source, problems, ReadOptions(**options))
    return documents, problems


def texts(*paths: object, **options: str) -> list[str]:
    return [document.text for document in everything(*paths, **options)[0]]


def lines_of(*records: object) -> bytes:
    return b"".join(json.dumps(record).encode() + b"\n" for record in records)


def zstd(data: bytes) -> bytes:
    pyarrow = pytest.importorskip("pyarrow")
    return pyarrow.compress(data, codec="zstd", asbytes=True)


# Finding


def test_a_folder_stands_for_its_files_by_path_without_hidden_ones_and_other_kinds(tmp_path):
    for name in (
        "b.txt",
        "a/z.md",
        "a/b.jsonl.gz",
        "a/page.htm",
        ".git/x.txt",
        "a/.hidden.txt",
        "image.png",
        "t.parquet",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    found = find([str(tmp_path)])
    name = tmp_path.name
    assert [(source.name, source.kind) for source in found] == [
        (f"{name}/a/b.jsonl.gz", "jsonl"),
        (f"{name}/a/page.htm", "html"),
        (f"{name}/a/z.md", "text"),
        (f"{name}/b.txt", "text"),
        (f"{name}/t.parquet", "parquet"),
    ]
    assert {source.bytes for source in found} == {1}


def test_a_file_named_twice_is_read_once_and_names_stay_apart(tmp_path):
    for folder in ("one/data", "two/data"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "a.txt").write_text(folder)
    one, two = tmp_path / "one/data", tmp_path / "two/data"
    (two / "link.txt").symlink_to(one / "a.txt")
    documents, _ = everything(two / "a.txt", one, one / "a.txt", two)
    assert [(document.id, document.text) for document in documents] == [
        ("a.txt#1", "two/data"),
        ("data/a.txt#1", "one/data"),
    ]
    documents, _ = everything(one, two)
    assert [document.id for document in documents] == ["data/a.txt#1", "data/a.txt (2)#1"]


def test_globs_are_sorted_and_a_path_that_exists_is_no_glob(tmp_path, monkeypatch):
    for name in ("b1.txt", "b0.txt", "c[1].txt", "c1.txt"):
        (tmp_path / name).write_text(name)
    assert texts(tmp_path / "b*.txt") == ["b0.txt", "b1.txt"]
    assert texts(tmp_path / "c[1].txt") == ["c[1].txt"]
    monkeypatch.chdir(tmp_path)
    assert [source.name for source in find(["b*.txt"])] == [f"{tmp_path.name}/b0.txt", f"{tmp_path.name}/b1.txt"]


def test_a_name_is_a_data_set_unless_a_path_is_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert [(s.kind, s.where) for s in find(["owner/name", "owner/name:config:test"])] == [
        ("hub", "owner/name"),
        ("hub", "owner/name:config:test"),
    ]
    Path("owner/name").mkdir(parents=True)
    Path("owner/name/a.txt").write_text("here")
    assert texts("owner/name") == ["here"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("nowhere.txt", "is not here: no file"),
        ("data/nowhere.jsonl", "is not here: no file"),
        ("*.txt", r"matches no file that can be read"),
        ("binaries", r"binaries holds nothing that can be read: 2 files of other kinds, such as a\.bin"),
        ("empty", "empty holds nothing that can be read: no files"),
        ("binaries/a.bin", "is of no kind that can be read: text"),
        ("binaries/x.parquet.gz", "is of no kind that can be read"),
    ],
)
def test_what_is_not_there_is_named(tmp_path, monkeypatch, given, message):
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    Path("binaries").mkdir()
    for name in ("a.bin", "x.parquet.gz"):
        Path("binaries", name).write_bytes(b"\0")
    with pytest.raises(BadData, match=message):
        find([given])
    with pytest.raises(BadData, match="There are no sources"):
        find([])


def test_folders_that_are_links_are_followed_once(tmp_path):
    given, away = tmp_path / "given", tmp_path / "away"
    for folder in (given, away):
        folder.mkdir()
        (folder / f"{folder.name}.txt").write_text(folder.name)
    (given / "link").symlink_to(away)
    (given / "again").symlink_to(away)
    (away / "circle").symlink_to(given)
    assert [source.name for source in find([str(given)])] == ["given/again/away.txt", "given/given.txt"]


def test_what_lies_where_the_corpus_is_made_is_no_source(tmp_path):
    for name in ("a.txt", "corpus/corpus.md", "corpus/building/b.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "link").symlink_to(tmp_path / "corpus")
    for given in (tmp_path, tmp_path / "**"):
        found = find([str(given)], tmp_path / "link")
        assert [source.name for source in found] == [f"{tmp_path.name}/a.txt"]


def test_a_folder_that_cannot_be_read_is_said(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "closed").mkdir()
    scan = os.scandir

    def refuse(path):
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    # By hand, because no folder is closed to root.
    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(BadData, match=r"closed cannot be read: Permission denied"):
        find([str(tmp_path)])


# Text


def test_a_text_file_is_one_document_with_its_line_ends(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfa\r\nb\rc\n\n")
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress("zwölf".encode()))
    (tmp_path / "c.md.zst").write_bytes(zstd(b"# Title"))
    assert texts(tmp_path) == ["a\r\nb\rc\n\n", "zwölf", "# Title"]


def test_text_is_cut_at_a_separator_only_where_one_is_given(tmp_path):
    (tmp_path / "a.txt").write_text("one<|endoftext|>two<|endoftext|>\n<|endoftext|>three")
    whole, problems = everything(tmp_path)
    assert [document.text for document in whole] == ["one<|endoftext|>two<|endoftext|>\n<|endoftext|>three"]
    assert problems.counts == {kinds.SPELT_END: 1}
    cut, problems = everything(tmp_path, separator="<|endoftext|>")
    name = f"{tmp_path.name}/a.txt"
    assert [(d.id, d.text) for d in cut] == [(f"{name}#1", "one"), (f"{name}#2", "two"), (f"{name}#4", "three")]
    assert problems.counts == {kinds.EMPTY: 1}


@pytest.mark.parametrize("most", [3, 5, 100])
def test_separators_across_blocks_and_pieces_that_are_too_long(monkeypatch, most):
    whole = b"ab<>cdefg<><>h<i>" + b"x" * 50 + b"<>end"
    expected = [piece if len(piece) <= most else None for piece in whole.split(b"<>")]
    for size in (1, 2, 3, 7, 1000):
        monkeypatch.setattr(streams, "_BUFFER", size)
        assert list(streams.pieces(io.BufferedReader(io.BytesIO(whole)), b"<>", most)) == expected


@pytest.mark.parametrize("most", [3, 100])
def test_lines_that_are_too_long_are_passed_over(monkeypatch, most):
    whole = b"ab\n\nabcd\nabc\n" + b"x" * 50 + b"\nend"
    expected = [line if len(line) <= most else None for line in whole.split(b"\n")]
    for size in (1, 7, 1000):
        monkeypatch.setattr(streams, "_BUFFER", size)
        assert list(streams.lines(io.BufferedReader(io.BytesIO(whole)), most)) == expected


# What is wrong with input: counted with an example, or refused


CASES = {
    "invalid text": ("a.txt", b"caf\xe9 ol\xe9", kinds.INVALID_TEXT, 1, ["caf\ufffd ol\ufffd"]),
    "invalid line": ("a.jsonl", b'{"text": "\xff"}\n{"text": "b"}', kinds.INVALID_TEXT, 1, ["\ufffd", "b"]),
    "surrogate": ("a.jsonl", b'{"text": "a\\ud800"}', kinds.LONE_SURROGATE, 1, ["a\ufffd"]),
    "json": ("a.jsonl", b'{"text": "a"}\n{"text": \n{"text": "b"}\n[1]\n', kinds.BAD_JSON, 2, ["a", "b"]),
    "nested": ("a.jsonl", b'{"text": "a"}\n' + b"[" * 100_000, kinds.BAD_JSON, 1, ["a"]),
    "field": ("a.jsonl", lines_of({"text": "a"}, {"body": "b"}, {"text": 5}), kinds.NO_TEXT_FIELD, 2, ["a"]),
    "binary": ("a.txt", b"\x7fELF\0\0\0", kinds.BINARY, 1, []),
    "binary jsonl": ("a.jsonl", b"\0\0\0", kinds.BINARY, 1, []),
    "binary page": ("a.html", b"\x89PNG\0\0\0", kinds.BINARY, 1, []),
    "no gzip": ("a.txt.gz", b"plain text", kinds.BROKEN_FILE, 1, []),
    "no zstd": ("a.jsonl.zst", b"plain text", kinds.BROKEN_FILE, 1, []),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_counted_with_its_place_or_refused(tmp_path, case):
    name, data, kind, count, expected = CASES[case]
    if name.endswith("zst"):
        pytest.importorskip("pyarrow")
    (tmp_path / name).write_bytes(data)
    documents, problems = everything(tmp_path / name)
    assert [document.text for document in documents] == expected
    assert problems.counts == {kind: count}
    assert problems.examples[kind].startswith(name)
    assert problems.to_dict()[kind]["what"] == KINDS[kind]
    with pytest.raises(BadData, match=kind):
        everything(tmp_path / name, invalid="refuse", broken="refuse")


@pytest.mark.parametrize(
    "data",
    [
        bytes(random.Random(1).choices(range(1, 256), k=5000)),
        "Съешь ещё этих мягких французских булок, да выпей чаю.".encode("cp1251"),
    ],
    ids=["random", "older encoding"],
)
def test_a_text_that_replacing_would_leave_little_of_is_no_text(tmp_path, data):
    (tmp_path / "a.txt").write_bytes(data)
    (tmp_path / "b.txt").write_bytes("Zwölf Boxkämpfer jagen Viktor quer über den Sylter Deich".encode("latin-1"))
    documents, problems = everything(tmp_path)
    assert [document.text[:4] for document in documents] == ["Zw\ufffdl"]
    assert problems.counts == {kinds.BINARY: 1, kinds.INVALID_TEXT: 1}
    assert "a.txt: few of its bytes are UTF-8" in problems.examples[kinds.BINARY]
    with pytest.raises(BadData, match=r"a\.txt: binary file, few of its bytes are UTF-8"):
        everything(tmp_path, broken="refuse")
    with pytest.raises(BadData, match=r"a\.txt: invalid UTF-8, byte \d"):
        everything(tmp_path, invalid="refuse")


@pytest.mark.parametrize("suffix", ["gz", "zst"])
def test_what_stands_before_the_damage_is_read(tmp_path, suffix):
    path = tmp_path / f"a.jsonl.{suffix}"
    # Random letters, so that half of the file is about half of the documents.
    letters = random.Random(0)
    sent = ["".join(letters.choices("abcdefghijklmnop", k=500)) for _ in range(3000)]
    data = lines_of(*({"text": text} for text in sent))
    whole = gzip.compress(data) if suffix == "gz" else zstd(data)
    path.write_bytes(whole[: len(whole) // 2])
    documents, problems = everything(path)
    assert 1000 < len(documents) < 1600
    assert [document.text for document in documents] == sent[: len(documents)]
    assert problems.counts == {kinds.BROKEN_FILE: 1}
    assert problems.examples[kinds.BROKEN_FILE].startswith(f"a.jsonl.{suffix}, line {len(documents)}: ")


def test_several_compressed_members_are_one_stream(tmp_path):
    one, two = lines_of({"text": "one"}), lines_of({"text": "two"})
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(one) + gzip.compress(two))
    (tmp_path / "b.jsonl.zst").write_bytes(zstd(one) + zstd(two))
    assert texts(tmp_path) == ["one", "two"] * 2


def test_empty_and_overlong_documents_are_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "MOST_BYTES", 40)
    (tmp_path / "a.jsonl").write_bytes(
        lines_of({"text": ""}, {"text": " \n"}, {"text": None}, {"text": "x" * 40}, {"text": "y"})
    )
    (tmp_path / "b.txt").write_text("")
    (tmp_path / "c.txt").write_text("z" * 41)
    (tmp_path / "d.html").write_text("")
    documents, problems = everything(tmp_path)
    assert [document.id for document in documents] == [f"{tmp_path.name}/a.jsonl#5"]
    assert problems.counts == {kinds.EMPTY: 5, kinds.TOO_LARGE: 2}


def test_rows_that_are_too_large_are_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "MOST_BYTES", 40)
    # Bytes count, not characters.
    write_parquet(tmp_path / "a.parquet", text=["x" * 41, "é" * 21, "é" * 20, "y"])
    documents, problems = everything(tmp_path)
    assert [document.text for document in documents] == ["é" * 20, "y"]
    assert problems.counts == {kinds.TOO_LARGE: 2}
    with pytest.raises(BadData, match="over 256 MiB"):
        everything(tmp_path, broken="refuse")


def test_lone_surrogates_in_kept_fields_are_replaced():
    assert readers.kept_fields({"set": "a\ud800", "title": "\udcffb"}) == {"title": "\ufffdb", "set": "a\ufffd"}


def test_a_wrong_field_name_is_refused_with_the_names_that_are_there(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(lines_of({"content": "a", "id": 1}))
    with pytest.raises(BadData, match=r'no field "text"; there are "content", "id"\. Name'):
        everything(path)
    assert texts(path, text_field="content") == ["a"]
    path.write_bytes(lines_of(*[{"content": "a"}] * 101, {"text": "late"}))
    with pytest.raises(BadData, match=r"line 100: .*as in all before it.*--text-field"):
        everything(path)
    with pytest.raises(BadData, match="--text-field"):
        check_sources(find([str(path)]), ReadOptions())
    check_sources(find([str(path)]), ReadOptions(text_field="content"))


def test_a_file_that_went_away_is_named(tmp_path):
    for name in ("a.txt", "a.jsonl", "a.html.gz"):
        (tmp_path / name).write_text("x")
        (source,) = find([str(tmp_path / name)])
        (tmp_path / name).unlink()
        with pytest.raises(BadData, match=rf"{name} cannot be read: No such file"):
            list(read(source, Problems()))


def test_options_are_checked():
    for options, message in (
        ({"invalid": "ignore"}, "it must be replace or refuse"),
        ({"broken": "ignore"}, "it must be skip or refuse"),
        ({"separator": ""}, "separator between documents is empty"),
    ):
        with pytest.raises(BadOption, match=message):
            ReadOptions(**options)


def test_a_record_keeps_its_address_and_what_says_where_it_is_from(tmp_path):
    record = {
        "text": "a",
        "url": "https://x.org/a",
        "title": "T",
        "license": "MIT",
        "set": "s",
        "score": 3,
        "meta": {},
        "date": 2019,
    }
    (tmp_path / "a.jsonl").write_bytes(lines_of(record, {"text": "b", "url": None, "licence": "CC0", "license": "no"}))
    first, second = everything(tmp_path)[0]
    assert (first.url, first.metadata) == (
        "https://x.org/a",
        {"title": "T", "licence": "MIT", "set": "s", "date": "2019"},
    )
    assert (second.url, second.metadata) == (None, {"licence": "CC0"})
    assert pickle.loads(pickle.dumps(first)) == first


def test_problems_add_up_in_the_order_of_the_sources():
    first, second = Problems(), Problems()
    first.add(kinds.EMPTY, "a.txt")
    second.add(kinds.EMPTY, "b.txt", 2)
    second.add(kinds.BINARY, "c.txt")
    first.merge(second)
    assert first.counts == {kinds.EMPTY: 3, kinds.BINARY: 1}
    assert first.examples == {kinds.EMPTY: "a.txt", kinds.BINARY: "c.txt"}
    assert Problems.from_dict(json.loads(json.dumps(first.to_dict()))) == first


# Parquet


def write_parquet(path: Path, **columns: object) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pyarrow.table(columns), path, row_group_size=100)


def test_parquet_rows_are_documents(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    rows = [f"document {number} é" for number in range(250)]
    write_parquet(
        tmp_path / "a.parquet",
        text=rows,
        url=[f"http://x.org/{n}" for n in range(250)],
        title=[None] * 250,
        vector=[[1.0]] * 250,
    )
    documents, problems = everything(tmp_path)
    assert [document.text for document in documents] == rows
    assert (documents[249].id, documents[249].url) == (f"{tmp_path.name}/a.parquet#250", "http://x.org/249")
    assert not problems.counts
    for number, kind in enumerate((pyarrow.large_string(), pyarrow.dictionary(pyarrow.int32(), pyarrow.string()))):
        write_parquet(tmp_path / f"{number}.parquet", text=pyarrow.array(["x", "y", "x"]).cast(kind))
        assert texts(tmp_path / f"{number}.parquet") == ["x", "y", "x"]


def test_bad_parquet_is_counted_or_named(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    invalid = pyarrow.array([b"a", b"\xff", None, b""]).cast(pyarrow.binary()).view(pyarrow.string())
    write_parquet(tmp_path / "a.parquet", text=invalid)
    documents, problems = everything(tmp_path / "a.parquet")
    assert [document.text for document in documents] == ["a", "\ufffd"]
    assert problems.counts == {kinds.INVALID_TEXT: 1, kinds.EMPTY: 2}
    with pytest.raises(BadData, match=r"a\.parquet, row 2: invalid UTF-8"):
        everything(tmp_path / "a.parquet", invalid="refuse")

    write_parquet(tmp_path / "b.parquet", content=["a"], text=[1])
    with pytest.raises(BadData, match='the field "text" is int64, not text'):
        everything(tmp_path / "b.parquet")
    with pytest.raises(BadData, match='no field "body"; there are "content", "text"'):
        everything(tmp_path / "b.parquet", text_field="body")

    whole = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "c.parquet").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "d.parquet").write_bytes(b"")
    assert everything(tmp_path / "c.parquet", tmp_path / "d.parquet")[1].counts == {kinds.BROKEN_PARQUET: 2}
    with pytest.raises(BadData, match="broken parquet"):
        everything(tmp_path / "c.parquet", broken="refuse")


@pytest.mark.parametrize(
    ("name", "package"), [("a.parquet", "pyarrow"), ("a.jsonl.zst", "pyarrow"), ("a.warc", "fastwarc")]
)
def test_a_missing_extra_is_named(tmp_path, monkeypatch, name, package):
    (tmp_path / name).write_bytes(b"x")
    monkeypatch.setitem(__import__("sys").modules, package, None)
    monkeypatch.setitem(__import__("sys").modules, f"{package}.warc", None)
    with pytest.raises(Unavailable, match=rf"needs {package}: install the extra `corpus`"):
        everything(tmp_path / name)
