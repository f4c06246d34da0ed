"""`Tokenizer`: text to ids and back, exactly and without loss, by GPT-2's byte-level BPE.

tiktoken does the merging. This file builds it from a list of merges, keeps control tokens out of text, and says which
characters each token covers. It reads no vocabulary files (`formats.py`) and learns nothing (`learn.py`).

tiktoken takes a token's rank for its id. Vocabularies made elsewhere may number their tokens otherwise, so there are
two numberings: a token's *place* (0 to 255 the bytes in GPT-2's order, then one for each merge in order) is what
tiktoken sees, and its *id* is what everybody else sees. In GPT-2's own vocabulary they are the same.
"""

import hashlib
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, cached_property
from itertools import pairwise
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from gpt2.errors import BadOption, BadPrompt, BadTokenizer
from gpt2.tokenizer.agreement import first_disagreement
from gpt2.tokenizer.alphabet import BYTES
from gpt2.tokenizer.vocabulary import gpt2_merges

if TYPE_CHECKING:
    import tiktoken

END_OF_TEXT = "<|endoftext|>"

# GPT-2's rule for cutting text into words before merging (Radford et al. 2019, section 2.2, and OpenAI's encoder.py):
#   's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
# written so that it seldom goes back over what it has read (`++`), and takes white space at the end in one step. The
# last branch is reached only for one white space before something that is none. The words are the same.
_WORDS = r"'(?:[stmd]|re|ve|ll)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"

# tiktoken's regex engine gives up, with a panic, on a million white spaces before something else. Such a run can be cut
# before its last one without changing a word. Every run longer than a stride is found by looking once in each stride.
_STRIDE = 250_000
_SPACES = re.compile(r"[\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]{2,}")  # Unicode's White_Space


