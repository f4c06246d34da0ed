"""Vocabulary files: what is written reads the same everywhere, what others wrote is read or refused by name."""

import copy
import functools
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gpt2.errors import BadOption, BadTokenizer
from gpt2.tokenizer import END_OF_TEXT, Tokenizer, learn, read_tokenizer, write_tokenizer
from gpt2.tokenizer.alphabet import CHARACTERS

TEXTS = [
    "Hello world!",
    " It was the best of times , it wasn't the worst of times .\n\n\tOk?  ",
    "Ça, c'est l'été: 25 °C à l'ombre. 👍🏽 日本語 \x00\u3000",
    " ? n't 's .",
    "",
]

gpt2 = Tokenizer.gpt2()


@functools.cache
def small() -> Tokenizer:
    return learn(TEXTS * 2, 300)


@functools.cache
def padded() -> Tokenizer:
    """Two control tokens, and ids that are not places."""
    merges = small().merges
    return Tokenizer.from_merges(merges, {END_OF_TEXT: 0, "<|pad|>": 1}, ids=range(2, 258 + len(merges)))


def same_ids(theirs: Callable[[str], Any], ours: Tokenizer) -> None:
    for text in TEXTS:
        assert theirs(text) == ours.encode(text)


def change(directory: Path, file: str, *, to: Callable[[Any], Any]) -> None:
    data = json.loads((directory / file).read_text(encoding="utf-8"))
    changed = to(data)
    (directory / file).write_text(json.dumps(data if changed is None else changed), encoding="utf-8")


VOCABULARIES = pytest.mark.parametrize("make", [Tokenizer.gpt2, small, padded], ids=["gpt2", "small", "padded"])


class TestRoundTrip:
    @VOCABULARIES
    @pytest.mark.parametrize("layout", ["hf", "openai"])
    def test_ours_by_ours(self, make: Callable[[], Tokenizer], layout: Any, tmp_path: Path) -> None:
        write_tokenizer(make(), tmp_path, layout)
        names = {"hf": {"tokenizer.json", "vocab.json", "merges.txt", "tokenizer_config.json"}}
        assert {file.name for file in tmp_path.iterdir()} == names.get(layout, {"encoder.json", "vocab.bpe"})
        assert read_tokenizer(tmp_path) == make()

    @VOCABULARIES
    def test_ours_by_ours_in_the_older_layout(self, make: Callable[[], Tokenizer], tmp_path: Path) -> None:
        write_tokenizer(make(), tmp_path)
        (tmp_path / "tokenizer.json").unlink()
        assert read_tokenizer(tmp_path) == make()
        (tmp_path / "tokenizer_config.json").unlink()
        assert read_tokenizer(tmp_path) == make()

    @VOCABULARIES
    def test_ours_by_tokenizers(self, make: Callable[[], Tokenizer], tmp_path: Path) -> None:
        ours = make()
        write_tokenizer(ours, tmp_path)
        theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
        assert theirs.get_vocab_size() == ours.vocab_size
        same_ids(lambda text: theirs.encode(text).ids, ours)
        assert theirs.encode("a<|endoftext|>").ids == ours.encode("a<|endoftext|>", allowed_special=[END_OF_TEXT])
        for text in TEXTS:
            assert theirs.decode(ours.encode(text)) == text

    @VOCABULARIES
    @pytest.mark.parametrize("without", [(), ("tokenizer.json",), ("vocab.json", "merges.txt")])
    def test_ours_by_transformers(self, make: Callable[[], Tokenizer], without: tuple[str], tmp_path: Path) -> None:
        ours = make()
        write_tokenizer(ours, tmp_path, model_max_length=1024)
        for name in without:
            (tmp_path / name).unlink()
        theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
        same_ids(lambda text: theirs(text)["input_ids"], ours)
        assert len(theirs) == ours.vocab_size
        assert theirs.eos_token_id == theirs.bos_token_id == ours.end_of_text
        assert theirs.model_max_length == 1024
        assert theirs("<|endoftext|>")["input_ids"] == [ours.end_of_text]
        for text in TEXTS:
            assert theirs.decode(ours.encode(text)) == text

    def test_transformers_adds_nothing_to_a_vocabulary_without_control_tokens(self, tmp_path: Path) -> None:
        bare = Tokenizer.from_merges(small().merges, {})
        write_tokenizer(bare, tmp_path)
        theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
        assert len(theirs) == bare.vocab_size
        assert theirs.eos_token is None
        same_ids(lambda text: theirs(text)["input_ids"], bare)
        assert read_tokenizer(tmp_path) == bare

    def test_written_over_what_was_there(self, tmp_path: Path) -> None:
        write_tokenizer(gpt2, tmp_path)
        write_tokenizer(small(), tmp_path)
        assert read_tokenizer(tmp_path) == small()
        assert len(list(tmp_path.iterdir())) == 4

    def test_bad_layout(self, tmp_path: Path) -> None:
        with pytest.raises(BadOption, match="'tiktoken'"):
            write_tokenizer(gpt2, tmp_path, "tiktoken")  # type: ignore[arg-type]
        named = Tokenizer.from_merges([], {"STOP": 256})
        with pytest.raises(BadOption, match="'STOP'"):
            write_tokenizer(named, tmp_path, "openai")
        assert list(tmp_path.iterdir()) == []
        write_tokenizer(named, tmp_path)
        assert read_tokenizer(tmp_path) == named


