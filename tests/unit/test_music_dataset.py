"""MIDI files to shards: the split, the copies in other keys, what is left out and why, the same again."""

import json

import numpy as np
import pytest

from gpt2.errors import BadData, BadOption
from gpt2.music.dataset import SAME, PrepareOptions, copied, prepare
from gpt2.music.events import END, to_events, to_notes, vocabulary
from gpt2.music.midi import write_midi
from gpt2.music.notes import Notes
from gpt2.shards import open_shards
from gpt2.tokenizer import read_tokenizer
from tests.music import midi_bytes, notes_of, off, on, pedal, random_piece, write_pieces


@pytest.fixture
def folder(tmp_path):
    return write_pieces(tmp_path / "midi", 12)


def documents(folder, split):
    shards = open_shards(folder, split)
    ids = shards.read(0, len(shards))
    assert ids[0] == END
    return [part.tolist() for part in np.split(ids, np.flatnonzero(ids == END))[1:]]


def test_pieces_are_documents_and_copies_are_in_other_keys(folder, tmp_path):
    made = prepare([folder], tmp_path / "out", PrepareOptions(transpose=2, validation=0.3))
    assert read_tokenizer(tmp_path / "out") == vocabulary()
    assert made.pieces["train"] + made.pieces["validation"] == made.files == 12
    assert made.documents == {"train": 5 * made.pieces["train"], "validation": made.pieces["validation"]}
    assert 0 < made.pieces["validation"] < 12
    pieces = [to_events(random_piece(seed).from_start()).tolist() for seed in range(12)]
    held = [document[1:] for document in documents(tmp_path / "out", "validation")]
    trained = [document[1:] for document in documents(tmp_path / "out", "train")]
    assert all(piece in pieces for piece in held)
    # The first copies are the pieces themselves.
    first = trained[: made.pieces["train"]]
    assert sorted(first + held) == sorted(pieces)
    for number, piece in enumerate(first):
        notes = to_notes(piece)
        for turn, key in enumerate((0, -1, 1, -2, 2)):
            copy = to_notes(trained[turn * len(first) + number])
            assert np.array_equal(np.sort(copy.pitches), np.sort(notes.pitches + key)) or len(copy) < len(notes)
            assert copy.seconds == pytest.approx(notes.seconds, rel=0.05 + 0.02)
            assert key or copy == notes
    report = json.loads((tmp_path / "out" / "music.json").read_text())
    assert report["events"] == made.events
    assert made.events["validation"] == sum(len(piece) + 1 for piece in held)
    assert made.seconds["validation"] == pytest.approx(sum(to_notes(piece).seconds for piece in held), abs=0.01)


def test_the_same_files_give_the_same_folder(folder, tmp_path):
    for name in ("one", "two"):
        prepare([folder], tmp_path / name)
    for file in (tmp_path / "one").iterdir():
        assert file.read_bytes() == (tmp_path / "two" / file.name).read_bytes(), file.name


def test_what_is_left_out_is_counted(folder, tmp_path):
    (folder / "torn.mid").write_bytes((folder / "00.mid").read_bytes()[:60])
    (folder / "words.mid").write_text("no music")
    (folder / "separate.mid").write_bytes(midi_bytes([on(0, 60), off(480, 60)], kind=2))
    (folder / "short.mid").write_bytes(midi_bytes([on(0, 60), off(480, 60)]))
    held = [pedal(0, 127), *(on(480 * n, 40 + n) for n in range(40)), *(off(480 * 40, 40 + n) for n in range(40))]
    (folder / "held.mid").write_bytes(midi_bytes(held))
    silent = [*(on(480 * n, 60 + n) for n in range(12)), *(off(480 * 12, 60 + n) for n in range(11))]
    (folder / "silent.mid").write_bytes(midi_bytes([*silent, off(480 * 140, 71)]))
    piece = random_piece(3)
    write_midi(piece, folder / "again.mid")
    write_midi(Notes(piece.onsets, piece.ends, piece.pitches + 5, piece.velocities), folder / "again in F.mid")
    made = prepare([folder], tmp_path / "out")
    assert made.files == 20
    reasons = {reason: [name.rpartition("/")[2] for name in names] for reason, names in made.skipped.items()}
    assert reasons[SAME] == ["again in F.mid", "again.mid"]
    assert reasons["fewer than 10 notes"] == ["short.mid"]
    assert reasons["more than 10 notes at once"] == ["held.mid"]
    assert reasons["more than a minute in which nothing happens"] == ["silent.mid"]
    assert sum(map(len, made.skipped.values())) == 8
    assert any("no MIDI file" in reason for reason in reasons)
    assert any("type 2" in reason for reason in reasons)
    assert any("damaged" in reason for reason in reasons)
    assert not any(str(folder) in reason for reason in made.skipped)


def test_nothing_to_use_is_an_error_and_leaves_nothing(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "words.mid").write_text("no music")
    with pytest.raises(BadData, match=r"None of 1 files can be used. .*words.mid: is no MIDI file"):
        prepare([tmp_path / "in"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_single_piece_is_cut_before_it_is_copied(tmp_path):
    piece = random_piece(5, notes=100)
    write_midi(piece, tmp_path / "one.mid")
    made = prepare(str(tmp_path / "one.mid"), tmp_path / "out", PrepareOptions(transpose=1, validation=0.2))
    assert made.documents == {"train": 3, "validation": 1}
    [held] = documents(tmp_path / "out", "validation")
    held = to_notes(held)
    last = piece.pitches[-len(held) :]
    assert 5 < len(held) < 50
    assert np.array_equal(held.pitches, last)
    trained = to_notes(documents(tmp_path / "out", "train")[0])
    assert np.array_equal(trained.pitches, piece.pitches[: -len(held)])


def test_of_few_pieces_one_is_held_out(folder, tmp_path):
    made = prepare([folder / "01.mid", folder / "02.mid"], tmp_path / "out", PrepareOptions(validation=0.999))
    assert made.pieces == {"train": 1, "validation": 1}


def test_a_folder_with_something_in_it_is_refused(folder, tmp_path):
    with pytest.raises(BadOption, match="is there already"):
        prepare([folder], folder)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"transpose": 13}, "transpose is 13"),
        ({"transpose": -1}, "transpose is -1"),
        ({"stretch": 0.6}, "stretch is 0.6"),
        ({"stretch": float("nan")}, "stretch is nan"),
        ({"validation": 1.0}, "validation is 1.0"),
        ({"least": 0}, "least is 0"),
        ({"least": 2.5}, "least is 2.5"),
        ({"transpose": 1.5}, "transpose is 1.5"),
        ({"most": 0.5}, "most is 0.5"),
    ],
)
def test_options_are_checked(values, said):
    with pytest.raises(BadOption, match=said):
        PrepareOptions(**values)


def test_a_copy_that_leaves_the_keyboard_is_not_made():
    assert copied(notes_of((0, 1, 126, 64)), 2, 0.0, 1) is None
    assert copied(notes_of((0, 1, 1, 64)), -2, 0.0, 1) is None
    assert copied(notes_of((0, 1, 60, 64)), 2, 0.0, 1) == notes_of((0, 1, 62, 64))
    # Faster, drawn by seed and key alone.
    long = notes_of((0, 100, 60, 64))
    lengths = {copied(long, key, 0.05, seed).seconds for key in (-2, -1, 1, 2) for seed in range(10)}
    assert len(lengths) > 30
    assert 95 <= min(lengths) < 97 < 103 < max(lengths) <= 105