class Tokenizer:
    """A byte-level BPE vocabulary, which never changes.

    Made by `Tokenizer.gpt2()`, `Tokenizer.from_merges`, `learn` or `read_tokenizer`.
    """

    def __init__(
        self, merges: npt.NDArray[np.int32], ids: npt.NDArray[np.int32], special_tokens: Mapping[str, int]
    ) -> None:
        """For `from_merges`, which checks what comes in here."""
        self._merges, self._ids = merges, ids
        self._special_tokens = MappingProxyType(dict(sorted(special_tokens.items(), key=lambda item: item[1])))
        # Where ids and places are the same, a look-up per token is spared.
        self._places_are_ids = bool((ids == np.arange(len(ids))).all())

    @classmethod
    def gpt2(cls) -> "Tokenizer":
        """GPT-2's own vocabulary: 50,257 tokens, of which the last is `<|endoftext|>`. Built once."""
        return _gpt2()

    @classmethod
    def from_merges(
        cls,
        merges: npt.ArrayLike,
        special_tokens: Mapping[str, int] | None = None,
        *,
        ids: npt.ArrayLike | None = None,
    ) -> "Tokenizer":
        """Builds a vocabulary from its merges.

        merges: (N, 2) whole numbers; merge m joins the tokens at two places below 256 + m, and its own is at 256 + m.
        special_tokens: control tokens and their ids; by default `<|endoftext|>` alone, behind the merges.
        ids: (256 + N,) the id of each place; by default the place itself.

        Raises BadTokenizer if a merge joins what does not exist yet, if two tokens have one id, if an id below the
        highest has no token, and if merging by pairs and by bytes would differ (see `agreement.py`).
        """
        return _build(merges, special_tokens, ids)

    @property
    def vocab_size(self) -> int:
        """Number of tokens, control tokens included: one more than the highest id."""
        return len(self._ids) + len(self._special_tokens)

    def __len__(self) -> int:
        return self.vocab_size

    @property
    def special_tokens(self) -> Mapping[str, int]:
        """Control tokens and their ids, in the order of ids."""
        return self._special_tokens

    @property
    def end_of_text(self) -> int | None:
        """Id of `<|endoftext|>`, which stands between documents; None in a vocabulary that has none."""
        return self._special_tokens.get(END_OF_TEXT)

    @property
    def merges(self) -> npt.NDArray[np.int32]:
        """(N, 2) int32, read-only: the merges in order, as pairs of places (see the top of this file)."""
        return self._merges

    @property
    def ids(self) -> npt.NDArray[np.int32]:
        """(256 + N,) int32, read-only: the id of each place."""
        return self._ids

    def encode(self, text: str, *, allowed_special: Collection[str] = ()) -> list[int]:
        """Text to ids. `decode_bytes` of these is the text's UTF-8, always.

        A control token's name in the text is ordinary text, unless `allowed_special` has that name.
        Raises BadPrompt for a lone surrogate (half a character, which UTF-8 cannot hold), BadOption for an allowed
        name that is no control token of this vocabulary.
        """
        _check_text(text)
        if not allowed_special:
            return self._encode(text)
        ids: list[int] = []
        # Splitting by a group gives text and names in turn.
        for index, part in enumerate(self._names(allowed_special).split(text)):
            if index % 2:
                ids.append(self._special_tokens[part])
            else:
                ids += self._encode(part)
        return ids

    def encode_batch(self, texts: Sequence[str], threads: int = 1) -> list[list[int]]:
        """`encode` of each text, on `threads` threads (the merging runs outside Python's lock)."""
        if threads < 1:
            raise BadOption(f"threads is {threads}, but it must be at least 1.")
        if isinstance(texts, str):
            raise BadPrompt("encode_batch takes a list of texts, and got one text; use encode, or put it in a list.")
        if threads == 1 or len(texts) < 2:
            return [self.encode(text) for text in texts]
        _ = self._encoding  # built before the threads start, so that they do not each build it
        with ThreadPoolExecutor(threads) as pool:
            return list(pool.map(self.encode, texts))

    def encode_array(self, text: str) -> npt.NDArray[np.int32]:
        """`encode` as a (tokens,) int32 array, without a Python number per token: for corpora."""
        _check_text(text)
        places = self._encode_places(text)
        return places.astype(np.int32) if self._places_are_ids else self._ids[places]

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes of these tokens, control tokens as their names. Raises BadPrompt for an id that has no token."""
        to_list = getattr(ids, "tolist", None)  # arrays and tensors have it, and give Python's own numbers
        try:
            return b"".join(map(self._token_bytes.__getitem__, ids if to_list is None else to_list()))
        except KeyError as error:
            raise BadPrompt(
                f"{error.args[0]!r} is no token id; this vocabulary has the ids 0 to {self.vocab_size - 1}."
            ) from None
        except TypeError:
            raise BadPrompt("ids must be a flat list of whole numbers; one id alone goes into a list.") from None

    def decode(self, ids: Iterable[int]) -> str:
        """The text of these tokens; what is no UTF-8 becomes U+FFFD, as `bytes.decode(errors="replace")` has it."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def token_bytes(self, id: int) -> bytes:
        """The bytes of one token: part of a character, a character, or many. Raises BadPrompt for an unknown id."""
        return self.decode_bytes((id,))

    def offsets(self, text: str) -> list[tuple[int, int]]:
        """For each token of `encode(text)`: the first character that it covers, and one past the last.

        A token that holds some bytes of a character covers that character, so neighbours may share one.
        """
        _check_text(text)
        lengths = self._lengths[self._encode_places(text)]
        data = np.frombuffer(text.encode(), dtype=np.uint8)
        # Which character each byte belongs to: every byte of a character but its first looks like 10xxxxxx.
        character = np.cumsum((data & 0xC0) != 0x80) - 1
        ends = np.cumsum(lengths)
        firsts, lasts = character[ends - lengths], character[ends - 1]
        return list(zip(firsts.tolist(), (lasts + 1).tolist(), strict=True))

    def fingerprint(self) -> str:
        """SHA-256 (hex) of merges, ids and control tokens: equal if and only if two vocabularies tokenise equally."""
        return self._fingerprint

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Tokenizer) and self._fingerprint == other._fingerprint

    def __hash__(self) -> int:
        return hash(self._fingerprint)

    def __repr__(self) -> str:
        return f"<Tokenizer: {self.vocab_size} tokens, {self._fingerprint[:12]}>"

    def __reduce__(self) -> tuple[type["Tokenizer"], tuple[object, ...]]:
        # What it is made of, not what it has built: tiktoken's part does not travel to other processes.
        return Tokenizer, (self._merges, self._ids, dict(self._special_tokens))

    @cached_property
    def _fingerprint(self) -> str:
        digest = hashlib.sha256(f"byte-level BPE, {len(self._merges)} merges\n".encode())
        digest.update(self._merges.astype("<i4").tobytes())
        digest.update(self._ids.astype("<i4").tobytes())
        for name, index in self._special_tokens.items():
            digest.update(f"{index} {len(name.encode())} {name}\n".encode())
        return digest.hexdigest()

    @cached_property
    def _place_bytes(self) -> list[bytes]:
        tokens = [bytes((byte,)) for byte in BYTES]
        for left, right in self._merges.tolist():
            tokens.append(tokens[left] + tokens[right])
        return tokens

    @cached_property
    def _token_bytes(self) -> dict[int, bytes]:
        names = {index: name.encode() for name, index in self._special_tokens.items()}
        return dict(zip(self._ids.tolist(), self._place_bytes, strict=True)) | names

    @cached_property
    def _lengths(self) -> npt.NDArray[np.int64]:
        return np.array([len(token) for token in self._place_bytes], dtype=np.int64)

    @cached_property
    def _id_list(self) -> list[int]:
        ids: list[int] = self._ids.tolist()
        return ids

    @cached_property
    def _encoding(self) -> "tiktoken.Encoding":
        import tiktoken

        places = {token: place for place, token in enumerate(self._place_bytes)}
        # Control tokens are found by `encode` and not by tiktoken (whose choice between `<a>` and `<a>b` is not fixed).
        # It gets one all the same, never allowed, because with none it looks for one at every position of the text.
        return tiktoken.Encoding(
            self._fingerprint, pat_str=_WORDS, mergeable_ranks=places, special_tokens={END_OF_TEXT: len(places)}
        )

    def _encode(self, text: str) -> list[int]:
        places: list[int] = []
        for piece in _pieces(text):
            places += self._encoding.encode_ordinary(piece)
        if self._places_are_ids:
            return places
        table = self._id_list
        return [table[place] for place in places]

    def _encode_places(self, text: str) -> npt.NDArray[np.uint32]:
        return np.concatenate([self._encoding.encode_to_numpy(p, disallowed_special=()) for p in _pieces(text)])

    def _names(self, names: Collection[str]) -> re.Pattern[str]:
        if isinstance(names, str):
            raise BadOption(f"allowed_special is the text {names!r}; give a list or a set of names.")
        unknown = sorted(set(names) - set(self._special_tokens))
        if unknown:
            known = ", ".join(self._special_tokens) or "none"
            raise BadOption(
                f"allowed_special names {unknown[0]!r}, which is no control token of this vocabulary (it has {known})."
            )
        # The longest first, so that a name that begins with another is found.
        return re.compile("(" + "|".join(re.escape(name) for name in sorted(names, key=len, reverse=True)) + ")")


