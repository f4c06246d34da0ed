"""Music by the same decoder: MIDI files to events, a model of them, and pieces to see, hear and measure.

    from gpt2 import load, music

    model = load("pianola")
    piece = music.generate(model, music.read_midi("primer.mid"), seconds=20)
    music.write_midi(piece.notes, "new.mid")
    music.piano_roll(piece.notes)            # (128, ticks) uint8
    music.draw(piece.notes)                  # a matplotlib figure
    music.render(piece.notes, wav="new.wav", png="new.png")

Notes are arrays on a grid of 10 ms (`Notes`); events are token ids, and the vocabulary that names them is a tokenizer,
so everything else of this package takes a model of music as it takes one of text.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gpt2.music.compose import Piece, generate
    from gpt2.music.dataset import Prepared, PrepareOptions, prepare
    from gpt2.music.events import to_events, to_notes, vocabulary
    from gpt2.music.figures import Figures, compare, mean_of, measure
    from gpt2.music.grammar import EventGrammar
    from gpt2.music.midi import read_midi, write_midi
    from gpt2.music.notes import Notes, canonical
    from gpt2.music.rendering import render
    from gpt2.music.roll import draw, piano_roll
    from gpt2.music.sound import synthesise

__all__ = [
    "EventGrammar",
    "Figures",
    "Notes",
    "Piece",
    "PrepareOptions",
    "Prepared",
    "canonical",
    "compare",
    "draw",
    "generate",
    "mean_of",
    "measure",
    "piano_roll",
    "prepare",
    "read_midi",
    "render",
    "synthesise",
    "to_events",
    "to_notes",
    "vocabulary",
    "write_midi",
]

_HOMES = {
    **dict.fromkeys(["Piece", "generate"], "compose"),
    **dict.fromkeys(["to_events", "to_notes", "vocabulary"], "events"),
    **dict.fromkeys(["Figures", "compare", "mean_of", "measure"], "figures"),
    **dict.fromkeys(["EventGrammar"], "grammar"),
    **dict.fromkeys(["read_midi", "write_midi"], "midi"),
    **dict.fromkeys(["Notes", "canonical"], "notes"),
    **dict.fromkeys(["PrepareOptions", "Prepared", "prepare"], "dataset"),
    **dict.fromkeys(["render"], "rendering"),
    **dict.fromkeys(["draw", "piano_roll"], "roll"),
    **dict.fromkeys(["synthesise"], "sound"),
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
