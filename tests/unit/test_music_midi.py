"""MIDI files as an independent reader has them, back as they were, and refusals of what is none."""

from collections import defaultdict

import mido
import numpy as np
import pytest
from hypothesis import given, settings

from gpt2.errors import BadData
from gpt2.music.midi import find_midi, parse_midi, read_midi, write_midi
from gpt2.music.notes import canonical
from tests.music import midi_bytes, notes_of, off, on, pedal, raw_notes, tempo


def read_slowly(path):
    """The rules of `midi.py` said again, note by note; rows of start, end, pitch and velocity, in seconds."""
    file = mido.MidiFile(path)
    messages = []
    for number, track in enumerate(file.tracks):
        now = 0
        for message in track:
            now += message.time
            messages.append((now, number, message))
    messages.sort(key=lambda item: item[0])
    changes = [(0, 0.0, 500_000)]
    for time, _, message in messages:
        if message.type == "set_tempo":
            before, at, rate = changes[-1]
            changes.append((time, at + (time - before) * rate / 1e6 / file.ticks_per_beat, message.tempo))
    ticks = [change[0] for change in changes]

    def seconds(time):
        before, at, rate = changes[np.searchsorted(ticks, time, side="right") - 1]
        return at + (time - before) * rate / 1e6 / file.ticks_per_beat

    sounding, pedals, down, notes = defaultdict(list), defaultdict(list), {}, []
    for time, track, message in messages:
        if message.type == "note_on" and message.velocity:
            sounding[track, message.channel, message.note].append((time, message.velocity))
        elif message.type in ("note_on", "note_off") and sounding[track, message.channel, message.note]:
            begun, velocity = sounding[track, message.channel, message.note].pop(0)
            notes.append((begun, time, message.note, velocity, message.channel))
        elif message.type == "control_change" and message.control == 64:
            if message.value >= 64:
                down.setdefault(message.channel, time)
            elif message.channel in down:
                pedals[message.channel].append((down.pop(message.channel), time))
    for channel, time in down.items():
        pedals[channel].append((time, np.inf))
    held = []
    music = [note for note in notes if note[4] != 9]
    ends = [
        next((up for down, up in pedals[channel] if down <= ended < up and up < np.inf), ended)
        for _, ended, _, _, channel in music
    ]
    last = max(ends)
    for begun, ended, pitch, velocity, channel in music:
        for pressed, let_go in pedals[channel]:
            if pressed <= ended < let_go:
                ended = let_go if let_go < np.inf else last
                break
        held.append((seconds(begun), seconds(ended), pitch, velocity))
    return np.array(held)


def by_symusic(path):
    """A file without pedals by another library; rows as of `read_slowly`. None where a pedal is used."""
    # Asked of mido: symusic leaves out a track that holds a pedal and no notes.
    if any(message.is_cc(64) for track in mido.MidiFile(path).tracks for message in track):
        return None
    score = pytest.importorskip("symusic").Score(path)
    changes = sorted(((tempo.time, tempo.mspq) for tempo in score.tempos), key=lambda change: change[0])
    ticks = np.array([0, *(time for time, _ in changes)])
    rates = np.array([500_000, *(rate for _, rate in changes)]) / 1e6 / score.tpq
    begun = np.concatenate([[0], np.cumsum(np.diff(ticks) * rates[:-1])])

    def seconds(times):
        place = np.searchsorted(ticks, times, side="right") - 1
        return begun[place] + (times - ticks[place]) * rates[place]

    notes = [track.notes.numpy() for track in score.tracks if not track.is_drum and len(track.notes)]
    start, length, pitch, velocity = (
        np.concatenate([part[name] for part in notes]).astype(np.int64)
        for name in ("time", "duration", "pitch", "velocity")
    )
    return np.stack([seconds(start), seconds(start + length), pitch, velocity], axis=1)