class TestFilesOfOthers:
    @VOCABULARIES
    def test_saved_by_transformers(self, make: Callable[[], Tokenizer], tmp_path: Path) -> None:
        write_tokenizer(make(), tmp_path / "ours")
        transformers.AutoTokenizer.from_pretrained(tmp_path / "ours").save_pretrained(tmp_path / "theirs")
        assert read_tokenizer(tmp_path / "theirs") == make()

    def test_saved_by_transformers_with_a_token_added(self, tmp_path: Path) -> None:
        write_tokenizer(small(), tmp_path / "ours")
        theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "ours")
        theirs.add_special_tokens({"pad_token": "[PAD]"})
        theirs.save_pretrained(tmp_path / "theirs")
        read = read_tokenizer(tmp_path / "theirs")
        assert read.special_tokens == {END_OF_TEXT: 299, "[PAD]": 300}
        same_ids(read.encode, small())

    def test_saved_by_transformers_from_two_files(self, tmp_path: Path) -> None:
        write_tokenizer(gpt2, tmp_path)
        theirs = transformers.GPT2Tokenizer.from_pretrained(tmp_path)
        theirs.save_pretrained(tmp_path / "theirs")
        assert read_tokenizer(tmp_path / "theirs") == gpt2

    def test_published_vocabulary(self, shared: Path, tmp_path: Path) -> None:
        for name in ("vocab.json", "merges.txt"):
            (tmp_path / name).write_bytes((shared / f"data/tokenizer/gpt2_{name}").read_bytes())
        assert read_tokenizer(tmp_path) == gpt2

    def test_as_the_hub_has_gpt2(self, tmp_path: Path) -> None:
        """openai-community/gpt2: no `type` in the model, no `use_regex`, add_prefix_space behind."""
        write_tokenizer(gpt2, tmp_path)

        def hub(data: dict[str, Any]) -> None:
            del data["model"]["type"], data["model"]["byte_fallback"], data["model"]["ignore_merges"]
            data["pre_tokenizer"] = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
            data["post_processor"] = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False}
            data["decoder"] = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True}

        change(tmp_path, "tokenizer.json", to=hub)
        (tmp_path / "tokenizer_config.json").write_text('{"model_max_length": 1024}')
        assert read_tokenizer(tmp_path) == gpt2

    def test_trained_by_tokenizers_with_the_control_token_first(self, tmp_path: Path) -> None:
        trained = tokenizers.ByteLevelBPETokenizer()
        trained.train_from_iterator(TEXTS * 3, 320, min_frequency=1, show_progress=False, special_tokens=[END_OF_TEXT])
        trained.save(str(tmp_path / "tokenizer.json"))
        read = read_tokenizer(tmp_path)
        assert (read.end_of_text, read.vocab_size) == (0, 320)
        same_ids(lambda text: trained.encode(text).ids, read)
        (tmp_path / "tokenizer.json").unlink()
        trained.save_model(str(tmp_path))
        assert read_tokenizer(tmp_path) == read

    @pytest.mark.parametrize("form", [lambda m: " ".join(m.split(" ")), lambda m: m.split(" ")], ids=["text", "pair"])
    def test_both_ways_to_write_merges(self, form: Callable[[str], Any], tmp_path: Path) -> None:
        write_tokenizer(small(), tmp_path)
        change(tmp_path, "tokenizer.json", to=lambda d: d["model"].update(merges=list(map(form, d["model"]["merges"]))))
        assert read_tokenizer(tmp_path) == small()

    def test_added_tokens_json(self, tmp_path: Path) -> None:
        write_tokenizer(small(), tmp_path, "openai")
        (tmp_path / "encoder.json").rename(tmp_path / "vocab.json")
        (tmp_path / "vocab.bpe").rename(tmp_path / "merges.txt")
        (tmp_path / "added_tokens.json").write_text('{"<|pad|>": 300, "<|endoftext|>": 299}')
        assert read_tokenizer(tmp_path).special_tokens == {END_OF_TEXT: 299, "<|pad|>": 300}
        (tmp_path / "added_tokens.json").write_text('{"word": 300}')
        with pytest.raises(BadTokenizer, match="'word' is ordinary text"):
            read_tokenizer(tmp_path)

    def test_merges_without_a_header_or_with_windows_line_ends(self, tmp_path: Path) -> None:
        write_tokenizer(small(), tmp_path, "openai")
        header, rest = (tmp_path / "vocab.bpe").read_text(encoding="utf-8").split("\n", 1)
        assert header == "#version: 0.2"
        for text in (rest, rest.rstrip("\n"), rest.replace("\n", "\r\n"), f"#version: 0.2 - made by hand\n{rest}\n\n"):
            (tmp_path / "vocab.bpe").write_bytes(text.encode())
            assert read_tokenizer(tmp_path) == small()

    def test_a_merge_that_looks_like_a_comment(self, tmp_path: Path) -> None:
        hashes = learn(["##### ####"] * 3, 260)
        write_tokenizer(hashes, tmp_path, "openai")
        assert "\n# #\n" in (tmp_path / "vocab.bpe").read_text(encoding="utf-8")
        assert read_tokenizer(tmp_path) == hashes


