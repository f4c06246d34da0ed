"""Law `tokens`: encode equals tiktoken's `gpt2`, and decode_bytes(encode(x)) equals x, for any text. Identical.

The oracle is `tiktoken.get_encoding("gpt2")` itself. It looks for OpenAI's two files in a cache folder first, so they
are put there, written by us; tiktoken checks their SHA-256 and would go to the network if a byte were wrong. With the
shared data, the published files and two more programs that read them (`tokenizers`, `transformers`) judge as well.
"""

import hashlib
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiktoken
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gpt2.tokenizer import Tokenizer, learn, write_tokenizer

PUBLISHED = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/"

LANGUAGES = [
    "The quick brown fox doesn't jump; it's over the lazy dog's 3rd fence, they'll say we've 'seen' it.",
    "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich.",
    "Où est passé l'élève? Là-bas, près du cœur de la forêt…",
    "Съешь же ещё этих мягких французских булок, да выпей чаю.",
    "Ξεσκεπάζω την ψυχοφθόρα βδελυγμία.",
    "色は匂へど散りぬるを　我が世誰ぞ常ならむ。",
    "天地玄黄，宇宙洪荒。日月盈昃，辰宿列张。１２３",
    "키스의 고유조건은 입술끼리 만나야 하고 특별한 기술은 필요치 않다.",
    "صِف خَلقَ خَودِ كَمِثلِ الشَمسِ إِذ بَزَغَت ١٢٣",
    "דג סקרן שט בים מאוכזב ולפתע מצא חברה",
    "ऋषियों को सताने वाले दुष्ट राक्षसों के राजा रावण का सर्वनाश",
    "เป็นมนุษย์สุดประเสริฐเลิศคุณค่า",
    "👩‍👩‍👧‍👦 🏳️‍🌈 🇩🇪 👍🏽 ☃️ ½ Ⅷ ² ① e\u0301 \u200b\u200d\ufeff",
    "def f(x):\n\tif x != 0:\r\n        return 1e-5 * x  # ok\n\n\n    \n",
    "\x00\x01\x1c\x1f\x7f\x85\xa0 \u2028\u2029\u3000 \u180e",
    "<|endoftext|> <|endoftext|><|endoftext|",
]

ODD = st.sampled_from([*" \n\t\x85\xa0\u2003\u3000", "  ", "\r\n", "'s", "'S", " 's", "'ll", "’ll"])
CHARACTERS = st.characters(exclude_categories=["Cs"])  # all planes; surrogates are no characters
RUNS = st.builds(lambda character, n: character * n, CHARACTERS, st.integers(1, 300))
TEXTS = st.lists(st.one_of(st.text(CHARACTERS), ODD, RUNS, st.sampled_from(LANGUAGES)), max_size=8).map("".join)


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> tiktoken.Encoding:
    files, cached = tmp_path_factory.mktemp("files"), tmp_path_factory.mktemp("cached")
    write_tokenizer(Tokenizer.gpt2(), files, "openai")
    for name in ("vocab.bpe", "encoder.json"):
        (files / name).rename(cached / hashlib.sha1((PUBLISHED + name).encode()).hexdigest())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TIKTOKEN_CACHE_DIR", str(cached))
        return tiktoken.get_encoding("gpt2")


ours = Tokenizer.gpt2()


def test_examples_everybody_knows() -> None:
    sentence = "GPT2 is a large language model developed by OpenAI."
    assert ours.encode(sentence) == [38, 11571, 17, 318, 257, 1588, 3303, 2746, 4166, 416, 4946, 20185, 13]
    assert ours.encode("The cat sat") == [464, 3797, 3332]
    assert ours.encode("Hello world!") == [15496, 995, 0]


@settings(deadline=None, max_examples=300)
@given(text=TEXTS)
@example(text="")
@example(text="<|endoftext|>")
def test_equal_to_tiktoken_and_back(theirs: tiktoken.Encoding, text: str) -> None:
    ids = ours.encode(text)
    assert ids == theirs.encode(text, disallowed_special=())
    assert ours.decode_bytes(ids) == text.encode()
    assert ours.decode(ids) == text
    assert ours.encode_array(text).tolist() == ids


@pytest.mark.parametrize("text", LANGUAGES)
def test_languages(theirs: tiktoken.Encoding, text: str) -> None:
    assert ours.encode(text) == theirs.encode(text, disallowed_special=())
    assert ours.decode(ours.encode(text)) == text