def _check_text(text: str) -> None:
    if not isinstance(text, str):
        raise BadPrompt(f"text must be a string, and this is a {type(text).__name__}.")
    if text.isascii():
        return
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise BadPrompt(
            f"character {error.start} of the text is the lone surrogate U+{ord(text[error.start]):04X}, "
            "half a character that no UTF-8 text holds; remove it, or read the text with errors='replace'."
        ) from None


def _pieces(text: str) -> list[str]:
    """The text, cut where that changes no word, so that no piece has a long run of spaces before something else."""
    if len(text) <= _STRIDE:
        return [text]
    cuts = [0]
    for position in range(0, len(text), _STRIDE):
        run = _SPACES.match(text, position) if position >= cuts[-1] else None
        if run and run.end() < len(text):
            cuts.append(run.end() - 1)
    return [text[start:end] for start, end in zip(cuts, [*cuts[1:], len(text)], strict=True)]


def _build(merges: npt.ArrayLike, special_tokens: Mapping[str, int] | None, ids: npt.ArrayLike | None) -> Tokenizer:
    pairs = _whole_numbers(merges, "merges")
    pairs = pairs.reshape(-1, 2) if not pairs.size else pairs
    if pairs.ndim != 2 or pairs.shape[1] != 2:
        raise BadTokenizer(f"merges have shape {pairs.shape}, but they must be pairs, of shape (N, 2).")
    n_places = 256 + len(pairs)
    wrong = np.flatnonzero((pairs < 0).any(1) | (pairs.max(1, initial=0) >= 256 + np.arange(len(pairs))))
    if len(wrong):
        m = int(wrong[0])
        raise BadTokenizer(
            f"merge {m} joins {tuple(pairs[m].tolist())}, but only the tokens 0 to {255 + m} exist before it."
        )
    numbers = np.arange(n_places, dtype=np.int32) if ids is None else _whole_numbers(ids, "ids")
    if numbers.shape != (n_places,):
        raise BadTokenizer(f"ids have shape {numbers.shape}, but {n_places} bytes and merges need one id each.")
    special = {END_OF_TEXT: n_places} if special_tokens is None else dict(special_tokens)
    _check_ids([*numbers.tolist(), *special.values()])
    pairs.flags.writeable = numbers.flags.writeable = False
    tokenizer = Tokenizer(pairs, numbers, special)
    _check_agreement(tokenizer)
    _check_names(tokenizer)
    return tokenizer


