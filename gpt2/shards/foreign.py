"""Other programs' files of GPT-2's tokens, read as they lie: nanoGPT's `train.bin` and llm.c's `.bin` shards.

nanoGPT writes the tokens alone, uint16, with the end-of-text id behind each document (or none, for a single text).
llm.c writes 256 int32 in front (magic number, version, number of tokens) and the end-of-text id before each document.
Neither has checksums, so ids outside the vocabulary are what is looked for. A `meta.pkl` is a pickle and never opened.
"""

import hashlib
import re
import struct
from pathlib import Path

from gpt2.errors import BadData
from gpt2.shards.format import BLOCK_TOKENS, TokenFile, file_state
from gpt2.tokenizer import Tokenizer

_HEADER = 256 * 4
_LLMC, _LLMC_VERSION, _LLMC_LLAMA = 20240520, 1, 20240801
# What llm.c's files begin with: tokens, evaluations, checkpoints, vocabularies. The lower half of each is above 50,256
# and so, read as a first token, no id of GPT-2's: no file of nanoGPT's begins like that.
_LLMC_MAGIC = frozenset({20240326, 20240327, 20240328, _LLMC, 20240522, 20240527, _LLMC_LLAMA, 20240803})

_SPLITS = {"train": "train", "validation": "val"}


def foreign_files(folder: Path, split: str) -> list[Path]:
    """The `.bin` files of a split in a folder: `train.bin`, or `NAME_train_000001.bin` and so on; val for validation.

    Raises BadData for a `meta.pkl` beside them: the tokens are then of a vocabulary that only this pickle tells.
    """
    word = _SPLITS.get(split, split)
    name = re.compile(rf"(.+_)?{word}(_\d+)?\.bin")
    paths = sorted(path for path in folder.glob("*.bin") if name.fullmatch(path.name))
    for path in paths:
        _refuse_pickle(path)
    return paths


def is_validation(path: Path) -> bool:
    """Whether the file's name says that it is held out, as nanoGPT and llm.c write it."""
    return re.fullmatch(r"(.+_)?val(idation)?([_-]\d+)?", path.stem) is not None


def open_foreign(path: Path) -> TokenFile:
    """Opens a `.bin` file of tokens. Raises BadData, naming it, for a file that is missing, cut short or another's."""
    _refuse_pickle(path)
    try:
        state = file_state(path)
        with path.open("rb") as file:
            start = file.read(_HEADER)
            content = hashlib.sha256(f"{state[1]}".encode())
            # There are no checksums, so the fingerprint takes samples: the whole would take minutes.
            for place in range(64):
                file.seek(state[1] * place // 64 // 2 * 2)
                content.update(file.read(4096))
    except OSError as error:
        raise BadData(f"{path} cannot be read ({error.strerror}).") from None
    size = state[1]
    magic = struct.unpack("<i", start[:4])[0] if size >= 4 else 0
    offset = _HEADER if magic in _LLMC_MAGIC else 0
    if offset:
        _check_llmc(path, start, size)
    elif size % 2:
        raise BadData(f"{path} is cut short, or holds no tokens: it has {size:,} bytes, and a token is two.")
    if size == offset:
        raise BadData(f"{path} holds no tokens.")
    gpt2 = Tokenizer.gpt2()
    assert gpt2.end_of_text is not None
    return TokenFile(
        path=path,
        tokens=(size - offset) // 2,
        dtype="<u2",
        offset=offset,
        vocab_size=gpt2.vocab_size,
        end_of_text=gpt2.end_of_text,
        tokenizer=gpt2.fingerprint(),
        block_tokens=BLOCK_TOKENS,
        checksums=None,
        documents=None,
        documents_offset=0,
        documents_crc32=0,
        text_bytes=None,
        content=content.hexdigest(),
        state=state,
    )


def _check_llmc(path: Path, start: bytes, size: int) -> None:
    if size < _HEADER:
        raise BadData(f"{path} is cut short: it has {size:,} bytes, fewer than llm.c's header.")
    magic, version, tokens = struct.unpack("<3i", start[:12])
    if magic == _LLMC_LLAMA:
        raise BadData(f"{path} holds llm.c's tokens of Llama 3, which no GPT-2 can read; tokenise for gpt-2 instead.")
    if magic != _LLMC or version != _LLMC_VERSION:
        raise BadData(
            f"{path} is an llm.c file of another kind (magic number {magic}, version {version}); "
            f"token files have {_LLMC} and {_LLMC_VERSION}."
        )
    whole = _HEADER + 2 * tokens
    if size != whole:
        short = "cut short" if size < whole else "longer than its header says"
        raise BadData(f"{path} is {short}: it has {size:,} bytes and should have {whole:,}. Fetch it again.")


def _refuse_pickle(path: Path) -> None:
    if (path.parent / "meta.pkl").exists():
        raise BadData(
            f"{path} has a meta.pkl beside it: its tokens are no GPT-2's but of a vocabulary that only this pickle "
            "tells, and pickles are not opened. Train on the text itself instead."
        )