@settings(deadline=None)
@given(texts=st.lists(TEXTS, max_size=4))
def test_control_token_only_if_allowed(theirs: tiktoken.Encoding, texts: list[str]) -> None:
    text = "<|endoftext|>".join(texts)
    assert ours.encode(text) == theirs.encode_ordinary(text)
    assert 50256 not in ours.encode(text)
    allowed = {"<|endoftext|>"}
    assert ours.encode(text, allowed_special=allowed) == theirs.encode(text, allowed_special=allowed)


@settings(deadline=None)
@given(ids=st.lists(st.integers(0, 50256)))
def test_decoding_any_ids(theirs: tiktoken.Encoding, ids: list[int]) -> None:
    assert ours.decode_bytes(ids) == theirs.decode_bytes(ids)
    assert ours.decode(ids) == theirs.decode(ids, errors="replace")


def _around_every_character(step: int = 1) -> list[str]:
    """Each character of the planes that have any, between letters, digits, marks and spaces; 4,096 per text."""
    used = itertools.chain(range(0xD800), range(0xE000, 0x32400), range(0xE0000, 0xE0200), (0xF0000, 0x10FFFF))
    chosen = [chr(code) for code in itertools.islice(used, 0, None, step)]
    pieces = [f"a{c}1{c} {c}.{c}{c}'s\n" for c in chosen]
    return ["".join(pieces[start : start + 4096]) for start in range(0, len(pieces), 4096)]


def test_every_character_to_tiktoken(theirs: tiktoken.Encoding) -> None:
    for text in _around_every_character():
        assert ours.encode(text) == theirs.encode_ordinary(text)


def test_every_character_to_tokenizers(tmp_path: Path) -> None:
    import tokenizers

    write_tokenizer(ours, tmp_path)
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    # Every third, which takes a second; all of them were equal with tiktoken 0.14 and tokenizers 0.23.
    for text in _around_every_character(3):
        assert ours.encode(text) == theirs.encode(text).ids


