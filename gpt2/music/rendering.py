"""Pieces to see and to hear: what `gpt2 music render` does, as one function."""

from pathlib import Path

from gpt2.errors import BadOption
from gpt2.music.notes import Notes


def render(
    notes: Notes,
    *,
    wav: Path | str | None = None,
    png: Path | str | None = None,
    sound_font: Path | None = None,
    title: str = "",
    primer_ticks: int = 0,
) -> None:
    """Writes notes as sound (`wav`), as a piano roll (`png`), or both; each file whole or not at all.

    sound_font: an .sf2 file (None: one that is found on this machine). primer_ticks: how much of the notes is marked
    as given, in ticks of 10 ms.
    Raises BadOption if neither is asked for, BadData for no notes, Unavailable for a missing package or sound font.
    """
    if wav is None and png is None:
        raise BadOption("Nothing to render: ask for a sound (wav), a picture (png), or both.")
    if png is not None:
        from gpt2.music.roll import write_png

        write_png(notes, Path(png), title=title, primer_ticks=primer_ticks)
    if wav is not None:
        from gpt2.music.sound import synthesise, write_wav

        write_wav(synthesise(notes, sound_font=sound_font), Path(wav))
