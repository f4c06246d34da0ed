"""MIDI files to notes and back, through symusic.

What is read: the notes of all tracks but drums, with the sustain pedal applied, on one time line, in canonical form
(`notes.py`). A pedal holds the notes of its own track: a note that ends while it is down lasts until it is let go of.
(MIDI's pedals belong to channels, which symusic makes tracks of. Where several of a file's tracks share a channel, the
pedal acts on the one that it lies in.)

symusic reads files of type 0 and 1 and leaves out notes that have no end. It gives times in ticks; seconds are worked
out here in float64, because it has them in float32, in which an hour is a third of a millisecond wide.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gpt2.errors import BadData, Unavailable
from gpt2.files import write_atomically
from gpt2.music.notes import TICKS_A_SECOND, Notes, canonical

Real = npt.NDArray[np.float64]

SUFFIXES = (".mid", ".midi", ".kar")
_PEDAL, _DOWN = 64, 64  # the controller's number, and the lowest value that counts as pressed
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
    if len(data) < 14:
        raise damaged
    kind, division = int.from_bytes(data[8:10], "big"), int.from_bytes(data[12:14], "big")
    if kind == 2:
        raise BadData(f"{source} is a MIDI file of type 2, whose tracks are separate pieces; save each as type 0 or 1.")
    if kind > 2:
        raise damaged
    if division & _SMPTE or not division:
        raise BadData(f"{source} counts time in film frames, or in nothing; save it with ticks per quarter note.")
    try:
        score = _symusic().Score.from_midi(data)
    except RuntimeError:
        raise damaged from None
    # In the order of the file where times are equal: the last one counts.
    tempos = sorted(((tempo.time, tempo.mspq) for tempo in score.tempos), key=lambda change: change[0])
    if any(tempo <= 0 for _, tempo in tempos):
        raise BadData(f"{source} has a tempo of 0, at which no time passes; mend it in a MIDI editor.")
    tracks = [_Track(track) for track in score.tracks if not track.is_drum and len(track.notes)]
    if not tracks:
        what = "notes but drums" if any(len(track.notes) for track in score.tracks) else "notes"
        raise BadData(f"{source} holds no {what} (a note that never ends is not counted).")
    starts = np.concatenate([track.starts for track in tracks])
    if starts.min() < 0:
        # symusic's ticks have 32 bits, and wrapped.
        raise BadData(f"{source} lasts more than a day; cut it into pieces.")
    stops = np.concatenate([_held(track.stops, track.pedals) for track in tracks])
    # A pedal that is never let go of holds until the music ends.
    last = max(float(track.stops.max()) for track in tracks)
    last = max(last, float(stops[np.isfinite(stops)].max(initial=0)))
    stops = np.where(np.isfinite(stops), stops, last)
    pitches = np.concatenate([track.pitches for track in tracks])
    velocities = np.concatenate([track.velocities for track in tracks])
    seconds = _Clock(tempos, division)
    try:
        return canonical(seconds(starts), seconds(stops), pitches, velocities)
    except BadData as error:
        raise BadData(f"{source}: {error}") from None


def write_midi(notes: Notes, path: Path | str) -> None:
    """Writes notes as a MIDI file of type 1, one piano track, whole or not at all. `read_midi` gives the same notes."""
    write_atomically(Path(path), score_of(notes).dumps_midi())


def score_of(notes: Notes) -> Any:
    """Notes as a `symusic.Score` in ticks of a millisecond."""
    symusic = _symusic()
    score = symusic.Score(_QUARTER)
    score.tempos.append(symusic.Tempo(0, 120.0))
    track = symusic.Track("piano", 0, False)
    tick = 1000 // TICKS_A_SECOND
    for onset, end, pitch, velocity in zip(
        (tick * notes.onsets).tolist(),
        (tick * notes.ends).tolist(),
        notes.pitches.tolist(),
        notes.midi_velocities.tolist(),
        strict=True,
    ):
        track.notes.append(symusic.Note(onset, end - onset, pitch, velocity))
    score.tracks.append(track)
    return score


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


class _Track:
    """A track's notes as arrays, in ticks of its file, and when its pedal is down, (P, 2)."""

    __slots__ = ("pedals", "pitches", "starts", "stops", "velocities")

    def __init__(self, track: Any) -> None:
        rows = track.notes.numpy()
        self.starts = rows["time"].astype(np.float64)
        self.stops = self.starts + rows["duration"].astype(np.float64)
        self.pitches, self.velocities = rows["pitch"].astype(np.int64), rows["velocity"].astype(np.int64)
        self.pedals = _pedals(track)


def _pedals(track: Any) -> Real:
    """When a track's pedal is down, (P, 2) ticks; the last may be down for ever."""
    # The order in the file decides between changes at one time: sorting keeps it.
    changes = sorted(
        ((change.time, change.value >= _DOWN) for change in track.controls if change.number == _PEDAL),
        key=lambda change: change[0],
    )
    spans: list[tuple[float, float]] = []
    begun: float | None = None
    for time, down in changes:
        if down and begun is None:
            begun = time
        elif not down and begun is not None:
            spans.append((begun, time))
            begun = None
    if begun is not None:
        spans.append((begun, np.inf))
    return np.array(spans, dtype=np.float64).reshape(-1, 2)


def _held(stops: Real, pedals: Real) -> Real:
    """When notes end that a pedal may hold, (N,)."""
    if not len(pedals):
        return stops
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

    def __call__(self, ticks: Real) -> Real:
        place = np.searchsorted(self._ticks, ticks, side="right") - 1
        return np.asarray(self._seconds[place] + (ticks - self._ticks[place]) * self._rates[place])


def _symusic() -> Any:
    try:
        import symusic
    except ImportError:
        raise Unavailable("MIDI files need symusic: install the extra `music` (see README).") from None
    return symusic
