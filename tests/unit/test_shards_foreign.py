"""nanoGPT's and llm.c's files, made here as those programs make them."""

import pickle

import numpy as np
import pytest
import tiktoken

from gpt2.errors import BadData
from gpt2.shards import foreign, is_validation, open_shards
from gpt2.tokenizer import Tokenizer
from tests.helpers import byte_tokenizer

TEXTS = ["The cat sat.", "Where? On the mat.", "é 日本"]
GPT2 = Tokenizer.gpt2()
END = 50256


def nanogpt(path, texts=TEXTS):
    """As nanoGPT's data/openwebtext/prepare.py: a mapped array of uint16, end-of-text behind each document."""
    ids = np.concatenate([np.array([*GPT2.encode(text), END]) for text in texts])
    array = np.memmap(path, dtype=np.uint16, mode="w+", shape=ids.shape)
    array[:] = ids
    array.flush()
    return ids


def llmc(path, texts=TEXTS, magic=20240520, version=1, dtype=np.uint16):
    """As llm.c's dev/data: 256 int32 (magic, version, count), then the tokens, end-of-text before each document."""
    ids = np.concatenate([np.array([END, *GPT2.encode(text)]) for text in texts])
    header = np.zeros(256, dtype=np.int32)
    header[:3] = magic, version, len(ids)
    path.write_bytes(header.tobytes() + ids.astype(dtype).tobytes())
    return ids


@pytest.mark.parametrize("make", [nanogpt, llmc])
def test_tokens_are_read_as_they_lie(tmp_path, make):
    ids = make(tmp_path / "train.bin")
    shards = open_shards(tmp_path)
    assert shards.read(0, len(shards)).tolist() == ids.tolist()
    assert shards.read(3, 5).tolist() == ids[3:8].tolist()
    assert shards.document_count == len(TEXTS)
    assert shards.text_bytes is None
    assert GPT2.decode(shards.read(0, len(shards))).replace("<|endoftext|>", "") == "".join(TEXTS)
    shards.check_tokenizer(GPT2)
    assert list(shards.damage()) == []
    with pytest.raises(BadData, match="another tokenizer"):
        shards.check_tokenizer(byte_tokenizer())


def test_the_ids_are_those_of_the_tokenizer_that_these_programs_use(tmp_path):
    nanogpt(tmp_path / "train.bin")
    theirs = tiktoken.Encoding(
        "gpt2", pat_str=GPT2._encoding._pat_str, mergeable_ranks=GPT2._encoding._mergeable_ranks, special_tokens={}
    )
    expected = [index for text in TEXTS for index in [*theirs.encode_ordinary(text), END]]
    assert open_shards(tmp_path).read(0, len(expected)).tolist() == expected


def test_the_folders_that_these_programs_make(tmp_path):
    nanogpt(tmp_path / "train.bin")
    nanogpt(tmp_path / "val.bin", TEXTS[:1])
    assert len(open_shards(tmp_path, "validation")) == len(GPT2.encode(TEXTS[0])) + 1
    other = tmp_path / "fineweb10B"
    other.mkdir()
    llmc(other / "fineweb_val_000000.bin", TEXTS[:1])
    parts = [llmc(other / f"fineweb_train_{number:06d}.bin", [text]) for number, text in enumerate(TEXTS[1:], 1)]
    shards = open_shards(other)
    assert shards.read(0, len(shards)).tolist() == np.concatenate(parts).tolist()
    assert [path.name for path in open_shards(other, "validation").paths] == ["fineweb_val_000000.bin"]


@pytest.mark.parametrize(
    ("name", "validation"),
    [
        ("val.bin", True),
        ("fineweb_val_000000.bin", True),
        ("tiny_shakespeare_val.bin", True),
        ("validation-00000.safetensors", True),
        ("train.bin", False),
        ("valley_train.bin", False),
        ("carnival.bin", False),
    ],
)
def test_names_that_say_validation(tmp_path, name, validation):
    assert is_validation(tmp_path / name) is validation


def test_an_odd_size_is_cut_short(tmp_path):
    nanogpt(tmp_path / "train.bin")
    data = (tmp_path / "train.bin").read_bytes()
    (tmp_path / "train.bin").write_bytes(data[:-1])
    with pytest.raises(BadData, match=r"train\.bin is cut short, or holds no tokens"):
        open_shards(tmp_path)
    (tmp_path / "train.bin").write_bytes(b"")
    with pytest.raises(BadData, match="holds no tokens"):
        open_shards(tmp_path)


def test_an_llmc_file_that_is_cut_short_or_too_long(tmp_path):
    llmc(tmp_path / "train.bin")
    data = (tmp_path / "train.bin").read_bytes()
    for changed, message in [
        (data[:-2], "cut short: it has"),
        (data[:600], "llm.c's header"),
        (data + b"xx", "longer"),
    ]:
        (tmp_path / "train.bin").write_bytes(changed)
        with pytest.raises(BadData, match=message):
            open_shards(tmp_path)


def test_other_files_of_llmc_are_refused(tmp_path):
    llmc(tmp_path / "train.bin", magic=20240801, version=7, dtype=np.uint32)
    with pytest.raises(BadData, match="tokens of Llama 3"):
        open_shards(tmp_path)
    llmc(tmp_path / "train.bin", magic=20240522)
    with pytest.raises(BadData, match=r"llm\.c file of another kind \(magic number 20240522"):
        open_shards(tmp_path)
    llmc(tmp_path / "train.bin", version=2)
    with pytest.raises(BadData, match="version 2"):
        open_shards(tmp_path)


def test_a_text_whose_first_tokens_look_like_a_date_is_read(tmp_path):
    ids = [5, 309, *GPT2.encode("omatoes")]  # "& Tomatoes", though encode would give other ids for it
    np.array(ids, dtype="<u2").tofile(tmp_path / "train.bin")
    assert int.from_bytes((tmp_path / "train.bin").read_bytes()[:4], "little") == 20250629
    assert open_shards(tmp_path).read(0, len(ids)).tolist() == ids


def test_no_magic_number_of_llmcs_could_be_tokens():
    assert all(magic & 0xFFFF > END for magic in foreign._LLMC_MAGIC)


def test_what_is_no_tokens_is_found_when_it_is_read(tmp_path):
    (tmp_path / "train.bin").write_bytes(b"PK\x03\x04" + b"\xff\xfe" * 100)
    with pytest.raises(BadData, match=r"train\.bin, block 0 of 1 .* holds 65279, which is no id"):
        open_shards(tmp_path).read(0, 2)


def test_a_vocabulary_that_only_a_pickle_tells_is_refused(tmp_path):
    nanogpt(tmp_path / "train.bin")
    (tmp_path / "meta.pkl").write_bytes(pickle.dumps({"vocab_size": 65}))
    with pytest.raises(BadData, match=r"meta\.pkl beside it"):
        open_shards(tmp_path)
    with pytest.raises(BadData, match="pickles are not opened"):
        open_shards([tmp_path / "train.bin"])


def test_the_fingerprint_changes_with_the_tokens(tmp_path):
    nanogpt(tmp_path / "train.bin")
    before = open_shards(tmp_path).fingerprint
    assert open_shards(tmp_path).fingerprint == before
    nanogpt(tmp_path / "train.bin", ["The dog sat.", *TEXTS[1:]])
    assert open_shards(tmp_path).fingerprint != before
