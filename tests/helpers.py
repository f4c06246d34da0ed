"""Small models and run reporters that tests share."""

from collections.abc import Callable, Mapping, Sequence

import pytest
import torch

from gpt2.checkpoint import LanguageModel
from gpt2.config import GPT2Config
from gpt2.evaluation.rows import Job
from gpt2.generation import GenerationOptions
from gpt2.model import GPT2
from gpt2.tokenizer import Tokenizer, WordTokenizer
from gpt2.training.evaluate import Evaluation


def byte_tokenizer() -> Tokenizer:
    """The smallest vocabulary: 256 bytes and <|endoftext|>."""
    return Tokenizer.from_merges([])


def tiny_model(
    seed: int = 0, window: int = 32, n_layer: int = 2, std: float = 0.2, tokenizer: Tokenizer | None = None
) -> LanguageModel:
    """A random model over bytes, unless it is given another vocabulary; a large `std` makes its distributions far from
    even."""
    tokenizer = tokenizer or byte_tokenizer()
    config = GPT2Config(
        vocab_size=tokenizer.vocab_size,
        n_positions=window,
        n_embd=32,
        n_layer=n_layer,
        n_head=2,
        initializer_range=std,
    )
    return LanguageModel(GPT2(config).initialise(seed).eval().requires_grad_(False), tokenizer, "tiny")


class Recorder:
    """A training reporter that remembers."""

    def __init__(self) -> None:
        self.losses: dict[int, float] = {}
        self.evaluations: dict[int, Evaluation] = {}
        self.notes: list[str] = []
        self.samples: dict[int, str] = {}

    def note(self, text: str) -> None:
        self.notes.append(text)

    def start(self, step: int, steps: int) -> None:
        self.first_step = step

    def step(self, step: int, loss: float, tokens_per_second: float, facts: Mapping[str, float]) -> None:
        self.losses[step] = loss

    def evaluation(self, step: int, evaluation: Evaluation) -> None:
        self.evaluations[step] = evaluation

    def sample(self, step: int, text: str) -> None:
        self.samples[step] = text


def random_ids(rows: int, length: int, vocab_size: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(vocab_size, (rows, length), generator=torch.Generator().manual_seed(seed))


_PHRASES = (
    "v20 C4 E4 G4 500ms /C4 /E4 /G4 v18 D4 250ms /D4",
    "v16 A3 120ms /A3 A3 120ms /A3 A3 120ms /A3 A3 120ms /A3 A3 120ms /A3 A3 120ms /A3 A3 120ms",
    "v24 C3 C4",
    "v12 F#5 1000ms 30ms /F#5 v13 G5 60ms /G5 A5 60ms /A5 G5 60ms /G5 F#5",
)


def in_its_words(model: LanguageModel, *texts: str) -> list[str]:
    """The texts; for a model of music as many phrases of music in their place, an empty one for an empty one."""
    if not isinstance(model.tokenizer, WordTokenizer):
        return list(texts)
    return [text and _PHRASES[number % len(_PHRASES)] for number, text in enumerate(texts)]


def told_by(
    monkeypatch: pytest.MonkeyPatch, answer: Callable[[str, dict[str, str]], str]
) -> tuple[list[tuple[str, GenerationOptions]], dict[str, str]]:
    """Has prepared answers stand in the place of what a model writes for a row of `gpt2 paper`.

    answer: from a prompt and what is prepared. Returns what is asked, with its options, and the prepared answers.
    """
    asked: list[tuple[str, GenerationOptions]] = []
    written: dict[str, str] = {}

    def complete(job: Job, prompts: Sequence[Sequence[int]], options: GenerationOptions, what: str) -> list[list[int]]:
        texts = [job.model.tokenizer.decode(prompt) for prompt in prompts]
        asked.extend((text, options) for text in texts)
        return [job.model.tokenizer.encode(answer(text, written)) for text in texts]

    monkeypatch.setattr(Job, "complete", complete)
    return asked, written