def at(*path: Any, value: Any) -> Callable[[Any], None]:
    """Sets one place in a JSON document."""

    def to(data: Any) -> None:
        for key in path[:-1]:
            data = data[key]
        data[path[-1]] = value

    return to


def added(**flags: Any) -> Callable[[Any], None]:
    token = {"id": 300, "content": "<|pad|>", "special": True} | flags
    return lambda data: data["added_tokens"].append(token)


def sequence(key: str, *parts: Any) -> Any:
    return {"type": "Sequence", key: list(parts)}


BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
BOS = {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "x", "type_id": 0}}, {"Sequence": {"id": "A"}}]}


class TestRefusals:
    @pytest.mark.parametrize(
        ("to", "message"),
        [
            (at("normalizer", value={"type": "NFC"}), "normalizer is 'NFC'"),
            (at("normalizer", value=sequence("normalizers", {"type": "Lowercase"})), "normalizer is 'Lowercase'"),
            (at("pre_tokenizer", value=None), "pre_tokenizer is"),
            (at("pre_tokenizer", value={"type": "Whitespace"}), "pre_tokenizer is .*Whitespace"),
            (at("pre_tokenizer", value=sequence("pretokenizers", {"type": "Digits"}, BYTE_LEVEL)), "Digits"),
            (at("pre_tokenizer", "add_prefix_space", value=True), "add_prefix_space"),
            (at("pre_tokenizer", "use_regex", value=False), "use_regex"),
            (at("post_processor", value=BOS), "TemplateProcessing"),
            (at("post_processor", value=sequence("processors", BYTE_LEVEL, BOS)), "TemplateProcessing"),
            (at("post_processor", value={"type": "RobertaProcessing"}), "RobertaProcessing"),
            (at("decoder", value={"type": "WordPiece"}), "decoder is 'WordPiece'"),
            (at("model", "type", value="Unigram"), "model is 'Unigram'"),
            (at("model", "dropout", value=0.1), "dropout = 0.1"),
            (at("model", "continuing_subword_prefix", value="##"), "continuing_subword_prefix = '##'"),
            (at("model", "end_of_word_suffix", value="</w>"), "end_of_word_suffix = '</w>'"),
            (at("model", "byte_fallback", value=True), "byte_fallback"),
            (at("model", "vocab", "!", value=1), "the tokens '!' and '\"' both have the id 1"),
            (at("model", "vocab", "!", value=400), "no token has the id 0"),
            (at("model", "vocab", "!", value=2**40), "whole numbers below"),
            (at("model", "vocab", "!", value=-1), "-1 cannot be an id"),
            (at("model", "vocab", "!", value=0.5), r"id of '!' is 0\.5"),
            (at("model", "vocab", "extra", value=300), "no merge makes the token 'extra'"),
            (at("model", "vocab", END_OF_TEXT, value=300), r"'<\|endoftext\|>' has the ids 300 and 299"),
            (lambda data: data["model"]["vocab"].pop("Ġ"), "the byte spelled 'Ġ' has no token"),
            (lambda data: data["model"]["merges"].pop(0), "which no merge before it makes|no merge makes the token"),
            (lambda data: data["model"]["merges"].append(data["model"]["merges"][3]), "which an earlier merge makes"),
            (lambda data: data["model"]["merges"].append("! !"), "makes '!!', which is not in the vocabulary"),
            (lambda data: data["model"]["merges"].append("! Ġ Ġ"), "a merge is a pair"),
            (lambda data: data["model"]["merges"].append(["!", ""]), "a merge is a pair"),
            (lambda data: data["model"]["merges"].append(7), "a merge is a pair"),
            (lambda data: data["model"].pop("merges"), "merges holds None"),
            (lambda data: data["model"].pop("vocab"), "vocab holds None"),
            (lambda data: data.pop("model"), "model holds None"),
            (lambda data: [], "must be a JSON object"),
            (added(id=5), "two tokens have the id 5"),
            (added(id=301), "no token has the id 300"),
            (added(id=None), "has no text or no id"),
            (added(lstrip=True), "'<|pad|>' says lstrip"),
            (added(rstrip=True), "'<|pad|>' says rstrip"),
            (added(single_word=True), "'<|pad|>' says single_word"),
            (added(content="hello", special=False), "'hello' is ordinary text"),
            (added(content="!", id=0), "'!' is an added token, but an ordinary one too"),
            (added(content=END_OF_TEXT), "has the ids 299 and 300"),
        ],
    )
    def test_tokenizer_json(self, to: Callable[[Any], Any], message: str, tmp_path: Path) -> None:
        write_tokenizer(small(), tmp_path)

        def changed(data: Any) -> Any:
            result = to(data)
            return result if result == [] else None

        change(tmp_path, "tokenizer.json", to=changed)
        with pytest.raises(BadTokenizer, match=message) as caught:
            read_tokenizer(tmp_path)
        assert "tokenizer.json" in str(caught.value)
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize(
        "to",
        [
            at("normalizer", value=sequence("normalizers")),
            at("pre_tokenizer", value=sequence("pretokenizers", BYTE_LEVEL)),
            at("post_processor", value=None),
            at("post_processor", value=BOS | {"single": [{"Sequence": {"id": "A", "type_id": 0}}]}),
            at("decoder", value=None),
            at("model", "unk_token", value=END_OF_TEXT),
            at("model", "ignore_merges", value=True),
            at("truncation", value={"max_length": 5}),
            at("added_tokens", value=[]),
        ],
    )
    def test_what_changes_nothing_is_read(self, to: Callable[[Any], None], tmp_path: Path) -> None:
        write_tokenizer(small(), tmp_path)
        change(tmp_path, "tokenizer.json", to=to)
        assert read_tokenizer(tmp_path) == small()

    @pytest.mark.parametrize("key", ["add_prefix_space", "add_bos_token", "add_eos_token"])
    def test_tokenizer_config(self, key: str, tmp_path: Path) -> None:
        write_tokenizer(small(), tmp_path)
        change(tmp_path, "tokenizer_config.json", to=at(key, value=True))
        with pytest.raises(BadTokenizer, match=rf"tokenizer_config\.json says {key}"):
            read_tokenizer(tmp_path)

    def test_programs_that_disagree(self, tmp_path: Path) -> None:
        """a b, b c, a bc: "abc" never becomes one token, though there is one."""
        tokens = [*CHARACTERS, "ab", "bc", "abc", END_OF_TEXT]
        (tmp_path / "vocab.json").write_text(json.dumps({token: index for index, token in enumerate(tokens)}))
        (tmp_path / "merges.txt").write_text("a b\nb c\na bc\n")
        with pytest.raises(BadTokenizer, match=r"vocab\.json with merges\.txt: merge 2 joins b'a' and b'bc'"):
            read_tokenizer(tmp_path)

    @pytest.mark.parametrize(
        ("file", "content", "message"),
        [
            ("encoder.json", b"{", r"encoder\.json is not valid JSON"),
            ("encoder.json", b"[" * 100_000, r"encoder\.json is not valid JSON"),
            ("encoder.json", b"[]", r"encoder\.json holds \[\]"),
            ("encoder.json", b"\xff", r"encoder\.json is no UTF-8 text \(byte 0\)"),
            ("encoder.json", b"{}", "the byte spelled '!' has no token"),
            ("vocab.bpe", b"\xff", r"vocab\.bpe is no UTF-8"),
            ("vocab.bpe", b"a b\na\n", r"vocab\.bpe, line 2: 'a' is no merge"),
            ("vocab.bpe", b"a  b\n", r"vocab\.bpe, line 1"),
            ("vocab.bpe", b"", "no merge makes the token"),
        ],
    )
    def test_damaged_files(self, file: str, content: bytes, message: str, tmp_path: Path) -> None:
        write_tokenizer(small(), tmp_path, "openai")
        (tmp_path / file).write_bytes(content)
        with pytest.raises(BadTokenizer, match=message):
            read_tokenizer(tmp_path)

    @pytest.mark.parametrize("missing", ["vocab.bpe", "encoder.json"])
    def test_missing_files(self, missing: str, tmp_path: Path) -> None:
        write_tokenizer(small(), tmp_path, "openai")
        (tmp_path / missing).unlink()
        with pytest.raises(BadTokenizer, match="has no vocabulary: it needs"):
            read_tokenizer(tmp_path)
        with pytest.raises(BadTokenizer, match="has no vocabulary: it needs"):
            read_tokenizer(tmp_path / "nowhere")


