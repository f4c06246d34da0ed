"""What the law `tokens` does not say: offsets, errors, other ids, construction, GPT-2's table of merges."""

import copy
import hashlib
import json
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2.errors import BadOption, BadPrompt, BadTokenizer
from gpt2.tokenizer import END_OF_TEXT, Tokenizer, write_tokenizer
from gpt2.tokenizer.agreement import first_disagreement
from gpt2.tokenizer.alphabet import BYTES

gpt2 = Tokenizer.gpt2()
TEXT = st.text(st.characters(exclude_categories=["Cs"]))


class TestTable:
    def test_sha256_of_the_files_it_stands_for(self, tmp_path) -> None:
        write_tokenizer(gpt2, tmp_path, "openai")
        sums = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in tmp_path.iterdir()}
        assert sums == {
            "vocab.bpe": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
            "encoder.json": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
        }

    def test_merges_by_pairs_and_by_bytes_agree(self) -> None:
        assert first_disagreement(map(tuple, gpt2.merges.tolist())) is None

    def test_size(self) -> None:
        assert (gpt2.vocab_size, len(gpt2), gpt2.end_of_text) == (50257, 50257, 50256)
        assert gpt2.special_tokens == {"<|endoftext|>": 50256}
        assert gpt2.merges.shape == (50000, 2)
        assert Tokenizer.gpt2() is gpt2


class TestOffsets:
    def test_plain(self) -> None:
        assert gpt2.offsets("The cat sat") == [(0, 3), (3, 7), (7, 11)]
        assert gpt2.offsets("") == []

    def test_parts_of_a_character_cover_it(self) -> None:
        text = "a👍b"
        assert [gpt2.token_bytes(index) for index in gpt2.encode(text)] == [b"a", b"\xf0\x9f\x91", b"\x8d", b"b"]
        assert gpt2.offsets(text) == [(0, 1), (1, 2), (1, 2), (2, 3)]

    @settings(deadline=None, max_examples=200)
    @given(text=TEXT)
    def test_by_counting(self, text: str) -> None:
        owner = [place for place, character in enumerate(text) for _ in character.encode()]
        start, expected = 0, []
        for index in gpt2.encode(text):
            end = start + len(gpt2.token_bytes(index))
            expected.append((owner[start], owner[end - 1] + 1))
            start = end
        assert gpt2.offsets(text) == expected

    def test_as_tokenizers_counts_them(self, tmp_path) -> None:
        import tokenizers

        write_tokenizer(gpt2, tmp_path)
        theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
        for text in ("Hello,  world!\n\n ok", "naïve café 👍🏽 日本語 ½", " \u3000 x"):
            assert gpt2.offsets(text) == theirs.encode(text).offsets


class TestEncode:
    def test_lone_surrogate_is_refused_with_its_place(self) -> None:
        for call in (gpt2.encode, gpt2.encode_array, gpt2.offsets, lambda text: gpt2.encode_batch([text, ""], 2)):
            with pytest.raises(BadPrompt, match=r"character 3 .* U\+D83D"):
                call("abc\ud83d\udc4d")

    def test_no_text(self) -> None:
        with pytest.raises(BadPrompt, match="bytes"):
            gpt2.encode(b"abc")  # type: ignore[arg-type]
        with pytest.raises(BadPrompt, match="one text"):
            gpt2.encode_batch("abc")
        assert gpt2.encode("") == []
        assert gpt2.encode_array("").tolist() == []

    def test_allowed_names(self) -> None:
        two = Tokenizer.from_merges([], {"<a>": 256, "<a>b": 257})
        assert two.end_of_text is None
        assert two.encode("<a>b<a>", allowed_special=["<a>", "<a>b"]) == [257, 256]
        assert two.encode("<a>b<a>", allowed_special=["<a>"]) == [256, *two.encode("b"), 256]
        assert two.decode(two.encode("x<a>b", allowed_special={"<a>b"})) == "x<a>b"
        with pytest.raises(BadOption, match=r"<\|endoftext\|>.*<a>, <a>b"):
            two.encode("", allowed_special=["<|endoftext|>"])
        with pytest.raises(BadOption, match="list or a set"):
            two.encode("", allowed_special="<a>")

    def test_batch(self) -> None:
        texts = ["", "one", "two  spaces", "👍" * 50, "é\n" * 1000]
        alone = [gpt2.encode(text) for text in texts]
        assert gpt2.encode_batch(texts) == gpt2.encode_batch(texts, threads=3) == alone
        assert gpt2.encode_batch([]) == gpt2.encode_batch([], threads=3) == []
        with pytest.raises(BadOption, match="threads is 0"):
            gpt2.encode_batch(texts, threads=0)

    def test_array(self) -> None:
        array = gpt2.encode_array("Hello world!")
        assert array.dtype == np.int32
        assert array.tolist() == [15496, 995, 0]
        array[0] = 1  # ours to change

    def test_from_many_threads_at_once(self) -> None:
        fresh = Tokenizer.from_merges(gpt2.merges[:2000])
        texts = [f"thread {number} says the same thing" for number in range(64)]
        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(fresh.encode, texts)) == [fresh.encode(text) for text in texts]


