"""MIDI files to notes and back.

What is read: the notes of all tracks but drums, with the sustain pedal applied, on one time line, in canonical form
(`notes.py`). Files of type 0 and 1 are read.

- Ends take the notes of their pitch, in their own track and channel, in the order in which those began. A note without
  an end is left out.
- A pedal holds the notes of its channel, in whatever tracks they and it lie: a note that ends while it is down lasts
  until it is let go of.
- Drums are channel 10.
- Seconds are worked out here, from ticks, in float64.

mido writes.
"""

from collections import defaultdict, deque
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gpt2.errors import BadData, Unavailable
from gpt2.files import write_atomically
from gpt2.music.notes import TICKS_A_SECOND, Notes, Numbers, canonical
from gpt2.music.smf import CONTROL, NOTE_OFF, NOTE_ON, TEMPO, Damaged, Message, read_header, read_messages

Real = npt.NDArray[np.float64]

SUFFIXES = (".mid", ".midi", ".kar")
_PEDAL, _DOWN = 64, 64  # the controller's number, and the lowest value that counts as pressed
_DRUMS = 9  # their channel, counted from 0
_SMPTE = 0x8000
_QUARTER = 500  # ticks in the files that are written: at 120 quarters a minute, each a millisecond


def read_midi(path: Path | str) -> Notes:
    """The notes of a MIDI file. Raises BadData, naming the file, if it is none, damaged, or has no notes to play."""
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        what = "is a folder; give one file" if path.is_dir() else f"cannot be read ({error.strerror})"
        raise BadData(f"{path} {what}.") from None
    return parse_midi(data, str(path))


def as_notes(music: Notes | Path | str) -> Notes:
    """Notes, or those of a MIDI file by its path."""
    return music if isinstance(music, Notes) else read_midi(music)


def parse_midi(data: bytes, source: str) -> Notes:
    """As `read_midi`, for a file's bytes; `source` is what errors call it."""
    if data[:4] != b"MThd":
        raise BadData(f"{source} is no MIDI file: it does not begin with MThd.")
    damaged = BadData(f"{source} is cut off or damaged; fetch it again, or open and save it in a MIDI editor.")
    try:
        kind, division = read_header(data)
    except Damaged:
        raise damaged from None
    if kind == 2:
        raise BadData(f"{source} is a MIDI file of type 2, whose tracks are separate pieces; save each as type 0 or 1.")
    if kind > 2:
        raise damaged
    if division & _SMPTE or not division:
        raise BadData(f"{source} counts time in film frames, or in nothing; save it with ticks per quarter note.")
    try:
        messages = read_messages(data)
    except Damaged:
        raise damaged from None
    tempos = [(message.time, message.first) for message in messages if message.kind == TEMPO]
    if not all(tempo for _, tempo in tempos):
        raise BadData(f"{source} has a tempo of 0, at which no time passes; mend it in a MIDI editor.")
    rows = _played(messages)
    music = rows[rows[:, 4] != _DRUMS]
    if not len(music):
        what = "notes but drums" if len(rows) else "notes"
        raise BadData(f"{source} holds no {what} (a note that never ends is not counted).")
    starts, ended, pitches, velocities, channels = music.T
    stops = ended.astype(np.float64)
    for channel, spans in _pedals(messages).items():
        stops = np.where(channels == channel, _held(stops, spans), stops)
    # A pedal that is never let go of holds until the music ends.
    last = max(float(ended.max()), float(stops[np.isfinite(stops)].max(initial=0)))
    seconds = _Clock(tempos, division)
    try:
        return canonical(seconds(starts), seconds(np.where(np.isfinite(stops), stops, last)), pitches, velocities)
    except BadData as error:
        raise BadData(f"{source}: {error}") from None


def write_midi(notes: Notes, path: Path | str) -> None:
    """Writes notes as a MIDI file of type 1, one piano track, whole or not at all. `read_midi` gives the same notes."""
    write_atomically(Path(path), midi_bytes(notes))


