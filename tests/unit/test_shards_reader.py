"""Reading shards: anywhere in the row, and never past damage."""

import json
import os
import threading

import numpy as np
import pytest
import safetensors.numpy

from gpt2 import corpus
from gpt2.errors import BadData
from gpt2.shards import open_shards, reader, shard_paths, token_lengths
from gpt2.tokenizer import Tokenizer, write_tokenizer
from tests.helpers import byte_tokenizer
from tests.unit.test_shards_writer import BYTES, row, write


def documents(count=40, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 256, size).tolist() for size in rng.integers(1, 60, count)]


@pytest.fixture
def folder(tmp_path):
    """Some dozen shards of 100 tokens in blocks of 16."""
    write(tmp_path, documents())
    return tmp_path


def test_any_stretch_is_read_across_borders(folder):
    shards, expected = open_shards(folder), np.array(row(documents()))
    rng = np.random.default_rng(1)
    for _ in range(200):
        start = int(rng.integers(len(expected)))
        count = int(rng.integers(len(expected) - start + 1))
        ids = shards.read(start, count)
        assert ids.dtype == np.int32
        assert np.array_equal(ids, expected[start : start + count])
    assert shards.read(len(shards), 0).tolist() == []


@pytest.mark.parametrize(("start", "count"), [(-1, 2), (0, 10**9), (10**9, 1)])
def test_outside_the_row(folder, start, count):
    with pytest.raises(IndexError):
        open_shards(folder).read(start, count)


def test_few_files_are_mapped_at_once(folder, monkeypatch):
    monkeypatch.setattr(reader, "_MAPPED", 2)
    shards, expected = open_shards(folder), row(documents())
    for start in (0, 500, 950, 100, 500):
        assert shards.read(start, 60).tolist() == expected[start : start + 60]
    assert len(shards._mapped) == 2


def test_threads_share_it(folder):
    shards, expected = open_shards(folder), np.array(row(documents()))
    wrong = []

    def read(seed):
        starts = np.random.default_rng(seed).integers(0, len(expected) - 150, 200).tolist()
        wrong.extend(at for at in starts if not np.array_equal(shards.read(at, 150), expected[at : at + 150]))

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_the_fingerprint_is_of_content_and_not_of_place(folder, tmp_path_factory):
    other = tmp_path_factory.mktemp("other")
    write(other, documents(), prefix="validation")
    assert open_shards(folder).fingerprint == open_shards(other, "validation").fingerprint
    changed = tmp_path_factory.mktemp("changed")
    write(changed, [*documents()[:-1], [1, 2]])
    assert open_shards(folder).fingerprint != open_shards(changed).fingerprint
    backwards = open_shards(open_shards(folder).paths[::-1])
    assert open_shards(folder).fingerprint != backwards.fingerprint


def test_only_what_is_touched_is_checked_and_damage_is_named(folder):
    path = folder / "train-00003.safetensors"
    data = bytearray(path.read_bytes())
    data[1024 + 2 * 40] ^= 1  # token 40, in block 2
    path.write_bytes(data)
    shards = open_shards(folder)
    shards.read(0, 300 + 32)  # the blocks in front are whole
    with pytest.raises(BadData, match=r"train-00003\.safetensors, block 2 of 7 .*damaged: its checksum"):
        shards.read(335, 1)
    (sentence,) = shards.damage()
    assert "block 2 of 7" in sentence
    assert shards.read(348, 50).tolist() == row(documents())[348:398]  # and those behind


def test_damage_after_a_first_look_is_found(folder):
    shards = open_shards(folder)
    shards.read(0, len(shards))
    path = folder / "train-00001.safetensors"
    state = path.stat()
    data = bytearray(path.read_bytes())
    data[1024] ^= 1
    with path.open("r+b") as file:
        file.write(data)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert [sentence for sentence in shards.damage() if "train-00001" in sentence]


def test_a_damaged_index_of_documents(folder):
    path = folder / "train-00000.safetensors"
    data = bytearray(path.read_bytes())
    data[8 + int.from_bytes(data[:8], "little") + 200] ^= 1
    path.write_bytes(data)
    (sentence,) = open_shards(folder).damage()
    assert "train-00000.safetensors is damaged: its index of documents" in sentence


@pytest.mark.parametrize("left", [0, 4, 40, 600])
def test_a_file_that_is_cut_short(folder, left):
    path = folder / "train-00002.safetensors"
    path.write_bytes(path.read_bytes()[:left])
    with pytest.raises(BadData, match=r"train-00002\.safetensors .*cut short"):
        open_shards(folder)


def test_a_file_that_is_too_long_or_a_damaged_list_of_checksums(folder):
    path = folder / "train-00002.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole + b"x")
    with pytest.raises(BadData, match="longer than its header says"):
        open_shards(folder)
    data = bytearray(whole)
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(BadData, match="its list of checksums"):
        open_shards(folder)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"gpt2-shard 1", b"gpt2-shard 2"),
        (b'"U16"', b'"F16"'),
        (b'"block_tokens":"16"', b'"block_tokens":"-6"'),
        (b'"shape"', b'"shale"'),
        (b'{"__meta', b'}"__meta'),
        (b"[100]", b"[101]"),
    ],
)
def test_a_damaged_header(folder, old, new):
    path = folder / "train-00000.safetensors"
    data = path.read_bytes()
    assert old in data
    path.write_bytes(data.replace(old, new))
    with pytest.raises(BadData, match=r"train-00000\.safetensors is no token shard"):
        open_shards(folder)


