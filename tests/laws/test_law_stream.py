"""Law `stream`: the pieces joined and the whole: identical text, never half a character."""

import warnings

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2.checkpoint import LanguageModel, load, shipped
from gpt2.errors import Notice
from gpt2.generation import generate, stream
from tests.generation_models import byte_tokenizer, model, scripted, small_tokenizer
from tests.helpers import in_its_words


def naive_stop(text: str, stops: list[str]) -> str:
    """The text up to the stop string that is complete first, the longest where several are."""
    for end in range(len(text) + 1):
        complete = [stop for stop in stops if text[:end].endswith(stop)]
        if complete:
            return text[: end - max(map(len, complete))]
    return text


def assert_streams_as_a_whole(made: LanguageModel, prompt: object, stops: list[str], **options: object) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Notice)
        pieces = list(stream(made, prompt, stop=stops, **options))
        whole = generate(made, prompt, stop=stops, **options)
    assert "".join(pieces) == whole.text
    assert "" not in pieces
    # Against the bytes themselves, decoded and cut at once.
    decoded = made.tokenizer.decode_bytes(whole.ids).decode("utf-8", errors="replace")
    assert whole.text == naive_stop(decoded, stops)
    assert whole.finish_reason == "stop" or whole.text == decoded
    return whole.text


stops = st.lists(st.text(alphabet="abe 0\n🙂é\ufffd", min_size=1, max_size=3), max_size=3)


@given(seed=st.integers(0, 10**6), stops=stops, temperature=st.sampled_from([0.7, 1.0, 3.0]))
@settings(max_examples=60, deadline=None)
def test_random_bytes(seed: int, stops: list[str], temperature: float) -> None:
    """A vocabulary of single bytes: nearly every text is broken UTF-8."""
    options = {"max_tokens": 40, "temperature": temperature, "top_k": None, "seed": seed}
    assert_streams_as_a_whole(model(n_positions=24), [seed % 256], stops, **options)


@given(seed=st.integers(0, 10**6), stops=stops)
@settings(max_examples=40, deadline=None)
def test_random_tokens(seed: int, stops: list[str]) -> None:
    """Tokens of many bytes, with borders inside characters."""
    options = {"max_tokens": 30, "temperature": 2.0, "top_k": None, "seed": seed}
    assert_streams_as_a_whole(model(small_tokenizer()), "the", stops, **options)


@given(text=st.text(min_size=1, max_size=20).filter(lambda text: len(text.encode()) <= 60), data=st.data())
@settings(max_examples=60, deadline=None)
def test_written_texts(text: str, data: st.DataObject) -> None:
    """A model that writes this text byte by byte; stop strings are taken from it."""
    length = len(text.encode())
    stops = []
    for _ in range(data.draw(st.integers(0, 2))):
        start = data.draw(st.integers(0, len(text) - 1))
        stops.append(text[start : start + data.draw(st.integers(1, 4))])
    found = assert_streams_as_a_whole(scripted(text), [0], stops, temperature=0, max_tokens=length)
    assert found == naive_stop(text, stops)


def test_characters_come_whole() -> None:
    text = "naïve 🙂, 日本語!"
    pieces = list(stream(scripted(text), [0], temperature=0, max_tokens=len(text.encode())))
    assert pieces == list(text)


def test_a_stop_string_across_tokens_never_shows() -> None:
    writer = scripted("one\ntwo\nEN\nEND\nthree", small_tokenizer())
    tokens = [writer.tokenizer.decode([id]) for id in writer.tokenizer.encode("\nEND")]
    assert len(tokens) > 1
    pieces = list(stream(writer, [0], temperature=0, stop="\nEND"))
    assert "".join(pieces) == "one\ntwo\nEN"
    assert not any("END" in piece for piece in pieces)


def test_the_random_texts_are_broken_utf8() -> None:
    """So that the tests above are about something."""
    texts = [generate(model(), [1], temperature=3.0, top_k=None, seed=seed, max_tokens=30).text for seed in range(5)]
    assert all("\ufffd" in text for text in texts)
    assert byte_tokenizer().vocab_size == 257


@pytest.mark.parametrize("name", shipped() or ["none"])
def test_the_shipped_models(name: str) -> None:
    if name == "none":
        pytest.skip("left out: no model is shipped yet")
    made = load(name)
    prompts = in_its_words(made, "The old man", "“Tell me,” she said,", "")
    for prompt, stops in zip(prompts, ([], [".", "\n\n", " /C4"], ["the", "v2"]), strict=True):
        text = assert_streams_as_a_whole(made, prompt, stops, seed=4, max_tokens=60)
        assert "\ufffd" not in text