def canonical_rows(rows):
    return canonical(rows[:, 0], rows[:, 1], rows[:, 2].astype(int), rows[:, 3].astype(int))


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("folder", "every"),
    [
        *(("pop909", 130), ("giantmidi", 15), ("nottingham", 20)),
        *(pytest.param(folder, 1, marks=pytest.mark.slow) for folder in ("pop909", "giantmidi", "nottingham")),
    ],
)
def test_real_files_are_as_other_readers_have_them(shared, folder, every):
    files = sorted((shared / "data" / "midi" / folder).glob("*.mid"))[::every]
    assert len(files) > 5
    without_pedal = 0
    for file in files:
        notes, rows = read_midi(file), read_slowly(file)
        assert notes == canonical_rows(rows), file
        other = by_symusic(file)
        if other is not None:
            without_pedal += 1
            assert notes == canonical_rows(other), file
        # And against the file itself: each onset within half a tick, each velocity within its step.
        at, loudest = {}, defaultdict(int)
        for start, _, pitch, velocity in rows:
            key = int(np.floor(start * 100 + 0.5 + 1e-7)), int(pitch)
            at[key] = start
            loudest[key] = max(loudest[key], int(velocity))
        for onset, pitch, velocity in zip(notes.onsets, notes.pitches, notes.midi_velocities, strict=True):
            assert abs(onset / 100 - at[onset, pitch]) <= 0.005 + 2e-9
            assert abs(velocity - loudest[onset, pitch]) <= 4
    assert without_pedal or folder != "nottingham"


@settings(deadline=None)
@given(raw_notes)
def test_what_is_written_is_read_again(tmp_path_factory, raw):
    notes = notes_of(*raw)
    path = tmp_path_factory.mktemp("midi") / "piece.mid"
    write_midi(notes, path)
    if len(notes):
        assert read_midi(path) == notes
        rows = read_slowly(path)
        assert np.allclose(np.sort(rows[:, 0]), np.sort(notes.onsets / 100))
        assert np.array_equal(np.sort(rows[:, 3]), np.sort(notes.midi_velocities))


def listed(*tracks, **options):
    notes = parse_midi(midi_bytes(*tracks, **options), "it")
    return list(zip(notes.onsets.tolist(), notes.ends.tolist(), notes.pitches.tolist(), strict=True))


def test_a_pedal_holds_what_ends_while_it_is_down():
    # 480 ticks are half a second: 50 of ours.
    notes = [on(0, 60), off(240, 60), on(480, 62), off(960, 62)]
    track = sorted([*notes, pedal(100, 127), pedal(720, 0)], key=lambda item: item[0])
    assert listed(track) == [(0, 75, 60), (50, 100, 62)]
    # Down for ever: until the music ends.
    assert listed(sorted([*notes, pedal(100, 64)], key=lambda item: item[0])) == [(0, 100, 60), (50, 100, 62)]
    # Half down is up.
    assert listed(sorted([*notes, pedal(100, 63)], key=lambda item: item[0])) == [(0, 25, 60), (50, 100, 62)]
    # Struck again while it is held.
    again = [pedal(0, 127), on(0, 60), off(240, 60), on(480, 60), off(600, 60), pedal(960, 0)]
    assert listed(again) == [(0, 50, 60), (50, 100, 60)]
    # The last notes, too, ring until it is let go of, and pedals that never are, as long as the longest of them.
    assert listed([on(0, 60), pedal(10, 127), off(480, 60), pedal(1920, 0)]) == [(0, 200, 60)]
    never = [on(0, 62, channel=1), pedal(10, 127, channel=1), off(240, 62, channel=1)]
    assert listed([on(0, 60), pedal(10, 127), off(480, 60), pedal(1920, 0)], never) == [(0, 200, 60), (0, 200, 62)]
    # It lies in another track than the notes, which have two; another channel's notes it leaves alone.
    shared_by = [[pedal(100, 127), pedal(720, 0)], [on(0, 60), off(240, 60)], [on(0, 62), off(480, 62)]]
    assert listed(*shared_by, [on(0, 64, channel=1), off(240, 64, channel=1)]) == [
        (0, 75, 60),
        (0, 75, 62),
        (0, 25, 64),
    ]
    # Pressed in the very moment in which the note ends: it holds. Let go of in it: it does not.
    assert listed([on(0, 60), off(480, 60), pedal(480, 127), pedal(960, 0)]) == [(0, 100, 60)]
    assert listed([on(0, 60), pedal(0, 127), off(480, 60), pedal(480, 0)]) == [(0, 50, 60)]