class TestDecode:
    @pytest.mark.parametrize("wrong", [50257, -1, 10**30, "Hello", None])
    def test_unknown_id_is_named(self, wrong: object) -> None:
        with pytest.raises(BadPrompt, match=str(wrong)):
            gpt2.decode_bytes([464, wrong])  # type: ignore[list-item]

    def test_no_list_of_ids(self) -> None:
        for wrong in (464, [[464]], np.array(464), np.array([[464, 3797]])):
            with pytest.raises(BadPrompt, match="flat list"):
                gpt2.decode_bytes(wrong)  # type: ignore[arg-type]

    def test_arrays_tensors_iterators(self) -> None:
        import torch

        ids = [464, 3797]
        for given_as in (tuple(ids), iter(ids), np.array(ids), list(np.array(ids)), torch.tensor(ids)):
            assert gpt2.decode(given_as) == "The cat"

    def test_control_token_is_its_name(self) -> None:
        assert gpt2.token_bytes(50256) == b"<|endoftext|>"
        assert gpt2.decode([464, 50256]) == "The<|endoftext|>"

    def test_bad_utf8_is_replaced(self) -> None:
        assert gpt2.decode(gpt2.encode("👍")[:1]) == "\ufffd"


class TestConstruction:
    def test_bytes_alone(self) -> None:
        bare = Tokenizer.from_merges([])
        assert (bare.vocab_size, bare.end_of_text) == (257, 256)
        assert bare.encode("!é") == [0, BYTES.index(0xC3), BYTES.index(0xA9)]
        assert sorted(bare.token_bytes(index) for index in range(256)) == [bytes((byte,)) for byte in range(256)]

    @settings(deadline=None, max_examples=50)
    @given(seed=st.integers(0, 2**32 - 1), text=TEXT)
    def test_other_ids_are_only_other_names(self, seed: int, text: str) -> None:
        n = 256 + 500
        straight = Tokenizer.from_merges(gpt2.merges[:500])
        numbers = np.random.default_rng(seed).permutation(n + 1)
        mixed = Tokenizer.from_merges(gpt2.merges[:500], {END_OF_TEXT: int(numbers[n])}, ids=numbers[:n])
        ids = mixed.encode(text)
        assert ids == numbers[straight.encode(text)].tolist()
        assert mixed.encode_array(text).tolist() == ids
        assert mixed.decode_bytes(ids) == text.encode()
        assert mixed.offsets(text) == straight.offsets(text)
        assert (mixed == straight) == (numbers.tolist() == list(range(n + 1)))

    def test_equal_means_same_fingerprint(self) -> None:
        same = Tokenizer.from_merges(gpt2.merges)
        assert same == gpt2
        assert hash(same) == hash(gpt2)
        assert same.fingerprint() == gpt2.fingerprint()
        assert len(gpt2.fingerprint()) == 64
        others = [
            Tokenizer.from_merges(gpt2.merges[:-1]),
            Tokenizer.from_merges(gpt2.merges, {"<|end|>": 50256}),
            Tokenizer.from_merges(gpt2.merges, {END_OF_TEXT: 50256, "<|pad|>": 50257}),
            Tokenizer.from_merges(gpt2.merges, {}),
        ]
        assert len({tokenizer.fingerprint() for tokenizer in [gpt2, *others]}) == 5
        assert gpt2 != "gpt2"

    def test_fingerprint_stays(self) -> None:
        # Shards and runs remember it: a change here makes them all strangers.
        assert gpt2.fingerprint() == "e43d6ee8e77731fff167fa963d3a18b459c9a8414bf8d33020a0067e068d791a"

    def test_copies_and_other_processes(self) -> None:
        for other in (pickle.loads(pickle.dumps(gpt2)), copy.deepcopy(gpt2)):
            assert other == gpt2
            assert other.encode("Hello world!") == [15496, 995, 0]

    def test_read_only(self) -> None:
        with pytest.raises(ValueError, match="read-only"):
            gpt2.merges[0, 0] = 1
        with pytest.raises(TypeError):
            gpt2.special_tokens["<|pad|>"] = 3  # type: ignore[index]

    @pytest.mark.parametrize(
        ("merges", "special", "ids", "message"),
        [
            ([[0, 1], [0, 258]], None, None, r"merge 1 joins \(0, 258\)"),
            ([[0, 256]], None, None, "merge 0 joins"),
            ([[-1, 0]], None, None, "merge 0 joins"),
            ([[0.5, 1.0]], None, None, "whole numbers"),
            ([[0, 2**40]], None, None, "whole numbers"),
            ([["a", "b"]], None, None, "whole numbers"),
            ([[0, 1], [2]], None, None, "whole numbers"),
            ([[0, 1, 2]], None, None, "pairs"),
            ([0, 1], None, None, "pairs"),
            ([[0, 1], [0, 1]], None, None, r"merge 1 joins b'!' and b'\"'"),
            ([], {"<a>": 258}, None, "no token has the id 256"),
            ([], {"<a>": 255}, None, "two tokens have the id 255"),
            ([], {"<a>": -1}, None, "-1 cannot be an id"),
            ([], {"<a>": "256"}, None, "'256' cannot be an id"),
            ([], {"<a>": 256, "<b>": 256}, None, "two tokens have the id 256"),
            ([], {"": 256}, None, "empty"),
            ([], {"!": 256}, None, "ordinary token"),
            ([], {"<\ud800>": 256}, None, "UTF-8"),
            ([], {}, list(range(255)), r"shape \(255,\)"),
            ([], {}, [*range(255), 300], "no token has the id 255"),
        ],
    )
    def test_refused(self, merges, special, ids, message: str) -> None:
        with pytest.raises(BadTokenizer, match=message):
            Tokenizer.from_merges(merges, special, ids=ids)


def test_importing_and_encoding_need_no_heavy_packages() -> None:
    program = """
import json, sys
import gpt2.tokenizer
before = set(sys.modules)
gpt2.tokenizer.Tokenizer.gpt2().encode("Hello world!")
heavy = ("torch", "tokenizers", "transformers", "rich")
print(json.dumps([[name for name in (*heavy, "tiktoken") if name in before], [n for n in heavy if n in sys.modules]]))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [[], []]
