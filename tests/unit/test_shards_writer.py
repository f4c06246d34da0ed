"""Writing shards: what goes in comes out, as a file that other programs open, with the same bytes every time."""

import json
import struct
import sys

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2.errors import BadData, BadOption, Error
from gpt2.shards import ShardWriter, open_shards, token_lengths
from gpt2.tokenizer import Tokenizer, learn
from tests.helpers import byte_tokenizer

BYTES = byte_tokenizer()
END = BYTES.end_of_text


def write(folder, documents, most_tokens=100, block_tokens=16, tokenizer=BYTES, prefix="train"):
    with ShardWriter(folder, prefix, tokenizer, most_tokens, block_tokens=block_tokens) as writer:
        for ids in documents:
            writer.add(ids)
    return writer


def row(documents, end=END):
    return [index for ids in documents if len(ids) for index in [end, *ids]]


@settings(max_examples=60, deadline=None)
@given(
    documents=st.lists(st.lists(st.integers(0, 255), max_size=40), max_size=12),
    most_tokens=st.integers(1, 60),
    block_tokens=st.integers(1, 30),
)
def test_what_goes_in_comes_out(tmp_path_factory, documents, most_tokens, block_tokens):
    folder = tmp_path_factory.mktemp("shards")
    writer = write(folder, documents, most_tokens, block_tokens)
    expected = row(documents)
    paths = writer.close()
    assert [path.name for path in paths] == [f"train-{i:05d}.safetensors" for i in range(len(paths))]
    assert sorted(folder.iterdir()) == paths  # and nothing else is left
    if not expected:
        assert paths == []
        return
    shards = open_shards(folder)
    assert len(shards) == writer.tokens == len(expected)
    assert shards.read(0, len(shards)).tolist() == expected
    assert shards.document_count == writer.documents == sum(1 for ids in documents if ids)
    assert shards.text_bytes == writer.text_bytes == sum(map(len, documents))
    assert len(paths) == -(-len(expected) // most_tokens)
    assert list(shards.damage()) == []


def test_another_program_opens_a_shard(tmp_path):
    documents = [[1, 2, 3], [4] * 50, [5, 6]]
    (path,) = write(tmp_path, documents, block_tokens=16).close()
    tensors = safetensors.numpy.load_file(path)
    assert tensors["tokens"].dtype == np.uint16
    assert tensors["tokens"].tolist() == row(documents)
    assert tensors["documents"].tolist() == [0, 4, 55]
    assert tensors["documents"].dtype == np.int64
    assert len(tensors["checksums"]) == 4
    with safetensors.safe_open(path, "np") as file:
        metadata = file.metadata()
    assert metadata["tokenizer"] == BYTES.fingerprint()
    assert (metadata["format"], metadata["text_bytes"]) == ("gpt2-shard 1", "55")


@pytest.mark.parametrize("size", range(1, 9))
def test_every_tensor_begins_at_a_multiple_of_its_width(tmp_path, size):
    (path,) = write(tmp_path, [[1] * size]).close()
    assert safetensors.numpy.load_file(path)["documents"].tolist() == [0]
    data = path.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + length])
    widths = {"I64": 8, "U32": 4, "U16": 2}
    for name in ("tokens", "documents", "checksums"):
        assert (8 + length + header[name]["data_offsets"][0]) % widths[header[name]["dtype"]] == 0


def test_the_bytes_depend_on_the_ids_alone(tmp_path):
    rng = np.random.default_rng(0)
    documents = [rng.integers(0, 256, size) for size in rng.integers(1, 60, 40)]
    write(tmp_path / "a", documents)
    write(tmp_path / "b", [ids.astype("<u2") for ids in documents])
    a, b = (sorted((tmp_path / name).iterdir()) for name in "ab")
    assert len(a) > 5
    assert [path.read_bytes() for path in a] == [path.read_bytes() for path in b]


@pytest.mark.parametrize("kind", ["<u2", ">u4", "i4", "i8", "u1", list])
def test_ids_of_any_whole_type(tmp_path, kind):
    ids = [1, 2, 200] if kind is list else np.array([1, 2, 200], dtype=kind)
    write(tmp_path, [ids])
    assert open_shards(tmp_path).read(0, 4).tolist() == [END, 1, 2, 200]


