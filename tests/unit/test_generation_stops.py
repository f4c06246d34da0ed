import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt2.errors import BadOption
from gpt2.generation.stops import StopMatcher


def run(stops: list[str], pieces: list[str]) -> tuple[list[str], bool]:
    matcher, out = StopMatcher(stops), []
    for piece in pieces:
        text, matched = matcher.push(piece)
        out.append(text)
        if matched:
            return out, True
    return [*out, matcher.flush()], False


def naive(stops: list[str], text: str) -> tuple[str, bool]:
    """The first place at which some stop string is complete, and the longest that is complete there."""
    for end in range(len(text) + 1):
        complete = [stop for stop in stops if text[:end].endswith(stop)]
        if complete:
            return text[: end - max(map(len, complete))], True
    return text, False


def holds_back(stops: list[str], text: str) -> int:
    """How much must be held back: the longest end of the text that begins a stop string."""
    lengths = [n for stop in stops for n in range(1, len(stop)) if text.endswith(stop[:n])]
    return max(lengths, default=0)


small = st.text(alphabet="aab\n", max_size=12)


@given(st.lists(st.text(alphabet="ab\n", min_size=1, max_size=5), max_size=4), st.lists(small, max_size=8))
def test_any_cut_gives_what_the_whole_gives(stops: list[str], pieces: list[str]) -> None:
    out, matched = run(stops, pieces)
    assert ("".join(out), matched) == naive(stops, "".join(pieces))


@given(st.lists(st.text(alphabet="ab", min_size=1, max_size=5), min_size=1, max_size=3), small)
def test_holds_back_only_what_could_become_a_stop_string(stops: list[str], text: str) -> None:
    matcher, shown = StopMatcher(stops), ""
    for length, character in enumerate(text, 1):
        piece, matched = matcher.push(character)
        shown += piece
        if matched:
            return
        assert len(shown) == length - holds_back(stops, text[:length])


@pytest.mark.parametrize(
    ("stops", "pieces", "expected"),
    [
        (["END"], ["text E", "N", "D more"], ["text ", "", ""]),
        (["\n\n"], ["a\n", "b\n", "\nc"], ["a", "\nb", ""]),
        (["aab"], ["aaa", "b"], ["a", ""]),
        (["bc", "abc"], ["xab", "c"], ["x", ""]),  # complete together: the longest
        (["bcd", "abcde"], ["abcde"], ["a"]),  # complete first, though the other begins earlier
        ([], ["abc"], ["abc", ""]),
    ],
)
def test_pieces(stops: list[str], pieces: list[str], expected: list[str]) -> None:
    assert run(stops, pieces)[0] == expected


def test_nothing_comes_out_after_the_match() -> None:
    matcher = StopMatcher(["."])
    assert matcher.push("one. two") == ("one", True)
    assert matcher.push("three") == ("", True)
    assert matcher.flush() == ""


def test_an_empty_stop_string_is_refused() -> None:
    with pytest.raises(BadOption, match="empty"):
        StopMatcher(["a", ""])