def _whole_numbers(values: npt.ArrayLike, what: str) -> npt.NDArray[np.int32]:
    """An int32 copy; raises BadTokenizer for whatever would be rounded, cut or guessed on the way."""
    try:
        array = np.array(values)
    except (ValueError, TypeError, OverflowError):
        raise BadTokenizer(f"{what} must be whole numbers, in rows of equal length.") from None
    limits = np.iinfo(np.int32)
    if array.size and (array.dtype.kind not in "iu" or array.min() < limits.min or array.max() > limits.max):
        raise BadTokenizer(f"{what} must be whole numbers below {limits.max}.")
    return array.astype(np.int32)


def _check_ids(ids: list[int]) -> None:
    """Every id from 0 to the highest, each once."""
    for index in ids:
        if not isinstance(index, int) or isinstance(index, bool) or index < 0:
            raise BadTokenizer(f"{index!r} cannot be an id; ids are whole numbers from 0 upwards.")
    ordered = sorted(ids)
    for index, following in pairwise(ordered):
        if index == following:
            raise BadTokenizer(f"two tokens have the id {index}.")
    for expected, index in enumerate(ordered):
        if index != expected:
            raise BadTokenizer(f"no token has the id {expected}, but there are ids up to {ordered[-1]}.")


def _check_agreement(tokenizer: Tokenizer) -> None:
    # GPT-2's own merges passed when the table was made (scripts/make_vocabulary.py), and a test repeats that.
    merges = tokenizer.merges
    if np.array_equal(merges, gpt2_merges()):
        return
    wrong = first_disagreement((left, right) for left, right in merges.tolist())
    if wrong is not None:
        left, right = (tokenizer._place_bytes[place] for place in merges[wrong].tolist())
        raise BadTokenizer(
            f"merge {wrong} joins {left!r} and {right!r}, but the merges before it never leave these two side by side, "
            "so programs disagree on what this vocabulary means; it must be learnt again."
        )


def _check_names(tokenizer: Tokenizer) -> None:
    ordinary = set(tokenizer._place_bytes)
    for name in tokenizer.special_tokens:
        try:
            spelling = name.encode()
        except (AttributeError, UnicodeEncodeError):
            raise BadTokenizer(f"the control token {name!r} is no text that UTF-8 can hold.") from None
        if not spelling or spelling in ordinary:
            raise BadTokenizer(f"the control token {name!r} is empty, or an ordinary token of this vocabulary too.")


@cache
def _gpt2() -> Tokenizer:
    return _build(gpt2_merges(), None, None)
