"""Pieces to see and to hear: what `gpt2 music render` does, as one function."""

from pathlib import Path

from gpt2.errors import BadOption
from gpt2.music.midi import as_notes
from gpt2.music.notes import Notes


def render(
    music: Notes | Path | str,
    *,
    wav: Path | str | None = None,
    png: Path | str | None = None,
    sound_font: Path | str | None = None,
    title: str = "",
    primer_ticks: int = 0,
) -> None:
    """Writes notes, or those of a MIDI file, as sound (`wav`), as a piano roll (`png`), or both; files are whole.

    sound_font: an .sf2 file (None: one that is found on this machine). primer_ticks: how much of the notes is marked
    as given, in ticks of 10 ms.
    Raises BadOption if neither is asked for, BadData for no notes, Unavailable for a missing package or sound font.
    """
    if wav is None and png is None:
        raise BadOption("Nothing to render: ask for a sound (wav), a picture (png), or both.")
    notes = as_notes(music)
    if png is not None:
        from gpt2.music.roll import write_png

        write_png(notes, Path(png), title=title, primer_ticks=primer_ticks)
    if wav is not None:
        from gpt2.music.sound import synthesise, write_wav

        write_wav(synthesise(notes, sound_font=None if sound_font is None else Path(sound_font)), Path(wav))
