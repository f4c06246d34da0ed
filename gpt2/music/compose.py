"""Music from a model: from nothing or on from a primer, so many seconds of it, and only what can be played.

The engine draws the events, held to `grammar.py`. Past the window they go on as a text does (`overflow="slide"`): the
newest half is read again.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gpt2.errors import BadCheckpoint, BadOption, BadPrompt
from gpt2.generation.options import GenerationOptions, SamplingOptions, whole_number
from gpt2.music.events import END, to_events, to_notes, vocabulary
from gpt2.music.grammar import EventGrammar
from gpt2.music.notes import TICKS_A_SECOND, Notes

if TYPE_CHECKING:
    from gpt2.checkpoint import LanguageModel

TEMPERATURE = 0.95
SECONDS = 30.0
_LONGEST = 3600.0  # an hour
_EVENTS_A_TICK = 3 * 128  # no moment has more


@dataclass(frozen=True, slots=True)
class Piece:
    """What a model played.

    notes: the primer and what follows it. events: what the model wrote, (E,) ids without <|endoftext|>. primer_ticks:
    how much of the notes is the primer, in ticks of 10 ms. seed: the one that makes this piece again.
    """

    notes: Notes
    events: list[int]
    primer_ticks: int
    seed: int

    @property
    def text(self) -> str:
        """The events by their names."""
        return vocabulary().decode(self.events).strip()


def generate(
    model: "LanguageModel",
    primer: Notes | None = None,
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
) -> list[Piece]:
    """So many seconds of new music, `n` times; piece j uses seed + j.

    primer: what to go on from (None: nothing), without the silence before its first note; of it the first
    `primer_seconds` (None: all). may_end: a piece may end before its time if the model says so; otherwise that is kept
    from it. progress: is told how many seconds the slowest piece has.

    Raises BadCheckpoint for a model that is none of music, BadOption and BadPrompt for what cannot be asked.
    Warns (Notice) if the model's window slides.
    """
    from gpt2.generation import decode

    check_model(model)
    if not 0 < seconds <= _LONGEST:
        raise BadOption(f"seconds is {seconds:g}, but it must be above 0, and {_LONGEST:g} at most.")
    if primer_seconds is not None and not primer_seconds > 0:
        raise BadOption(f"primer_seconds is {primer_seconds:g}, but it must be above 0.")
    n = whole_number("n", n, 1)
    prompt = [END]
    if primer is not None:
        primer = primer.from_start()
        if primer_seconds is not None:
            primer = primer.between(0, max(1, round(primer_seconds * TICKS_A_SECOND)))
        if not len(primer):
            raise BadPrompt("The primer has no notes.")
        prompt += to_events(primer).tolist()
    length = max(1, round(seconds * TICKS_A_SECOND))
    grammars: list[EventGrammar] = []

    def grammar(ids: Sequence[int]) -> EventGrammar:
        grammars.append(EventGrammar(ids, length, may_end=may_end))
        return grammars[-1]

    sampling = SamplingOptions(temperature, top_k, top_p)
    options = GenerationOptions(max_tokens=(length + 1) * _EVENTS_A_TICK, seed=seed, sampling=sampling, grammar=grammar)
    first = options.seeds(1)[0]
    seeds = [first + row for row in range(n)]
    options = GenerationOptions(options.max_tokens, seed=seeds, sampling=sampling, grammar=grammar)
    outputs: list[list[int]] = [[] for _ in range(n)]
    before = EventGrammar(prompt).now
    for event in decode(model, [prompt] * n, options):
        if event.error is not None:
            raise event.error
        if event.id is not None:
            outputs[event.row].append(event.id)
        progress(min(each.now for each in grammars) / TICKS_A_SECOND - before / TICKS_A_SECOND)
    return [
        Piece(to_notes([*prompt, *output]), output, before, seed) for output, seed in zip(outputs, seeds, strict=True)
    ]


def check_model(model: "LanguageModel") -> None:
    """Raises BadCheckpoint unless a model's vocabulary is that of music."""
    if model.tokenizer != vocabulary():
        where = model.path if isinstance(model.path, Path) else model.source
        raise BadCheckpoint(
            f"{where} is no model of music: its vocabulary is not that of musical events. "
            "Train one with `gpt2 music prepare` and `gpt2 train --recipe music`."
        )