def midi_bytes(notes: Notes, *, silence: int = 0) -> bytes:
    """Notes as a MIDI file in ticks of a millisecond, which goes on for `silence` of them after the last note."""
    mido = _mido()
    tick = 1000 // TICKS_A_SECOND
    pitches = notes.pitches.tolist()
    # What ends at a moment comes before what begins at it.
    events = [(end, 0, pitch, 0) for end, pitch in zip((tick * notes.ends).tolist(), pitches, strict=True)]
    events += zip(
        (tick * notes.onsets).tolist(), [1] * len(notes), pitches, notes.midi_velocities.tolist(), strict=True
    )
    track, now = mido.MidiTrack([mido.MetaMessage("set_tempo", tempo=1000 * _QUARTER)]), 0
    for time, begins, pitch, velocity in sorted(events):
        track.append(mido.Message("note_on" if begins else "note_off", note=pitch, velocity=velocity, time=time - now))
        now = time
    track.append(mido.MetaMessage("end_of_track", time=silence))
    data = BytesIO()
    mido.MidiFile(type=1, ticks_per_beat=_QUARTER, tracks=[track]).save(file=data)
    return data.getvalue()


def find_midi(paths: Sequence[Path | str]) -> list[Path]:
    """MIDI files by name, and those in folders, each once, in the order of their names. Raises BadData for none."""
    found: dict[Path, Path] = {}
    for path in map(Path, paths):
        if path.is_dir():
            inside = sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
            if not inside:
                raise BadData(f"{path} holds no {', '.join(SUFFIXES)} file.")
        elif path.is_file():
            inside = [path]
        else:
            raise BadData(f"{path} does not exist.")
        for file in inside:
            found.setdefault(file.resolve(), file)
    return list(found.values())


def _played(messages: Sequence[Message]) -> Numbers:
    """Rows of onset, end, pitch, velocity and channel, (N, 5), in ticks, without pedals."""
    begun: defaultdict[tuple[int, int, int], deque[tuple[int, int]]] = defaultdict(deque)
    rows = []
    for time, track, kind, channel, pitch, velocity in messages:
        if kind not in (NOTE_OFF, NOTE_ON):
            continue
        sounding = begun[track, channel, pitch]
        # A beginning with the velocity 0 is how most files spell an end.
        if kind == NOTE_ON and velocity:
            sounding.append((time, velocity))
        elif sounding:
            onset, loudness = sounding.popleft()
            rows.append((onset, time, pitch, loudness, channel))
    return np.array(rows, dtype=np.int64).reshape(-1, 5)


def _pedals(messages: Sequence[Message]) -> dict[int, Real]:
    """When each channel's pedal is down, (P, 2) ticks; the last may be down for ever."""
    down: dict[int, int] = {}
    spans: defaultdict[int, list[tuple[float, float]]] = defaultdict(list)
    for time, _, kind, channel, controller, value in messages:
        if kind == CONTROL and controller == _PEDAL:
            if value >= _DOWN:
                down.setdefault(channel, time)
            elif channel in down:
                spans[channel].append((down.pop(channel), time))
    for channel, pressed in down.items():
        spans[channel].append((pressed, np.inf))
    return {channel: np.array(ends, dtype=np.float64) for channel, ends in spans.items()}


def _held(stops: Real, pedals: Real) -> Real:
    """When notes end that a pedal holds, down in the spans (P, 2), (N,)."""
    place = np.searchsorted(pedals[:, 0], stops, side="right") - 1
    down, up = pedals[place.clip(0)].T
    return np.where((place >= 0) & (down <= stops) & (stops < up), up, stops)


class _Clock:
    """Ticks to seconds, by the tempo changes: (tick, microseconds a quarter)."""

    def __init__(self, tempos: Sequence[tuple[int, int]], division: int) -> None:
        # 120 quarters a minute until a file says otherwise; of changes at one tick the last counts.
        changes = dict([(0, 500_000), *tempos])
        self._ticks = np.array(list(changes), dtype=np.float64)
        self._rates = np.array(list(changes.values()), dtype=np.float64) / (1e6 * division)
        self._seconds = np.concatenate([[0.0], np.cumsum(np.diff(self._ticks) * self._rates[:-1])])

    def __call__(self, ticks: Numbers | Real) -> Real:
        place = np.searchsorted(self._ticks, ticks, side="right") - 1
        return np.asarray(self._seconds[place] + (ticks - self._ticks[place]) * self._rates[place])


def _mido() -> Any:
    try:
        import mido
    except ImportError:
        raise Unavailable("Writing MIDI files needs mido: install the extra `music` (see README).") from None
    return mido
