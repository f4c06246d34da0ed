"""Sound: what is heard is what the notes say."""

import sys
import wave
from itertools import pairwise

import numpy as np
import pytest

from gpt2.errors import BadData, Unavailable
from gpt2.music import sound as module
from gpt2.music.notes import canonical
from gpt2.music.sound import RATE, TAIL, find_sound_font, synthesise, write_wav
from tests.music import notes_of


@pytest.fixture(scope="module")
def font():
    pytest.importorskip("midirenderer", reason="left out: the extra `music` is not installed")
    pytest.importorskip("mido", reason="left out: the extra `music` is not installed")
    # The small one where it is: others take a second to read.
    small = [path for path in module._candidates() if path.name == "TimGM6mb.sf2" and path.is_file()]
    try:
        return small[0] if small else find_sound_font()
    except Unavailable as error:
        pytest.skip(f"left out: {error}")


def loudness(samples, start, end):
    return float(np.sqrt(np.mean(samples[round(start * RATE) : round(end * RATE)] ** 2)))


@pytest.mark.parametrize(("pitch", "hertz"), [(69, 440.0), (57, 220.0), (81, 880.0)])
def test_the_pitch_is_right(font, pitch, hertz):
    samples = synthesise(canonical([0], [2], [pitch], [100]), sound_font=font)
    left = samples[RATE // 4 : RATE // 4 + 2**16, 0] * np.hanning(2**16)
    strength = np.abs(np.fft.rfft(left))
    found = np.fft.rfftfreq(2**16, 1 / RATE)
    # An overtone may be the strongest: the tone is the lowest of the strong ones.
    tone = found[strength > 0.25 * strength.max()][0]
    assert tone == pytest.approx(hertz, rel=0.01)


@pytest.mark.parametrize("seconds", [0.01, 0.37, 1.0, 2.83])
def test_it_lasts_as_long_as_the_notes_and_a_tail(font, seconds):
    notes = canonical([0], [seconds], [60], [90])
    samples = synthesise(notes, sound_font=font)
    assert samples.shape == (round((notes.seconds + TAIL) * RATE), 2)
    assert samples.dtype == np.float32
    assert np.abs(samples).max() > 0.005
    assert np.abs(samples[-1]).max() < 1e-6


def test_the_tail_sounds_and_fades_out(font):
    samples = synthesise(canonical([0], [1], [48], [110]), sound_font=font)
    parts = [loudness(samples, 1 + start, 1.1 + start) for start in (0, 0.1, 0.2, 0.3, 0.4)]
    assert parts[0] > 1e-3
    assert all(later < 0.9 * before for before, later in pairwise(parts))


def test_silence_before_and_between_notes_is_silent(font):
    samples = synthesise(canonical([1, 4], [1.5, 4.5], [60, 64], [90, 90]), sound_font=font)
    assert not samples[: round(0.98 * RATE)].any()
    assert loudness(samples, 1.0, 1.5) > 50 * loudness(samples, 3.5, 3.95)
    assert loudness(samples, 4.0, 4.5) > 50 * loudness(samples, 3.5, 3.95)


def test_louder_velocities_are_louder_and_the_softest_is_heard(font):
    levels = [
        loudness(synthesise(canonical([0], [1], [60], [v]), sound_font=font), 0, 1) for v in (1, 40, 70, 100, 127)
    ]
    assert levels[0] > 0
    assert all(louder > 1.3 * softer for softer, louder in pairwise(levels))


def test_a_pitch_that_is_struck_again_is_heard_again(font):
    samples = synthesise(canonical([0, 1], [1, 2], [60, 60], [100, 100]), sound_font=font)
    assert loudness(samples, 1.0, 1.2) > 1.5 * loudness(samples, 0.8, 0.99)


def test_all_keys_at_once_do_not_clip(font):
    samples = synthesise(
        canonical(np.zeros(88), np.full(88, 2.0), np.arange(21, 109), np.full(88, 127)), sound_font=font
    )
    assert np.abs(samples).max() <= 1
    # Cut-off peaks would be flat: many samples at the very top.
    assert (np.abs(samples) > 0.9999).sum() < 10


def test_two_files_of_the_same_notes_are_equal_bit_for_bit(font, tmp_path):
    notes = canonical([0, 0.2, 0.4], [0.5, 0.6, 1.0], [60, 64, 67], [80, 90, 100])
    for name in ("one.wav", "two.wav"):
        write_wav(synthesise(notes, sound_font=font), tmp_path / name)
    assert (tmp_path / "one.wav").read_bytes() == (tmp_path / "two.wav").read_bytes()


def test_a_file_holds_the_samples(tmp_path):
    samples = np.array([[0, 1], [-1, 0.5], [2, -2]], dtype=np.float32)
    write_wav(samples, tmp_path / "new" / "a.wav", rate=8000)
    with wave.open(str(tmp_path / "new" / "a.wav")) as file:
        assert file.getparams()[:4] == (2, 2, 8000, 3)
        read = np.frombuffer(file.readframes(3), dtype="<i2").reshape(-1, 2)
    # What is beyond the range stays at its end: it does not come out at the other.
    assert read.tolist() == [[0, 32767], [-32767, 16384], [32767, -32767]]


def test_no_notes_make_no_sound():
    with pytest.raises(BadData, match="no notes"):
        synthesise(notes_of())


def test_music_that_would_fill_the_memory_is_refused():
    with pytest.raises(BadData, match=r"2\.5 hours"):
        synthesise(canonical([0, 9000], [1, 9001], [60, 60], [90, 90]))


def test_long_music_is_written_whole(tmp_path):
    samples = np.linspace(-1, 1, 2 * 25_003, dtype=np.float32).reshape(-1, 2)
    write_wav(samples, tmp_path / "a.wav", rate=1000)
    with wave.open(str(tmp_path / "a.wav")) as file:
        assert file.getnframes() == 25_003
        read = np.frombuffer(file.readframes(25_003), dtype="<i2").reshape(-1, 2)
    assert np.abs(read / 32767 - samples).max() < 1 / 32767


def test_files_that_are_no_fonts_are_named(font, tmp_path):
    notes = canonical([0], [0.1], [60], [90])
    (tmp_path / "bad.sf2").write_bytes(b"RIFF" + bytes(100))
    for name in ("bad.sf2", "missing.sf2"):
        with pytest.raises(BadData, match=name):
            synthesise(notes, sound_font=tmp_path / name)


def test_without_the_extra_it_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "midirenderer", None)
    with pytest.raises(Unavailable, match="install the extra `music`"):
        synthesise(canonical([0], [0.1], [60], [90]))


def test_fonts_are_looked_for_in_order(monkeypatch, tmp_path):
    system, package = tmp_path / "system", tmp_path / "package" / "pretty_midi"
    system.mkdir()
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('it is only looked at')")
    monkeypatch.setattr(module, "_FOLDERS", (str(tmp_path / "no such folder"), str(system)))
    monkeypatch.syspath_prepend(str(package.parent))
    monkeypatch.delitem(sys.modules, "pretty_midi", raising=False)

    (system / "Drums.sf2").touch()
    assert find_sound_font() == system / "Drums.sf2"
    (package / "TimGM6mb.sf2").touch()
    assert find_sound_font() == package / "TimGM6mb.sf2"
    (system / "FluidR3_GM.sf2").touch()
    assert find_sound_font() == system / "FluidR3_GM.sf2"
    (system / "default-GM.sf2").touch()
    assert find_sound_font() == system / "default-GM.sf2"


def test_no_font_at_all_says_how_to_get_one(monkeypatch):
    monkeypatch.setattr(module, "_FOLDERS", ())
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(Unavailable, match="the extra `music` brings one"):
        find_sound_font()