def test_a_large_vocabulary_takes_32_bits(tmp_path):
    merges = [(i // 256, i % 256) for i in range(65536 - 256)]
    large = Tokenizer.from_merges(merges)
    assert large.vocab_size == 65537
    write(tmp_path, [[65535, 7]], tokenizer=large)
    tensors = safetensors.numpy.load_file(tmp_path / "train-00000.safetensors")
    assert tensors["tokens"].dtype == np.uint32
    assert open_shards(tmp_path).read(0, 3).tolist() == [65536, 65535, 7]


@pytest.mark.parametrize("bad", [[257], [-1], np.array([-1], dtype=np.int32), np.array([2**32 + 1]), [70000]])
def test_ids_outside_the_vocabulary_are_refused_and_nothing_is_left(tmp_path, bad):
    with pytest.raises(BadData, match="which is no id"):
        write(tmp_path / "x", [[1], bad])
    assert not list(tmp_path.rglob("*.safetensors*"))


def test_what_is_no_document(tmp_path):
    writer = ShardWriter(tmp_path, "train", BYTES)
    with pytest.raises(BadData, match="holds the end-of-text id 256"):
        writer.add([1, END, 2])
    with pytest.raises(BadData, match="flat row of whole numbers"):
        writer.add(np.zeros((2, 2), dtype=np.int32))
    with pytest.raises(BadData, match="flat row of whole numbers"):
        writer.add(np.array([1.0]))
    assert writer.close() == []


def test_a_tokenizer_without_a_separator_is_refused(tmp_path):
    with pytest.raises(BadOption, match="separates documents"):
        ShardWriter(tmp_path, "train", Tokenizer.from_merges([], {}))


def test_an_error_leaves_finished_shards_and_nothing_else(tmp_path):
    def documents():
        yield from [[1] * 9] * 25
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(tmp_path, documents())
    assert [path.name for path in sorted(tmp_path.iterdir())] == [f"train-0000{i}.safetensors" for i in range(2)]
    assert open_shards(tmp_path).read(0, 200).tolist() == row([[1] * 9] * 20)


def test_a_shard_under_way_is_not_seen_and_what_a_kill_leaves_is_in_nobodys_way(tmp_path):
    killed = ShardWriter(tmp_path, "train", BYTES, 100, block_tokens=16)
    for _ in range(15):
        killed.add([1] * 9)
    assert [path.name for path in tmp_path.glob("train*")] == ["train-00000.safetensors"]
    assert len(open_shards(tmp_path)) == 100
    del killed  # never closed
    write(tmp_path, [[2] * 9] * 15)
    assert open_shards(tmp_path).read(0, 150).tolist() == row([[2] * 9] * 15)
    assert not list(tmp_path.glob(".*"))


@pytest.mark.skipif(sys.platform == "win32", reason="left out: Windows has no limits on the size of files")
def test_a_full_disk_is_told_and_leaves_what_was_finished(tmp_path):
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with ShardWriter(tmp_path, "train", BYTES, 2000, block_tokens=500) as writer:
        for _ in range(250):
            writer.add([1] * 9)
        # The limit stands for the disk: a shard has 5,000 bytes and more.
        resource.setrlimit(resource.RLIMIT_FSIZE, (4000, before[1]))
        try:
            with pytest.raises(Error, match=r"cannot be written \(File too large\)"):
                writer.add([1] * 2499)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [path.name for path in tmp_path.iterdir()] == ["train-00000.safetensors"]
    assert list(open_shards(tmp_path).damage()) == []


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(Error, match=r"The shards in .*file cannot be written"):
        write(tmp_path / "file", [[1]])


def test_lengths_of_tokens():
    tokenizer = learn(["the cat and the other cat"] * 3, 262)
    lengths = token_lengths(tokenizer)
    text = "the other cat"
    assert lengths[tokenizer.encode(text)].sum() == len(text)
    assert lengths[tokenizer.end_of_text] == 0
    assert lengths.shape == (262,)
