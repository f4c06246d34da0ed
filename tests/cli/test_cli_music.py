"""`gpt2 music`, from MIDI files to a trained model, new music, its sound and its picture."""

import os
import wave

import numpy as np
import pytest
from PIL import Image

from gpt2.checkpoint import write_directory
from gpt2.music import read_midi, write_midi
from gpt2.music.events import vocabulary
from tests.music import midi_bytes, notes_of, off, on, random_piece, tiny_music_model, write_pieces

SETTINGS = {
    "n-layer": 1,
    "n-head": 2,
    "n-embd": 32,
    "context": 64,
    "steps": 8,
    "warmup-steps": 1,
    "batch-size": 4,
    "micro-batch-size": 2,
    "eval-every": 4,
    "sample-every": 4,
    "save-every": 0,
    "threads": 1,
    "trackers": "none",
    "dtype": "float32",
}
TINY = [word for name, value in SETTINGS.items() for word in (f"--{name}", str(value))]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "tiny"
    made = tiny_music_model(window=256)
    write_directory(made.network, made.tokenizer, path)
    return path


@pytest.fixture
def midi(tmp_path):
    return write_pieces(tmp_path / "midi", 8)


def test_from_files_to_new_music(gpt2, midi, tmp_path):
    (midi / "torn.mid").write_bytes(b"MThd\0\0")
    answer = gpt2("music", "prepare", midi, "--out", tmp_path / "shards", "--validation", "0.3")
    assert answer.code == 0, answer.err
    assert "left out   1 file" in answer.out
    assert "torn.mid" in answer.out
    answer = gpt2("train", tmp_path / "shards", "--recipe", "music", "--out", tmp_path / "run", *TINY, "--no-compile")
    assert answer.code == 0, answer.err
    sample = (tmp_path / "run" / "samples" / "step-000008.txt").read_text()
    assert set(sample.split()) <= set(vocabulary().words)
    new = tmp_path / "new.mid"
    answer = gpt2(
        *("music", "generate", "--model", tmp_path / "run", "--primer", midi / "01.mid", "--primer-seconds", "1"),
        *("--seconds", "3", "--seed", "1", "--out", new, "--wav", "--png", "--json"),
    )
    assert answer.code == 0, answer.err
    [told] = answer.json
    notes = read_midi(new)
    assert told["notes"] == len(notes) > 3
    assert told["seconds"] == notes.seconds <= told["primer_seconds"] + 3
    assert [path.rpartition(".")[2] for path in told["files"]] == ["wav", "png"]
    with wave.open(str(new.with_suffix(".wav"))) as sound:
        samples = np.frombuffer(sound.readframes(sound.getnframes()), dtype="<i2")
        seconds = sound.getnframes() / sound.getframerate()
    assert np.abs(samples).max() > 1000
    assert notes.seconds <= seconds <= notes.seconds + 1
    assert Image.open(new.with_suffix(".png")).size[0] > 500
    # The same seed, the same piece; and what train and generate print of it are events.
    again = gpt2(
        *("music", "generate", "--model", tmp_path / "run", "--primer", midi / "01.mid", "--primer-seconds", "1"),
        *("--seconds", "3", "--seed", "1", "--out", tmp_path / "again.mid"),
    )
    assert again.code == 0, again.err
    assert "seed 1" in again.out
    assert (tmp_path / "again.mid").read_bytes() == new.read_bytes()


def test_several_pieces_from_nothing(gpt2, model, tmp_path):
    answer = gpt2("music", "generate", "--model", model, "--seconds", "1", "--n", "2", "--out", tmp_path / "a.mid")
    assert answer.code == 0, answer.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a-1.mid", "a-2.mid"]


def test_a_model_of_music_is_a_model(gpt2, model):
    answer = gpt2("next", "v20 C4 E4", "--model", model, "--json")
    assert answer.code == 0, answer.err
    words = set(vocabulary().words) | {"<|endoftext|>"}
    assert len(answer.json) > 0
    print(answer.json)
    answer = gpt2("generate", "v20 C4", "--model", model, "--max-tokens", "9", "--seed", "1")
    assert answer.code == 0, answer.err
    assert set(answer.out.split()) <= words
    assert answer.out.startswith("v20 C4 ")
    answer = gpt2("generate", "Once upon a time", "--model", model)
    assert answer.code == 2
    assert "'Once' is no word of this model's vocabulary" in answer.err


