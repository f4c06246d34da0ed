"""Notes to be heard: a piano from a sound font, as samples and as a WAV file.

The synthesiser is rustysynth, through the package `midirenderer`, which pip installs whole. Measured beside fluidsynth
2.3 (dry, 48 kHz, the same font) on 90 s of Chopin and 60 s of pop: the loudness of each 20 ms correlates 0.984 and
0.967, the spectrum's centroid is 896 Hz for 917 and 905 for 930, and both take about one processor second a minute or
two of music. fluidsynth is the finer one, but pip cannot bring it. symusic's own was four times as fast and not like
it: correlations of 0.71 and 0.78, a centroid of 3235 Hz, and in symusic 0.6.0 it cannot be called at all.
"""

import wave
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path

import numpy as np
import numpy.typing as npt

from gpt2.errors import BadData, Unavailable
from gpt2.files import write_atomically
from gpt2.music.midi import midi_bytes
from gpt2.music.notes import Notes

Samples = npt.NDArray[np.float32]

RATE = 48_000  # samples a second: rustysynth's here, and no other
TAIL = 0.5  # seconds in which the last notes die away

_LONGEST = 2 * 3600  # seconds; an hour takes about 3 GB of memory

# It leaves room for an orchestra of 16 channels. A piano alone may be twice as loud.
_GAIN = 2.0
# Softer notes than this step, the MIDI velocity 14, it does not play at all.
_SOFTEST = 3

_FOLDERS = (
    "/usr/share/sounds/sf2",  # Debian
    "/usr/share/soundfonts",  # Fedora, Arch
    "/usr/local/share/soundfonts",
    "/opt/homebrew/share/soundfonts",
    "/Library/Audio/Sounds/Banks",  # macOS
    "~/Library/Audio/Sounds/Banks",
    "~/.local/share/soundfonts",
)
_FONTS = ("default-GM.sf2", "TimGM6mb.sf2", "FluidR3_GM.sf2")  # these have a piano


def synthesise(notes: Notes, *, sound_font: Path | None = None) -> Samples:
    """Notes as (samples, 2) float32 in [-1, 1], left and right, `RATE` a second; it lasts `notes.seconds` + `TAIL`.

    The same notes and font give the same samples. Loudness is kept as it is, so that pieces compare; only what would
    exceed 1 is made softer as a whole. sound_font: an .sf2 file; without it, `find_sound_font`'s.

    Raises BadData without notes, for more than two hours of them, or for a font that cannot be read; Unavailable
    without a font or the extra `music`.
    """
    if not len(notes):
        raise BadData("There are no notes to play.")
    if notes.seconds > _LONGEST:
        raise BadData(
            f"The music lasts {notes.seconds / 3600:.1f} hours, and {_LONGEST // 3600} can be played; cut it."
        )
    font = check_sound(sound_font)
    import midirenderer

    try:
        # The synthesiser stops with a file's last event.
        music = midi_bytes(
            replace(notes, velocities=np.maximum(notes.velocities, _SOFTEST)), silence=round(1000 * TAIL)
        )
        file = midirenderer.render_wave_from(font.read_bytes(), music)
    except RuntimeError as error:
        said = str(error).removeprefix("SoundFont error: ")
        raise BadData(f"{font} is no sound font that can be played ({said}); it must be an .sf2 file.") from None
    with wave.open(BytesIO(file)) as read:
        played = np.frombuffer(read.readframes(read.getnframes()), dtype="<i2").reshape(-1, 2)
    samples = np.zeros((round((notes.seconds + TAIL) * RATE), 2), dtype=np.float32)
    both = min(len(samples), len(played))
    samples[:both] = played[:both]
    samples *= _GAIN / 2**15
    samples[-round(TAIL * RATE) :] *= _fade()[:, None]
    peak = max(float(samples.max()), -float(samples.min()))
    if peak > 1:
        samples /= np.float32(peak)
    return samples


def check_sound(sound_font: Path | None = None) -> Path:
    """The font that is played; for whoever wants to know before there are notes.

    Raises Unavailable without a font or the extra `music`, BadData for a font that cannot be read.
    """
    if find_spec("midirenderer") is None:
        raise Unavailable("Sound needs midirenderer: install the extra `music` (see README).")
    font = Path(sound_font) if sound_font is not None else find_sound_font()
    try:
        font.open("rb").close()
    except OSError as error:
        raise BadData(f"The sound font {font} cannot be read ({error.strerror}).") from None
    return font


def find_sound_font() -> Path:
    """A font on this machine: one with a well-known name in the folders where systems keep them, else the one that the
    package pretty_midi brings along, else any .sf2 in those folders. Raises Unavailable if there is none.
    """
    for font in _candidates():
        if font.is_file():
            return font
    raise Unavailable(
        "No sound font was found: the extra `music` brings one (see README), `apt install timgm6mb-soundfont` another, "
        "or name an .sf2 file of your own."
    )


def write_wav(samples: Samples, path: Path, rate: int = RATE) -> None:
    """Writes (samples, 2) floats in [-1, 1] as a WAV file of 16 bits, whole or not at all."""
    data = BytesIO()
    with wave.open(data, "wb") as file:
        file.setnchannels(samples.shape[1])
        file.setsampwidth(2)
        file.setframerate(rate)
        # Ten seconds at a time: of an hour, each of these steps would take another gigabyte.
        for start in range(0, len(samples), 10 * rate):
            part = np.clip(samples[start : start + 10 * rate], -1, 1)
            file.writeframesraw(np.rint(part * (2**15 - 1)).astype("<i2").tobytes())
    write_atomically(Path(path), data.getvalue())


def _candidates() -> Iterator[Path]:
    folders = [Path(folder).expanduser() for folder in _FOLDERS]
    for folder in folders:
        for name in _FONTS:
            yield folder / name
    spec = find_spec("pretty_midi")
    for place in (spec.submodule_search_locations or ()) if spec else ():
        yield Path(place) / "TimGM6mb.sf2"
    for folder in folders:
        yield from sorted(folder.glob("*.sf2"))


def _fade() -> Samples:
    """From 1 to 0 over the tail, level at both ends, so that neither is heard."""
    return np.cos(np.linspace(0, np.pi / 2, round(TAIL * RATE))).astype(np.float32) ** 2