def test_tracks_are_one_and_drums_are_left_out():
    melody, bass = [on(0, 72), off(480, 72)], [on(240, 36, channel=1), off(480, 36, channel=1)]
    drums = [on(0, 38, channel=9), off(480, 38, channel=9)]
    assert listed(melody, bass, drums) == [(0, 50, 72), (25, 50, 36)]
    assert listed([*melody], kind=0) == [(0, 50, 72)]


def test_ends_take_the_notes_of_their_track_and_channel_in_turn():
    assert listed([on(0, 60), on(0, 60, channel=1), off(240, 60), off(480, 60, channel=1)]) == [(0, 50, 60)]
    assert listed([on(0, 60), off(480, 60)], [off(240, 60), on(240, 62), off(480, 62)]) == [(0, 50, 60), (25, 50, 62)]
    # Of one pitch, what began first ends first.
    assert listed([on(0, 60), on(240, 60), off(480, 60), off(960, 60)]) == [(0, 25, 60), (25, 100, 60)]
    # Ends that nothing began are nothing; a note without an end is none, and does not keep the others.
    assert listed([off(0, 60), on(240, 60), on(240, 64), off(480, 60)]) == [(25, 50, 60)]
    # A velocity of 0 is an end.
    assert listed([on(0, 60), on(240, 60, velocity=0)]) == [(0, 25, 60)]