@functools.cache
def _document() -> dict[str, Any]:
    tiny = learn(["ab abc"] * 2, 260)
    from gpt2.tokenizer.formats import _tokenizer_json

    merges = [["a", "b"], ["Ġ", "ab"], ["Ġab", "c"]]
    vocab = {character: index for index, character in enumerate([*CHARACTERS, "ab", "Ġab", "Ġabc", END_OF_TEXT])}
    return json.loads(json.dumps(_tokenizer_json(tiny, vocab, [" ".join(merge) for merge in merges])))


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    # The 256 bytes would drown the rest, so only one of them is changed.
    inner = [_places(item, (*path, key)) for key, item in items if key == "a" or key not in set(CHARACTERS)]
    return [*([path] if path else []), *itertools.chain.from_iterable(inner)]


VALUES = st.sampled_from(
    json.loads(
        """[null, true, false, 0, 1, 259, -1, 0.5, 1e400, "", "x", "ab", "a b", "ByteLevel", "Sequence", "\\ud800",
        [], {}, [[]], [null], ["a", "b"], {"type": "ByteLevel"}, {"type": "Sequence"}, {"type": 3},
        {"id": 260, "content": "<b>"}]"""
    )
)


@settings(deadline=None, max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_whatever_is_read_means_the_same_to_tokenizers(data: st.DataObject, tmp_path: Path) -> None:
    """Any one or two changes: either BadTokenizer and nothing else, or the same ids as `tokenizers` gives."""
    document = copy.deepcopy(_document())
    for _ in range(data.draw(st.integers(1, 2))):
        *path, last = data.draw(st.sampled_from(_places(document)))
        holder = document
        for key in path:
            holder = holder[key]
        if data.draw(st.booleans()):
            holder[last] = copy.deepcopy(data.draw(VALUES))
        else:
            del holder[last]
    (tmp_path / "tokenizer.json").write_text(json.dumps(document), encoding="utf-8")
    try:
        ours = read_tokenizer(tmp_path)
    except BadTokenizer:
        return
    try:
        theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    except Exception:
        return  # they do not read it, so there is nothing to be equal to
    theirs.no_truncation()
    theirs.no_padding()
    for text in ("ab abc", " abab  abc\n", "é!"):
        assert ours.encode(text) == theirs.encode(text).ids