def test_files_are_rendered_beside_themselves_or_into_a_folder(gpt2, midi, tmp_path):
    answer = gpt2("music", "render", midi / "00.mid", midi / "01.mid", "--png")
    assert answer.code == 0, answer.err
    assert (midi / "00.png").is_file()
    answer = gpt2("music", "render", midi / "00.mid", "--wav", "--out", tmp_path / "sounds")
    assert answer.code == 0, answer.err
    assert [path.name for path in (tmp_path / "sounds").iterdir()] == ["00.wav"]


def test_a_broken_file_does_not_keep_others_from_being_rendered(gpt2, midi):
    (midi / "000.mid").write_text("no music")
    odd = midi.parent / os.fsdecode(b"bad\xff$x.mid")
    write_midi(random_piece(1), odd)
    answer = gpt2("music", "render", midi, odd, "--png")
    assert answer.code == 2
    assert "000.mid is no MIDI file" in answer.err
    assert len(list(midi.glob("*.png"))) == 8
    assert odd.with_suffix(".png").is_file()


def test_pieces_are_measured(gpt2, midi):
    answer = gpt2("music", "measure", midi, "--json")
    assert answer.code == 0, answer.err
    assert len(answer.json["pieces"]) == 8
    answer = gpt2("music", "measure", midi / "00.mid", midi)
    assert answer.code == 0, answer.err
    assert "notes a second" in answer.out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["generate", "--out", "a.mid", "--model", "{model}", "--primer", "{dir}/words.mid"], "no MIDI file"),
        (["generate", "--out", "a.mid", "--model", "{model}", "--primer", "{dir}/no.mid"], "cannot be read"),
        (["generate", "--out", "a.mid", "--model", "bookworm"], "no model of music"),
        (["generate", "--out", "a.mid", "--model", "{model}", "--primer-seconds", "3"], "is for --primer"),
        (["generate", "--out", "a.mid", "--model", "{model}", "--seconds", "-3"], "seconds is -3"),
        (["generate", "--out", "a.mid", "--model", "{model}", "--sound-font", "x.sf2"], "is for --wav"),
        (["generate", "--out", "a.txt", "--model", "{model}"], "a.txt is no name of a MIDI file"),
        (["render", "{dir}/words.mid", "--png"], "no MIDI file"),
        (["render", "{dir}/one.mid"], "Nothing to render"),
        (["render", "{dir}/one.mid", "--wav", "--sound-font", "{dir}/words.mid"], "words.mid"),
        (
            ["prepare", "{dir}/words.mid", "--out", "{dir}/out"],
            "None of 1 files can be used. {dir}/words.mid: is",
        ),
        (["prepare", "{dir}/no", "--out", "{dir}/out"], "does not exist"),
        (["prepare", "{dir}", "--out", "{dir}", "--least", "1"], "is there already"),
        (["measure", "{dir}/words.mid"], "no MIDI file"),
        (["generate", "--out", "{dir}/one.mid", "--model", "{model}", "--primer", "{dir}/one.mid"], "is the primer"),
        (["generate", "--out", "a.mid", "--model", "{model}", "--primer", "{dir}"], "is a folder; give one file"),
        (["prepare", "{dir}/one.mid", "--out", "/proc/x"], "/proc cannot be written"),
    ],
)
def test_mistakes_are_one_sentence(gpt2, model, tmp_path, arguments, said, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "words.mid").write_text("no music at all")
    write_midi(notes_of((0, 1, 60, 64)), folder / "one.mid")
    answer = gpt2("music", *(word.format(dir=folder, model=model) for word in arguments))
    assert answer.code == 2, answer.out
    assert said.format(dir=folder) in answer.err
    assert len(answer.err.strip().splitlines()) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]


def test_an_hour_and_forty_thousand_events_at_once(gpt2, tmp_path):
    long = tmp_path / "hour.mid"
    notes = [(on if half == 0 else off)(960 * (2 * n + half), 60 + n % 12) for n in range(1801) for half in (0, 1)]
    long.write_bytes(midi_bytes(notes))
    crowd = tmp_path / "crowd.mid"
    crowd.write_bytes(
        midi_bytes([*(on(0, n % 128) for n in range(20_000)), *(off(480, n % 128) for n in range(20_000))])
    )
    answer = gpt2("music", "prepare", long, crowd, "--out", tmp_path / "out", "--least", "1", "--most", "200", "--json")
    assert answer.code == 0, answer.err
    assert sum(answer.json["pieces"].values()) == 2
    answer = gpt2("music", "render", long, crowd, "--png")
    assert answer.code == 0, answer.err