def test_tempo_changes_within_notes_are_followed():
    assert listed([tempo(0, 1_000_000), on(0, 60), tempo(480, 250_000), off(960, 60)]) == [(0, 125, 60)]
    # Of several at one tick the last counts, whichever is slower.
    for slow, quick in ((1_000_000, 250_000), (250_000, 1_000_000)):
        both = [tempo(0, slow), tempo(0, quick), on(0, 60), off(960, 60)]
        assert listed(both) == [(0, quick // 5_000, 60)]


def chunk(name, *parts):
    data = b"".join(parts)
    return name + len(data).to_bytes(4, "big") + data


def raw_midi(*track, before=b"", tracks=1, header=b""):
    """A file of type 1 whose one track is given in bytes, 480 ticks a quarter."""
    begin = chunk(b"MThd", b"\0\1", tracks.to_bytes(2, "big"), b"\1\xe0", header)
    return begin + before + chunk(b"MTrk", *track, b"\0\xff\x2f\0")


ON, OFF, WAIT = b"\x90\x3c\x50", b"\x80\x3c\x40", b"\x83\x60"  # 480 ticks: half a second


@pytest.mark.parametrize(
    "data",
    [
        raw_midi(WAIT, ON, WAIT, OFF),
        # Meta events of any kind take their time and nothing else: a name of a program, ten sharps, half a signature.
        raw_midi(WAIT, b"\xff\x08\x05piano", b"\0", ON, WAIT, OFF),
        raw_midi(b"\0\xff\x59\2\x0a\2", WAIT, ON, WAIT, OFF),
        raw_midi(b"\0\xff\x58\2\4\2", WAIT, ON, WAIT, OFF),
        raw_midi(b"\0\xff\x54\5\x7f\x7f\x7f\x7f\x7f", WAIT, ON, WAIT, OFF),
        # System exclusive, pressure and programs between; running status; an end spelt as a beginning.
        raw_midi(b"\0\xf0\3\1\2\xf7", b"\0\xc0\5", b"\0\xd0\x10", WAIT, ON, WAIT, ON[1:2], b"\0"),
        # What is no track, before one; a longer header; what stands behind the end of a track.
        raw_midi(WAIT, ON, WAIT, OFF, before=chunk(b"XFIH", b"something")),
        raw_midi(WAIT, ON, WAIT, OFF, header=b"\0\0"),
        raw_midi(WAIT, ON, WAIT, OFF, b"\0\xff\x2f\0", b"garbage"),
    ],
)
def test_odd_files_that_hold_the_same_music(data):
    notes = parse_midi(data, "it")
    assert (notes.onsets.tolist(), notes.ends.tolist(), notes.pitches.tolist()) == ([50], [100], [60])


@pytest.mark.parametrize(
    "data",
    [
        raw_midi(b"\xff" * 400_000, ON),  # a wait of very many bytes
        raw_midi(b"\x81\x80\x80\x80\0", ON, WAIT, OFF),
        raw_midi(b"\0\x90\xc8\x50", WAIT, OFF),  # a pitch of 200
        raw_midi(b"\0\x3c\x50"),  # running status before any
        raw_midi(b"\0\xf8", WAIT, OFF),
        raw_midi(b"\0\xff\1\x60short"),
        raw_midi(WAIT, ON, WAIT, OFF, tracks=2),
        raw_midi(WAIT, ON, WAIT, OFF)[:-1],
        raw_midi(WAIT, ON, WAIT, OFF)[:22] + b"\0\xff" * 2,
    ],
)
def test_what_contradicts_itself_is_damaged(data):
    with pytest.raises(BadData, match="it is cut off or damaged"):
        parse_midi(data, "it")


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "no MIDI file"),
        (b"RIFF and other music", "no MIDI file"),
        (b"MThd\0\0", "cut off or damaged"),
        (midi_bytes([on(0, 60), off(480, 60)])[:8] + b"\0\5\0\1\1\xe0", "cut off or damaged"),
        (midi_bytes([on(0, 60), off(480, 60)])[:12] + b"\0\0MTrk", "or in nothing"),
        (midi_bytes([tempo(0, 2**24 - 1), on(2**28 - 1, 60), off(2**28 - 1, 60)], division=1), "more than a day"),
        (midi_bytes([on(n * (2**28 - 1), 60 + n) for n in range(9)]), "holds no notes"),
        (midi_bytes([on(0, 60), off(480, 60)])[:-10], "cut off or damaged"),
        (midi_bytes([on(0, 60), off(480, 60)])[:16], "cut off or damaged"),
        (midi_bytes([on(0, 60), off(480, 60)], kind=2), "type 2"),
        (midi_bytes([tempo(0, 0), on(0, 60), off(480, 60)]), "tempo of 0"),
        (midi_bytes([]), "holds no notes"),
        (midi_bytes([on(0, 60, channel=9), off(480, 60, channel=9)]), "no notes but drums"),
        (midi_bytes([on(0, 60), off(480, 60)], division=480)[:12] + b"\xe7\x28" + b"MTrk", "film frames"),
    ],
)
def test_what_cannot_be_played_says_why(tmp_path, data, said):
    path = tmp_path / "odd.mid"
    path.write_bytes(data)
    with pytest.raises(BadData, match=said) as caught:
        read_midi(path)
    assert str(path) in str(caught.value)


def test_files_are_found_by_name_and_in_folders(tmp_path):
    (tmp_path / "deep").mkdir()
    for name in ("b.mid", "a.MIDI", "deep/c.mid", "x.txt"):
        (tmp_path / name).write_bytes(b"")
    found = find_midi([tmp_path / "b.mid", tmp_path])
    assert [path.name for path in found] == ["b.mid", "a.MIDI", "c.mid"]
    with pytest.raises(BadData, match="does not exist"):
        find_midi([tmp_path / "nowhere"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadData, match=r"holds no \.mid"):
        find_midi([tmp_path / "empty"])
    with pytest.raises(BadData, match="is a folder"):
        read_midi(tmp_path / "deep")
    with pytest.raises(BadData, match="cannot be read"):
        read_midi(tmp_path / "nowhere.mid")
