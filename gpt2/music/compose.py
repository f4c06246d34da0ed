"""Music from a model: from nothing or on from a primer, so many seconds of it, and only what can be played.

The engine draws the events, held to `grammar.py`. Past the window they go on as a text does (`overflow="slide"`): the
newest half is read again.
"""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from gpt2.errors import BadCheckpoint, BadOption, BadPrompt, Notice
from gpt2.generation.options import GenerationOptions, SamplingOptions, whole_number
from gpt2.music.events import END, SHIFT, VELOCITY, to_events, to_notes, vocabulary
from gpt2.music.grammar import EventGrammar
from gpt2.music.midi import as_notes
from gpt2.music.notes import TICKS_A_SECOND, Notes

if TYPE_CHECKING:
    from gpt2.checkpoint import LanguageModel
    from gpt2.generation import Engine

TEMPERATURE = 0.95
SECONDS = 30.0
_LONGEST = 3600.0  # an hour
_EVENTS_A_TICK = 3 * 128 + 1  # no moment has more: each pitch ends, and begins with a velocity of its own; and a wait


@dataclass(frozen=True, slots=True, repr=False)
class Piece:
    """What a model played.

    notes: the primer and what follows it. events: what the model wrote, (E,) ids without <|endoftext|>. primer_ticks:
    how much of the notes is the primer, in ticks of 10 ms. seed: the one that makes this piece again.
    """

    notes: Notes
    events: list[int]
    primer_ticks: int
    seed: int

    def __repr__(self) -> str:
        """In one line, for notebooks."""
        return f"<Piece: {self.notes!r}, {len(self.events):,} new events, seed {self.seed}>"

    @property
    def text(self) -> str:
        """The events by their names."""
        return vocabulary().decode(self.events).strip()


def generate(
    model: "LanguageModel | Engine",
    primer: Notes | Path | str | None = None,
    *,
    seconds: float = SECONDS,
    primer_seconds: float | None = None,
    temperature: float = TEMPERATURE,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int | None = None,
    may_end: bool = False,
    n: int = 1,
    progress: Callable[[float], None] = lambda _: None,
) -> Piece | list[Piece]:
    """So many seconds of new music; with `n` above 1 a list of pieces, of which piece j uses seed + j.

    primer: notes, or a MIDI file, to go on from (None: nothing), without the silence before its first note; of it the
    first `primer_seconds` (None: all). may_end: a piece may end before its time if the model says so; otherwise that
    is kept from it. progress: is told how many seconds there are of the shortest piece.

    Raises BadCheckpoint for a model that is none of music, BadOption and BadPrompt for what cannot be asked. Warns
    (Notice) of a primer that is longer than the window, of which the newest half window is read.
    """
    check_model(model)
    if not 0 < seconds <= _LONGEST:
        raise BadOption(f"seconds is {seconds:g}, but it must be above 0, and {_LONGEST:g} at most.")
    n = whole_number("n", n, 1)
    prompt = [END, *_events_of(primer, primer_seconds)]
    length = max(1, round(seconds * TICKS_A_SECOND))
    options = GenerationOptions(
        max_tokens=(length + 1) * _EVENTS_A_TICK,
        seed=seed,
        sampling=SamplingOptions(temperature, top_k, top_p),
        grammar=lambda ids: EventGrammar(ids, length, may_end=may_end),
    )
    first = options.seeds(1)[0]
    seeds = [first + row for row in range(n)]
    window = model.config.n_positions
    if len(prompt) > window:
        warnings.warn(
            f"The primer has {len(prompt) - 1:,} events, more than the model's window of {window:,}: the newest "
            f"{window // 2:,} of them are read. primer_seconds takes less of it.",
            Notice,
            stacklevel=2,
        )
    outputs = _played(model, [prompt] * n, replace(options, seed=seeds), length, progress)
    before = EventGrammar(prompt).now
    pieces = [
        Piece(to_notes([*prompt, *output]), output, before, seed) for output, seed in zip(outputs, seeds, strict=True)
    ]
    return pieces if n > 1 else pieces[0]


def _events_of(primer: Notes | Path | str | None, seconds: float | None) -> list[int]:
    """What there is to go on from."""
    if seconds is not None and not 0 < seconds < math.inf:
        raise BadOption(f"primer_seconds is {seconds:g}, but it must be a finite number above 0.")
    if primer is None:
        if seconds is not None:
            raise BadOption("primer_seconds says how much of a primer is read, and there is none.")
        return []
    primer = as_notes(primer).from_start()
    if seconds is not None:
        primer = primer.between(0, max(1, round(seconds * TICKS_A_SECOND)))
    if not len(primer):
        raise BadPrompt("The primer has no notes.")
    events: list[int] = to_events(primer).tolist()
    return events


def _played(
    model: "LanguageModel | Engine",
    prompts: list[list[int]],
    options: GenerationOptions,
    length: int,
    progress: Callable[[float], None],
) -> list[list[int]]:
    """The events that follow each prompt."""
    from gpt2.generation import decode

    outputs: list[list[int]] = [[] for _ in prompts]
    reached = [0] * len(prompts)
    with warnings.catch_warnings():
        # A piece outgrows the window as a matter of course; a text's notice of it would name options that are not here.
        warnings.simplefilter("ignore", Notice)
        for event in decode(model, prompts, options):
            if event.error is not None:
                raise event.error
            if event.id is not None:
                outputs[event.row].append(event.id)
                if SHIFT <= event.id < VELOCITY:
                    reached[event.row] += event.id - SHIFT + 1
            if event.finish_reason is not None:
                reached[event.row] = length
            progress(min(reached) / TICKS_A_SECOND)
    return outputs


def check_model(model: "LanguageModel | Engine") -> None:
    """Raises BadCheckpoint unless a model's vocabulary is that of music."""
    if model.tokenizer != vocabulary():
        raise BadCheckpoint(
            f"{getattr(model, 'source', 'This')} is no model of music: its vocabulary is not that of musical events. "
            "pianola ships; `gpt2 music prepare` and `gpt2 train --recipe music` make others."
        )