@pytest.mark.parametrize("unit", ["a", " ", "\n", "é", "7", "!", "\t ", "ab ", "👍", "'", "\u3000"])
@pytest.mark.parametrize("end", ["", "x"])
def test_long_runs_end(unit: str, end: str) -> None:
    text = unit * (10**6 // len(unit)) + end
    assert ours.decode(ours.encode(text)) == text


def test_long_run_of_spaces_is_cut_without_changing_a_word(theirs: tiktoken.Encoding) -> None:
    # Long enough to be cut here, and short enough for tiktoken to read whole.
    for before, after in itertools.product(("", "x", "\n"), ("", "x", " x", "\n", "1")):
        text = before + " \u3000\n " * 150_000 + after
        assert ours.encode(text) == theirs.encode_ordinary(text)


@pytest.fixture(scope="module")
def fast() -> Any:
    pytest.importorskip("fastokens", reason="left out: it needs the extra `fast`")
    from gpt2.tokenizer.fast import FastEncoder

    return FastEncoder(ours)


class TestFastEncoder:
    """The extra `fast` is held to the same law, for GPT-2's vocabulary and for others."""

    @settings(deadline=None, max_examples=300)
    @given(texts=st.lists(TEXTS, max_size=4))
    @example(texts=["", "<|endoftext|>", "", "'S'Ll"])
    def test_any_texts(self, fast, texts: list[str]) -> None:
        assert [ids.tolist() for ids in fast.encode_batch(texts)] == [ours.encode(text) for text in texts]

    def test_every_character(self, fast) -> None:
        texts = [*LANGUAGES, *_around_every_character(2)]  # all of them were equal with fastokens 0.3.5
        for text, ids in zip(texts, fast.encode_batch(texts), strict=True):
            assert ids.tolist() == ours.encode(text)

    @pytest.mark.parametrize("unit", ["a", " ", "\n", "é", "7", "!", "\t ", "ab ", "👍", "'", "\u3000"])
    def test_long_runs(self, fast, unit: str) -> None:
        # Around every size at which a program may cut a text into pieces.
        sizes = [1, 63, 64, 65, 1023, 1024, 1025, 4096, 4097, 16385, 65537]
        texts = ["word " + unit * (size // len(unit)) + end for size in sizes for end in ("", "x", " y", "\n")]
        for text, ids in zip(texts, fast.encode_batch(texts), strict=True):
            assert np.array_equal(ids, ours.encode_array(text))

    def test_a_document_does_not_depend_on_those_before_it(self, fast) -> None:
        # A program that keeps what it cut before must look one character further than where two texts part.
        start = "".join(f"word {number}, " for number in range(1000))
        spaces = " " * 700
        ends = ["x", " ", "\n", "\tx", "y", "", "'s", "1", " y"]
        expected = {end: ours.encode(start + spaces + end) for end in ends}
        for before, end in itertools.product(ends, ends):
            fast.encode_batch([start + spaces + before])
            assert fast.encode_batch([start + spaces + end])[0].tolist() == expected[end]

    def test_real_text(self, fast, shared: Path) -> None:
        texts = _texts(shared)
        with pyarrow_stream(shared / "data/corpus/valid.jsonl.zst") as stream:
            texts += [json.loads(line)["text"] for line in stream.read().splitlines()]
        assert sum(map(len, texts)) > 3_000_000
        for text, ids in zip(texts, fast.encode_batch(texts), strict=True):
            assert np.array_equal(ids, ours.encode_array(text))

    @pytest.mark.parametrize("vocab_size", [257, 300, 3000])
    def test_learnt_vocabularies(self, shared: Path, vocab_size: int) -> None:
        pytest.importorskip("fastokens", reason="left out: it needs the extra `fast`")
        from gpt2.tokenizer.fast import FastEncoder

        texts = [text[:30_000] for text in _texts(shared)]
        learnt = learn(texts, vocab_size)
        encoder = FastEncoder(learnt)
        for text, ids in zip(texts + LANGUAGES, encoder.encode_batch(texts + LANGUAGES), strict=True):
            assert ids.tolist() == learnt.encode(text)

        @settings(deadline=None, max_examples=50)
        @given(text=TEXTS)
        def any_text(text: str) -> None:
            assert encoder.encode_batch([text])[0].tolist() == learnt.encode(text)

        any_text()


def pyarrow_stream(path: Path) -> Any:
    pyarrow = pytest.importorskip("pyarrow", reason="left out: it reads compressed data with pyarrow")
    return pyarrow.input_stream(str(path), compression="zstd")


class TestWithPublishedFiles:
    """The vocabulary as published, read by programs that share nothing with ours."""

    def test_tiktoken_from_published_ranks(self, shared: Path) -> None:
        from transformers.convert_slow_tokenizer import bytes_to_unicode

        to_byte = {character: byte for byte, character in bytes_to_unicode().items()}
        vocab = json.loads((shared / "data/tokenizer/gpt2_vocab.json").read_text(encoding="utf-8"))
        special = {"<|endoftext|>": vocab.pop("<|endoftext|>")}
        ranks = {bytes(map(to_byte.__getitem__, token)): rank for token, rank in vocab.items()}
        from tiktoken_ext.openai_public import r50k_pat_str

        oracle = tiktoken.Encoding("published", pat_str=r50k_pat_str, mergeable_ranks=ranks, special_tokens=special)
        for text in [*LANGUAGES, *_texts(shared)]:
            assert ours.encode(text) == oracle.encode_ordinary(text)
        assert [ours.token_bytes(index) for index in range(50257)] == [
            oracle.decode_single_token_bytes(index) for index in range(50257)
        ]

    def test_tokenizers_and_transformers(self, shared: Path) -> None:
        import tokenizers
        import transformers

        vocab, merges = (str(shared / f"data/tokenizer/{name}") for name in ("gpt2_vocab.json", "gpt2_merges.txt"))
        bare = tokenizers.Tokenizer(tokenizers.models.BPE.from_file(vocab, merges))
        bare.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
        hugging = transformers.GPT2Tokenizer(vocab=vocab, merges=merges)
        for text in [*LANGUAGES, *(text[:50_000] for text in _texts(shared))]:
            assert ours.encode(text) == bare.encode(text).ids
            assert ours.encode(text, allowed_special=["<|endoftext|>"]) == hugging(text)["input_ids"]

        @settings(deadline=None, max_examples=100)
        @given(text=TEXTS)
        def any_text(text: str) -> None:
            assert ours.encode(text) == bare.encode(text).ids

        any_text()


def _texts(shared: Path) -> list[str]:
    names = ("tokenizer/corpus.en", "tokenizer/german.txt", "tokenizer/address.txt", "tokenizer/tinystories_sample.txt")
    names += ("tinyshakespeare.txt", "eval/newstest/newstest2014-fren.fr", "eval/wikitext2/wiki.test.raw")
    return [(shared / "data" / name).read_text(encoding="utf-8")[:300_000] for name in names]
