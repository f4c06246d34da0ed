"""MIDI files to token shards: pieces as documents of events, some held out, and copies in other keys and tempos.

The folder that is written has `train-*.safetensors` and `validation-*.safetensors`, their vocabulary, and `music.json`,
which says what came in, what was left out and why, and what went out. `gpt2 train` reads it as it reads text.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from gpt2.errors import BadData, BadOption
from gpt2.files import new_directory
from gpt2.generation.options import whole_number
from gpt2.music.events import to_events, vocabulary
from gpt2.music.figures import measure
from gpt2.music.midi import find_midi, read_midi
from gpt2.music.notes import PITCHES, TICKS_A_SECOND, Notes, canonical
from gpt2.shards import ShardWriter
from gpt2.shards.heldout import digest, held_out
from gpt2.tokenizer import write_tokenizer

FORMAT = "gpt2-music 1"
REPORT = "music.json"
_LONGEST_PAUSE = 60 * TICKS_A_SECOND  # ticks in which nothing begins and nothing ends
SAME = "the same notes as another file, in this key or another"


@dataclass(frozen=True, slots=True)
class PrepareOptions:
    """How files become shards.

    transpose: copies of each piece to train on, this many semitones up and down; 0: none. stretch: how much faster or
    slower they may be, 0.05 for 5 %; the copy in the piece's own key keeps its tempo, too. validation: share of pieces
    held out, by the hash of their notes (of a single piece its end); they are not copied. least: pieces with fewer
    notes are left out. most: and those with more notes sounding at once on average: files whose pedal is never let go
    of, mostly. Left out are also those in which nothing happens for more than a minute.

    Raises BadOption, naming the field and its range.
    """

    transpose: int = 3
    stretch: float = 0.05
    validation: float = 0.05
    least: int = 10
    most: float = 10.0

    def __post_init__(self) -> None:
        whole_number("transpose", self.transpose, 0, 12)
        whole_number("least", self.least, 1)
        if not 0 <= self.stretch <= 0.5:
            raise BadOption(f"stretch is {self.stretch}, but it must lie between 0 and 0.5.")
        if not 0 <= self.validation < 1:
            raise BadOption(f"validation is {self.validation}, but it must be at least 0 and below 1.")
        if not self.most >= 1:
            raise BadOption(f"most is {self.most}, but it must be at least 1 note at once.")


@dataclass(frozen=True, slots=True)
class Prepared:
    """What came of it. skipped: reasons, and the files left out for each; the rest are numbers of each split."""

    folder: Path
    files: int
    skipped: dict[str, list[str]]
    pieces: dict[str, int]
    documents: dict[str, int]
    events: dict[str, int]
    seconds: dict[str, float]


def prepare(
    paths: Path | str | Sequence[Path | str],
    out: Path | str,
    options: PrepareOptions | None = None,
    progress: Callable[[str, int, int | None], None] = lambda *_: None,
) -> Prepared:
    """Makes a folder of shards from MIDI files and folders of them; the same files give the same folder.

    A file that is damaged, empty, too short or there twice is left out and counted. Raises BadOption if something is
    at `out` already, BadData if nothing can be used.
    """
    options, out = options or PrepareOptions(), Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise BadOption(f"{out} is there already; choose another --out.")
    files = find_midi([paths] if isinstance(paths, Path | str) else paths)
    pieces, skipped = _read(files, options, progress)
    if not pieces:
        reason, names = max(skipped.items(), key=lambda item: len(item[1]))
        raise BadData(f"None of {len(files):,} files can be used. {names[0]}: {reason}.")
    if len(pieces) == 1 and options.validation:
        # A single piece is cut in two, as a single text is, before it is copied.
        pieces = _halves(pieces[0], options.validation)
        held = np.array([False, True])
    else:
        hashes = np.array([piece.hash for piece in pieces], dtype=np.uint64)
        held = held_out(hashes, options.validation, leave_some=options.validation > 0)
    with new_directory(out.absolute()) as folder:
        write_tokenizer(vocabulary(), folder)
        counts: dict[str, Any] = {"pieces": {}, "documents": {}, "events": {}, "seconds": {}}
        for split, chosen in (("train", ~held), ("validation", held)):
            kept = [piece for piece, is_in in zip(pieces, chosen, strict=True) if is_in]
            copies = options if split == "train" else replace(options, transpose=0)
            written = _write(folder, split, kept, copies, progress)
            for name, value in zip(counts, written, strict=True):
                counts[name][split] = value
        made = Prepared(out, len(files), skipped, **counts)
        report = {"format": FORMAT, "options": asdict(options), **asdict(made)}
        del report["folder"]
        (folder / REPORT).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return made


@dataclass(frozen=True, slots=True)
class _Piece:
    notes: Notes
    hash: int  # the first number of the digest of its notes, which transposition does not change


def _halves(piece: _Piece, share: float) -> list[_Piece]:
    """The beginning of a piece, and the end, which lasts that share of it."""
    end = int(piece.notes.ends.max())
    cut = min(max(1, round(end * (1 - share))), int(piece.notes.onsets[-1]))
    return [_Piece(piece.notes.between(0, cut), piece.hash), _Piece(piece.notes.between(cut, end), piece.hash)]


def _read(
    files: Sequence[Path], options: PrepareOptions, progress: Callable[[str, int, int | None], None]
) -> tuple[list[_Piece], dict[str, list[str]]]:
    pieces, skipped = [], dict[str, list[str]]()
    known: set[tuple[int, int]] = set()
    for number, file in enumerate(files):
        progress("reading", number, len(files))
        try:
            notes = read_midi(file).from_start()
        except BadData as error:
            # The message names the file, which stands beside it in the report.
            reason = str(error).removeprefix(str(file)).strip().rstrip(".")
            skipped.setdefault(reason, []).append(str(file))
            continue
        key = digest(to_events(replace(notes, pitches=notes.pitches - notes.pitches.min())).tobytes())
        if len(notes) < options.least:
            skipped.setdefault(f"fewer than {options.least} notes", []).append(str(file))
        elif _longest_pause(notes) > _LONGEST_PAUSE:
            skipped.setdefault("more than a minute in which nothing happens", []).append(str(file))
        elif measure(notes).polyphony > options.most:
            skipped.setdefault(f"more than {options.most:g} notes at once", []).append(str(file))
        elif key in known:
            skipped.setdefault(SAME, []).append(str(file))
        else:
            known.add(key)
            pieces.append(_Piece(notes, key[0]))
    return pieces, skipped


def _longest_pause(notes: Notes) -> int:
    return int(np.diff(np.unique(np.concatenate([notes.onsets, notes.ends]))).max(initial=0))


def _write(
    folder: Path,
    split: str,
    pieces: Sequence[_Piece],
    options: PrepareOptions,
    progress: Callable[[str, int, int | None], None],
) -> tuple[int, int, int, float]:
    """Writes the shards of a split; returns pieces, documents, events and seconds of music in them."""
    seconds = 0.0
    # Key by key: a piece's copies stand far apart.
    keys = sorted(range(-options.transpose, options.transpose + 1), key=abs)
    with ShardWriter(folder, split, vocabulary()) as writer:
        for turn, key in enumerate(keys):
            for number, piece in enumerate(pieces):
                progress(f"writing {split}", turn * len(pieces) + number, len(keys) * len(pieces))
                copy = copied(piece.notes, key, options.stretch, seed=piece.hash)
                if copy is not None:
                    writer.add(to_events(copy))
                    seconds += copy.seconds
        writer.close()
    return len(pieces), writer.documents, writer.tokens, round(seconds, 2)


def copied(notes: Notes, key: int, stretch: float, seed: int) -> Notes | None:
    """A piece so many semitones higher, a little faster or slower; None where it would leave MIDI's pitches.

    How much faster is drawn by `seed` and `key`, evenly up to `stretch` either way; key 0 is the piece itself.
    """
    if not key:
        return notes
    pitches = notes.pitches + key
    if pitches.min() < 0 or pitches.max() >= PITCHES:
        return None
    factor = 1 + stretch * np.random.default_rng([seed, key % PITCHES]).uniform(-1, 1)
    # Stretched in absolute time and then put into canonical form, as when a file is read.
    scale = factor / TICKS_A_SECOND
    return canonical(scale * notes.onsets, scale * notes.ends, pitches, notes.midi_velocities)
