"""Reads and writes vocabulary files in the three layouts that exist: `tokenizer.json` (Hugging Face's, today),
`vocab.json` with `merges.txt` (Hugging Face's, before), `encoder.json` with `vocab.bpe` (OpenAI's).

Whatever in these files would make another program give other ids for plain text is refused by name, and so is a
vocabulary with gaps, with two tokens of one id, or with a token that no merge makes. A closed vocabulary of words
(`words.py`) is a `tokenizer.json` too, of Hugging Face's kind WordLevel.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any, Literal

from gpt2.errors import BadOption, BadTokenizer
from gpt2.files import write_atomically
from gpt2.tokenizer.alphabet import CHARACTERS
from gpt2.tokenizer.bpe import END_OF_TEXT, Tokenizer
from gpt2.tokenizer.words import WordTokenizer

# What control tokens look like: `<|endoftext|>`, `<pad>`, `[PAD]`. Files that do not list them tell them by this alone.
_CONTROL = re.compile(r"<[^<>\s]+>|\[[A-Z0-9_]+\]")

_BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": True}
_BYTE_LEVEL_FLAGS = {"add_bos_token": False, "add_prefix_space": False, "errors": "replace"}


def write_tokenizer(
    tokenizer: Tokenizer,
    directory: Path,
    layout: Literal["hf", "openai"] = "hf",
    *,
    model_max_length: int | None = None,
) -> None:
    """Writes a vocabulary into a folder, each file whole or not at all.

    hf: `tokenizer.json`, `vocab.json`, `merges.txt`, `tokenizer_config.json`. `transformers.AutoTokenizer` gives the
    same ids for plain text, and warns about texts longer than `model_max_length` tokens.
    openai: `encoder.json`, `vocab.bpe`.

    A vocabulary of words has `tokenizer.json` and `tokenizer_config.json` alone.

    Raises BadOption for another layout, and for a control token that `encoder.json` cannot tell from text, or words.
    """
    if isinstance(tokenizer, WordTokenizer):
        if layout != "hf":
            raise BadOption("A vocabulary of words has no layout but 'hf': OpenAI's files hold merges.")
        _write_files(
            directory,
            {
                "tokenizer.json": json.dumps(_words_json(tokenizer), ensure_ascii=False, indent=1),
                "tokenizer_config.json": json.dumps(
                    _tokenizer_config(tokenizer, model_max_length, "PreTrainedTokenizerFast", {}), indent=2
                ),
            },
        )
        return
    tokens = list(CHARACTERS)
    merges = []
    for left, right in tokenizer.merges.tolist():
        merges.append(f"{tokens[left]} {tokens[right]}")
        tokens.append(tokens[left] + tokens[right])
    vocab = dict(zip(tokens, tokenizer.ids.tolist(), strict=True)) | dict(tokenizer.special_tokens)
    vocab = dict(sorted(vocab.items(), key=lambda item: item[1]))
    merges_text = "\n".join(["#version: 0.2", *merges]) + "\n"
    match layout:
        case "hf":
            texts = {
                "tokenizer.json": json.dumps(_tokenizer_json(tokenizer, vocab, merges), ensure_ascii=False, indent=1),
                "vocab.json": json.dumps(vocab, ensure_ascii=False),
                "merges.txt": merges_text,
                "tokenizer_config.json": json.dumps(
                    _tokenizer_config(tokenizer, model_max_length, "GPT2Tokenizer", _BYTE_LEVEL_FLAGS), indent=2
                ),
            }
        case "openai":
            for name in tokenizer.special_tokens:
                if not _CONTROL.fullmatch(name):
                    raise BadOption(f"encoder.json cannot say that {name!r} is a control token; write layout 'hf'.")
            texts = {"encoder.json": json.dumps(vocab), "vocab.bpe": merges_text}
        case _:
            raise BadOption(f"layout is {layout!r}, but it must be 'hf' or 'openai'.")
    _write_files(directory, texts)


def _write_files(directory: Path, texts: Mapping[str, str]) -> None:
    for file, text in texts.items():
        write_atomically(Path(directory) / file, text.encode())
    # A vocabulary that was here in another layout would be read in place of this one.
    for file in _LAYOUT_FILES:
        if file not in texts:
            (Path(directory) / file).unlink(missing_ok=True)


_LAYOUT_FILES = (
    *("tokenizer.json", "vocab.json", "merges.txt", "tokenizer_config.json", "encoder.json", "vocab.bpe"),
    *("special_tokens_map.json", "added_tokens.json"),
)


def _added(name: str) -> dict[str, Any]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {"content": name, **flags}


def _tokenizer_json(tokenizer: Tokenizer, vocab: Mapping[str, int], merges: list[str]) -> dict[str, Any]:
    model = {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": "",
        "end_of_word_suffix": "",
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
        "vocab": vocab,
        "merges": merges,
    }
    return _document(tokenizer, _BYTE_LEVEL, _BYTE_LEVEL, model)


def _words_json(tokenizer: WordTokenizer) -> dict[str, Any]:
    model = {
        "type": "WordLevel",
        "vocab": {word: index for index, word in enumerate(tokenizer.words)},
        # A model of this kind must name an unknown word. As no word is called so, one that is unknown is an error.
        "unk_token": next(f"<unk{tail}>" for tail in count() if f"<unk{tail}>" not in tokenizer.words),
    }
    return _document(tokenizer, {"type": "WhitespaceSplit"}, None, model)


def _document(
    tokenizer: Tokenizer, cutter: Mapping[str, Any], joiner: Mapping[str, Any] | None, model: Mapping[str, Any]
) -> dict[str, Any]:
    """What `tokenizer.json` holds of either kind."""
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": index, **_added(name)} for name, index in tokenizer.special_tokens.items()],
        "normalizer": None,
        "pre_tokenizer": cutter,
        "post_processor": joiner,
        "decoder": joiner,
        "model": model,
    }


def _tokenizer_config(
    tokenizer: Tokenizer, model_max_length: int | None, kind: str, flags: Mapping[str, Any]
) -> dict[str, Any]:
    # With no name here transformers would add an `<|endoftext|>` of its own, so a vocabulary without one says null.
    end = None if tokenizer.end_of_text is None else END_OF_TEXT
    return {
        "tokenizer_class": kind,
        "added_tokens_decoder": {str(index): _added(name) for name, index in tokenizer.special_tokens.items()},
        **flags,
        "clean_up_tokenization_spaces": False,
        "bos_token": end,
        "eos_token": end,
        # Words have none: an unknown one is an error.
        **({} if isinstance(tokenizer, WordTokenizer) else {"unk_token": end}),
        **({} if model_max_length is None else {"model_max_length": model_max_length}),
    }


def read_tokenizer(directory: Path) -> Tokenizer:
    """Reads the vocabulary in a folder, in whichever of the three layouts it is (the newest, where there are several).

    Raises BadTokenizer, naming the file, for what is missing, damaged, or asks for something that GPT-2 does not do.
    """
    directory = Path(directory)
    if (directory / "tokenizer.json").is_file():
        path = directory / "tokenizer.json"
        data = _read_object(path)
        if _object(data.get("model"), f"{path}: model").get("type") == "WordLevel":
            return _read_words(path, data)
        files = _read_tokenizer_json(path, data)
    elif (directory / "vocab.json").is_file() and (directory / "merges.txt").is_file():
        files = _read_pair(directory / "vocab.json", directory / "merges.txt")
    elif (directory / "encoder.json").is_file() and (directory / "vocab.bpe").is_file():
        files = _read_pair(directory / "encoder.json", directory / "vocab.bpe")
    else:
        raise BadTokenizer(
            f"{directory} has no vocabulary: it needs tokenizer.json, or vocab.json and merges.txt, "
            "or encoder.json and vocab.bpe."
        )
    _read_beside(directory, files)
    return _assembled(files)


@dataclass(slots=True)
class _Files:
    """A vocabulary as files spell it; `source` is what errors call it."""

    source: str
    vocab: Mapping[str, Any]
    merges: Iterable[Sequence[str]]
    special: dict[str, int] = field(default_factory=dict)


def _read_text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8")
    except OSError as error:
        raise BadTokenizer(f"{path} cannot be read ({error.strerror}).") from None
    except UnicodeDecodeError as error:
        raise BadTokenizer(f"{path} is no UTF-8 text (byte {error.start}).") from None


def _read_object(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(_read_text(path))
    except (ValueError, RecursionError) as error:
        raise BadTokenizer(f"{path} is not valid JSON ({error}).") from None
    return _object(data, str(path))


def _object(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise BadTokenizer(f"{what} holds {value!r:.60}, but it must be a JSON object.")
    return value


def _list(value: Any, what: str) -> list[Any]:
    if not isinstance(value, list):
        raise BadTokenizer(f"{what} holds {value!r:.60}, but it must be a JSON list.")
    return value


def _read_pair(vocab: Path, merges: Path) -> _Files:
    lines = [line.removesuffix("\r") for line in _read_text(merges).split("\n")]
    pairs = []
    for number, line in enumerate(lines, 1):
        if not line or (number == 1 and line.startswith("#version")):
            continue
        pair = line.split(" ")
        if len(pair) != 2 or not all(pair):
            raise BadTokenizer(f"{merges}, line {number}: {line!r:.60} is no merge, which is two tokens and a space.")
        pairs.append(pair)
    return _Files(f"{vocab} with {merges.name}", _read_object(vocab), pairs)


def _read_words(path: Path, data: dict[str, Any]) -> WordTokenizer:
    """A vocabulary of words, if nothing in the file makes of a text anything but its words."""
    model = _object(data["model"], f"{path}: model")
    vocab = _object(model.get("vocab"), f"{path}: vocab")
    if [part.get("type") for part in _parts(data.get("pre_tokenizer"), "pretokenizers", f"{path}: pre_tokenizer")] != [
        "WhitespaceSplit"
    ]:
        raise BadTokenizer(f"{path}: words must be cut at white space and nowhere else (WhitespaceSplit).")
    for part in ("normalizer", "post_processor", "decoder"):
        if data.get(part) is not None:
            raise BadTokenizer(f"{path}: it has a {part}, which a vocabulary of words does not have here.")
    if model.get("unk_token") in vocab:
        raise BadTokenizer(f"{path}: unknown words become {model['unk_token']!r:.60}; here they are refused.")
    files = _Files(str(path), vocab, ())
    for token in _list(data.get("added_tokens") or [], f"{path}: added_tokens"):
        _take_added(files, _object(token, f"{path}: added_tokens").get("id"), token)
    words: dict[int, str] = {}
    for word, index in vocab.items():
        if not isinstance(index, int) or isinstance(index, bool) or words.setdefault(index, word) != word:
            raise BadTokenizer(f"{path}: the id of {word!r:.60} is {index!r:.60}, which is no id, or another word's.")
    if sorted(words) != list(range(len(words))):
        raise BadTokenizer(f"{path}: its words must have the ids from 0 on, with no gap.")
    try:
        return WordTokenizer([words[index] for index in range(len(words))], files.special)
    except BadTokenizer as error:
        raise BadTokenizer(f"{path}: {error}") from None


def _read_tokenizer_json(path: Path, data: dict[str, Any]) -> _Files:
    model = _object(data.get("model"), f"{path}: model")
    if model.get("type", "BPE") != "BPE":
        raise BadTokenizer(f"{path}: the model is {model['type']!r:.60}, but GPT-2's is byte-level BPE.")
    _refuse_other_rules(path, data, model)
    vocab, merges = _object(model.get("vocab"), f"{path}: vocab"), _list(model.get("merges"), f"{path}: merges")
    pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in merges]
    for number, pair in enumerate(pairs):
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(part, str) and part for part in pair):
            raise BadTokenizer(f"{path}: merge {number} is {merges[number]!r:.60}, but a merge is a pair of tokens.")
    files = _Files(str(path), vocab, pairs)
    for token in _list(data.get("added_tokens") or [], f"{path}: added_tokens"):
        _take_added(files, _object(token, f"{path}: added_tokens").get("id"), token)
    return files


def _refuse_other_rules(path: Path, data: dict[str, Any], model: dict[str, Any]) -> None:
    """Raises BadTokenizer for whatever makes `tokenizers` give other ids than GPT-2's rules.

    Truncation and padding are about batches and are not looked at. Neither are `unk_token`, `fuse_unk` and
    `ignore_merges`: with all 256 bytes and merges that agree (agreement.py) they change nothing.
    """
    for part in _parts(data.get("normalizer"), "normalizers", f"{path}: normalizer"):
        raise BadTokenizer(f"{path}: normalizer is {part.get('type')!r:.60}, but GPT-2 changes no character of a text.")
    cutters = _parts(data.get("pre_tokenizer"), "pretokenizers", f"{path}: pre_tokenizer")
    kinds = [part.get("type") for part in cutters]
    if kinds != ["ByteLevel"]:
        raise BadTokenizer(f"{path}: pre_tokenizer is {kinds!r:.60}, but GPT-2's is ByteLevel alone.")
    if cutters[0].get("add_prefix_space", True):
        raise BadTokenizer(f"{path}: pre_tokenizer says add_prefix_space, which puts a space before every text.")
    if not cutters[0].get("use_regex", True):
        raise BadTokenizer(f"{path}: pre_tokenizer says use_regex = false, but GPT-2 cuts text into words first.")
    for part in _parts(data.get("post_processor"), "processors", f"{path}: post_processor"):
        if part.get("type") == "ByteLevel":
            continue
        template = part.get("single") if part.get("type") == "TemplateProcessing" else None
        if not isinstance(template, list) or any(not isinstance(p, dict) or "Sequence" not in p for p in template):
            raise BadTokenizer(f"{path}: post_processor is {part.get('type')!r:.60}, which adds tokens to every text.")
    for part in _parts(data.get("decoder"), "decoders", f"{path}: decoder"):
        if part.get("type") != "ByteLevel":
            raise BadTokenizer(f"{path}: decoder is {part.get('type')!r:.60}, but GPT-2's is ByteLevel.")
    for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback"):
        if model.get(key):
            raise BadTokenizer(f"{path}: the model says {key} = {model[key]!r:.60}, which GPT-2's BPE does not have.")


def _parts(value: Any, key: str, what: str) -> list[dict[str, Any]]:
    """The steps of a normalizer, pre-tokenizer, post-processor or decoder: none, one, or those of a Sequence."""
    if value is None:
        return []
    if _object(value, what).get("type") != "Sequence":
        return [value]
    return [part for inner in _list(value.get(key), what) for part in _parts(inner, key, what)]


def _take_added(files: _Files, index: Any, token: Any) -> None:
    """One added token, an object or its text alone: a control token, or refused."""
    name = token.get("content") if isinstance(token, dict) else token
    if not isinstance(name, str) or not isinstance(index, int) or isinstance(index, bool):
        raise BadTokenizer(f"{files.source}: the added token {token!r:.60} has no text or no id.")
    flags = token if isinstance(token, dict) else {}
    for key in ("lstrip", "rstrip", "single_word"):
        if flags.get(key):
            raise BadTokenizer(f"{files.source}: the added token {name!r} says {key}, which is not done here.")
    if not flags.get("special") and not _CONTROL.fullmatch(name):
        raise BadTokenizer(
            f"{files.source}: the added token {name!r} is ordinary text with an id of its own, and no control token; "
            "byte-level BPE has no such tokens."
        )
    if files.special.setdefault(name, index) != index:
        raise BadTokenizer(f"{files.source}: the control token {name!r} has the ids {files.special[name]} and {index}.")


def _read_beside(directory: Path, files: _Files) -> None:
    """What `tokenizer_config.json` and `added_tokens.json` say beyond the vocabulary."""
    path = directory / "tokenizer_config.json"
    if path.is_file():
        data = _read_object(path)
        if data.get("add_prefix_space"):
            raise BadTokenizer(f"{path} says add_prefix_space, which puts a space before every text.")
        for key in ("add_bos_token", "add_eos_token"):
            if data.get(key):
                raise BadTokenizer(f"{path} says {key}, but GPT-2 adds no control token to a text.")
        for index, token in _object(data.get("added_tokens_decoder") or {}, f"{path}: added_tokens_decoder").items():
            _take_added(files, int(index) if index.isdecimal() else None, token)
    path = directory / "added_tokens.json"
    if path.is_file():
        for name, index in _read_object(path).items():
            if files.special.get(name) != index:
                _take_added(files, index, name)


def _assembled(files: _Files) -> Tokenizer:
    """Turns spellings into places, and checks that vocabulary and merges tell the same story."""
    source, vocab = files.source, files.vocab
    owners: dict[int, str] = {}
    for token, index in vocab.items():
        if not isinstance(index, int) or isinstance(index, bool):
            raise BadTokenizer(f"{source}: the id of {token!r} is {index!r:.60}, but ids are whole numbers.")
        if owners.setdefault(index, token) != token:
            raise BadTokenizer(f"{source}: the tokens {owners[index]!r} and {token!r} both have the id {index}.")
    for byte_character in CHARACTERS:
        if byte_character not in vocab:
            raise BadTokenizer(f"{source}: the byte spelled {byte_character!r} has no token, but GPT-2 has all 256.")
    places = {character: place for place, character in enumerate(CHARACTERS)}
    merges = []
    for number, (left, right) in enumerate(files.merges):
        for part in (left, right):
            if part not in places:
                raise BadTokenizer(f"{source}: merge {number} joins {part!r}, which no merge before it makes.")
        joined = left + right
        if joined in places:
            raise BadTokenizer(f"{source}: merge {number} makes {joined!r}, which an earlier merge makes.")
        if joined not in vocab:
            raise BadTokenizer(f"{source}: merge {number} makes {joined!r}, which is not in the vocabulary.")
        merges.append((places[left], places[right]))
        places[joined] = len(places)
    special = dict(files.special)
    for token, index in vocab.items():
        if token in places and token in special:
            raise BadTokenizer(f"{source}: {token!r} is an added token, but an ordinary one too.")
        if token in places:
            continue
        if token not in special and not _CONTROL.fullmatch(token):
            raise BadTokenizer(f"{source}: no merge makes the token {token!r}, so it can never come from a text.")
        if special.setdefault(token, index) != index:
            raise BadTokenizer(f"{source}: the control token {token!r} has the ids {index} and {special[token]}.")
    try:
        return Tokenizer.from_merges(merges, special, ids=[vocab[token] for token in places])
    except BadTokenizer as error:
        raise BadTokenizer(f"{source}: {error}") from None