def test_a_model_is_no_shard(tmp_path):
    safetensors.numpy.save_file({"wte.weight": np.zeros((4, 4), dtype=np.float32)}, tmp_path / "model.safetensors")
    with pytest.raises(BadData, match="no token shard"):
        open_shards([tmp_path / "model.safetensors"])
    with pytest.raises(BadData, match=r"nowhere\.safetensors cannot be read"):
        open_shards([tmp_path / "nowhere.safetensors"])


def test_a_missing_shard_is_named(folder):
    (folder / "train-00004.safetensors").unlink()
    with pytest.raises(BadData, match=r"train-00004\.safetensors is missing"):
        open_shards(folder)


def test_corpus_json_tells_of_a_missing_last_shard_and_of_one_too_many(folder):
    count = len(list(folder.glob("train-*")))
    (folder / "corpus.json").write_text(json.dumps({"shards": {"train": count + 1}}))
    with pytest.raises(BadData, match=rf"train-{count:05d}\.safetensors is missing"):
        open_shards(folder)
    (folder / "corpus.json").write_text(json.dumps({"shards": {"train": count - 1}}))
    with pytest.raises(BadData, match="does not belong to the corpus"):
        open_shards(folder)
    (folder / "corpus.json").write_text(json.dumps({"shards": {"train": count}}))
    open_shards(folder)


@pytest.mark.parametrize("stray", ["validation-00000.safetensors", "val.bin"])
def test_a_stray_file_is_refused_where_corpus_json_lists_none(folder, stray):
    count = len(list(folder.glob("train-*")))
    (folder / "corpus.json").write_text(json.dumps({"shards": {"train": count, "validation": 0}}))
    assert shard_paths(folder, "validation") == []
    (folder / stray).write_bytes((folder / "train-00000.safetensors").read_bytes())
    with pytest.raises(BadData, match=rf"{stray} does not belong to the corpus: .*lists 0 validation shards"):
        shard_paths(folder, "validation")
    (folder / "corpus.json").write_text(json.dumps({"shards": {"train": count}}))
    assert shard_paths(folder, "validation") == [folder / stray]  # not listed is not the same as none


class TestCheck:
    """`gpt2 corpus check` of a folder made by hand."""

    @pytest.fixture
    def whole(self, folder):
        write_tokenizer(BYTES, folder)
        report = {
            "format": "gpt2-corpus 1",
            "tokenizer": {"fingerprint": BYTES.fingerprint(), "vocab_size": 1000},
            "shards": {"train": len(list(folder.glob("train-*"))), "validation": 0},
            "total": {"tokens": len(row(documents()))},
            **{name: {} for name in ("settings", "sets", "steps", "problems", "seconds", "worker_seconds")},
        }
        (folder / "corpus.json").write_text(json.dumps(report))
        return folder, report

    def test_a_stray_shard_of_a_split_without_any_is_damage(self, whole):
        folder, _ = whole
        assert corpus.check(folder)["damage"] == []
        stray = folder / "validation-00000.safetensors"
        stray.write_bytes((folder / "train-00000.safetensors").read_bytes())
        (sentence,) = corpus.check(folder)["damage"]
        assert sentence.startswith(f"{stray} does not belong to the corpus")

    def test_a_report_without_shards_is_damage(self, whole):
        folder, report = whole
        del report["shards"]
        (folder / "corpus.json").write_text(json.dumps(report))
        found = corpus.check(folder)
        assert found["splits"]["train"]["tokens"] == report["total"]["tokens"]
        assert found["damage"] == [
            f"{folder}: corpus.json does not say how many {split} shards there are."
            for split in ("train", "validation")
        ]


def test_an_empty_folder(tmp_path):
    with pytest.raises(BadData, match="holds no validation shards"):
        open_shards(tmp_path, "validation")


def test_another_tokenizer_is_refused(folder):
    shards = open_shards(folder)
    shards.check_tokenizer(byte_tokenizer())
    other = Tokenizer.from_merges([(0, 1)])
    with pytest.raises(BadData, match=r"train-00000\.safetensors holds tokens of another tokenizer \(257 tokens"):
        shards.check_tokenizer(other)
    write(folder / "mixed", [[1]], tokenizer=other)
    with pytest.raises(BadData, match="of different tokenizers"):
        open_shards([*shards.paths, folder / "mixed" / "train-00000.safetensors"])


class TestInMidRun:
    def test_a_deleted_shard_is_named(self, folder):
        shards = open_shards(folder)
        shards.read(0, len(shards))
        (folder / "train-00002.safetensors").unlink()
        shards.read(0, 200)
        with pytest.raises(BadData, match=r"train-00002\.safetensors was deleted"):
            shards.read(150, 100)

    def test_a_shard_that_is_cut_does_not_end_the_process(self, folder):
        shards = open_shards(folder)
        shards.read(0, len(shards))
        os.truncate(folder / "train-00002.safetensors", 40)
        with pytest.raises(BadData, match=r"train-00002\.safetensors was cut short"):
            shards.read(250, 10)

    def test_a_shard_that_is_replaced_is_named(self, folder):
        shards = open_shards(folder)
        shards.read(0, len(shards))
        write(folder / "new", documents(seed=5))
        (folder / "new" / "train-00002.safetensors").replace(folder / "train-00002.safetensors")
        with pytest.raises(BadData, match="replaced or changed"):
            shards.read(250, 10)


def test_memory_stays_flat(tmp_path):
    """A read copies what it was asked for: Python's share of memory does not grow with the shard."""
    import tracemalloc

    write(tmp_path, [[1] * 999] * 2000, most_tokens=2**26, block_tokens=2**16)
    shards = open_shards(tmp_path)
    token_lengths(BYTES)
    tracemalloc.start()
    assert list(shards.damage()) == []
    assert shards.read(10**6, 1000).sum() == 1000 - 1 + BYTES.end_of_text
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_500_000  # of four million bytes
