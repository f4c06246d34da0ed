"""Duplicates: what counts as one, against plain sets of runs of words and a graph library, and which one stays."""

import os
import random
import re
import subprocess
import sys

import numpy as np
import pytest
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from gpt2.corpus import duplicates

pytest.importorskip("rensa", reason="left out: it needs the extra `corpus`")

WORDS = [
    head + tail
    for head in ("ba", "ke", "lo", "mi", "nu", "pe", "ra", "si")
    for tail in ("lt", "nd", "rk", "sh", "mp", "x", "zz")
]


def text(seed: int, words: int = 300) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=words))


def changed(original: str, share: float, seed: int = 0) -> str:
    """A copy of which a share of the words are others, spread evenly."""
    source = random.Random(seed)
    words = original.split()
    for place in source.sample(range(len(words)), round(share * len(words))):
        words[place] = source.choice(WORDS)
    return " ".join(words)


def found(texts: list[str], threshold: float = 0.5) -> list[int]:
    """Which of the texts are near duplicates."""
    minima = duplicates.signatures([one.encode() for one in texts])
    bands = iter(duplicates.bands(minima))
    return np.flatnonzero(duplicates.near(len(texts), bands, lambda at: minima[at], threshold)).tolist()


def runs(one: str) -> set[tuple[str, ...]]:
    words = re.findall(r"[a-z0-9]+", one.lower())
    return {tuple(words[at : at + 3]) for at in range(len(words) - 2)}


def test_an_exact_duplicate_is_a_later_one():
    hashes = np.array([duplicates.digest(one) for one in (b"a", b"b", b"a", b"c", b"b", b"a")], np.uint64)
    assert np.flatnonzero(duplicates.exact(hashes)).tolist() == [2, 4, 5]


def test_a_digest_differs_in_either_half():
    hashes = np.array([[1, 1], [1, 2], [2, 1], [1, 1]], np.uint64)
    assert duplicates.exact(hashes).tolist() == [False, False, False, True]


def test_the_estimate_is_the_share_of_runs_of_words_in_common():
    one = text(1, 3000)
    others = [changed(one, share, seed=7) for share in (0, 0.01, 0.03, 0.1, 0.3)] + [text(2, 3000)]
    minima = duplicates.signatures([other.encode() for other in [one, *others]])
    for other, row in zip(others, minima[1:], strict=True):
        true = len(runs(one) & runs(other)) / len(runs(one) | runs(other))
        # Four standard deviations of 128 draws.
        assert abs((row == minima[0]).mean() - true) <= 4 * np.sqrt(max(true * (1 - true), 1e-9) / 128) + 1e-9


def test_the_later_of_two_like_texts_goes():
    one, other = text(1), text(2)
    assert found([one, other, changed(one, 0.01), changed(other, 0.01), text(3)]) == [2, 3]


def test_what_only_resembles_stays():
    one = text(1)
    assert found([one, changed(one, 0.3), text(2)]) == []


def test_the_threshold_decides():
    one = text(1, 2000)
    other = changed(one, 0.08)
    assert found([one, other], threshold=0.5) == [1]
    assert found([one, other], threshold=0.8) == []


def test_case_and_punctuation_do_not_count():
    one = text(1)
    assert found([one, one.upper().replace(" ", ", ") + "!"]) == [1]


def test_a_chain_leaves_its_first():
    """a is like b and b like c, but a not like c: one group all the same."""
    words = text(1, 700).split()
    chain = [" ".join(words[at : at + 400]) for at in (0, 75, 150, 225)]
    assert found(chain) == [1, 2, 3]
    assert found([chain[0], chain[3]]) == []


@pytest.mark.parametrize("short", ["", "one", "one two", "!?", "。。。"])
def test_short_texts_are_like_themselves_alone(short):
    assert found([short, "something else", short]) == [2]


def test_scripts_without_spaces_are_compared_by_characters():
    source = random.Random(0)
    letters = [chr(0x4E00 + number) for number in range(2000)]
    one = "".join(source.choices(letters, k=2000))
    near = one[:1000] + "新" + one[1001:]
    other = "".join(source.choices(letters, k=2000))
    assert found([one, other, near]) == [2]


def test_any_bytes_have_a_signature():
    assert duplicates.signatures([b"\xff\xfe" * 50, b"\x00", b""]).shape == (3, 128)


def test_signatures_are_the_same_in_every_process():
    code = (
        "from gpt2.corpus import duplicates; m = duplicates.signatures([b'the same words in every process', b'x']);"
        "print(m.tolist(), duplicates.bands(m).tolist())"
    )
    out = {
        subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    minima = duplicates.signatures([b"the same words in every process", b"x"])
    assert out == {f"{minima.tolist()} {duplicates.bands(minima).tolist()}\n"}


@pytest.mark.parametrize("seed", range(30))
def test_groups_are_those_of_a_graph_library(seed):
    """Documents that share a band's number are joined; what shares none is not."""
    random_numbers = np.random.default_rng(seed)
    numbers = np.tile(np.arange(40, dtype=np.uint64), (32, 1))
    numbers[:3] = random_numbers.integers(0, random_numbers.integers(5, 60), (3, 40))
    minima = np.zeros((40, 128), np.uint32)
    dropped = duplicates.near(40, list(numbers), lambda at: minima[at], 0.7)
    pairs = [(a, b) for row in numbers[:3].tolist() for a in range(40) for b in range(a) if row[a] == row[b]]
    edges = np.array(pairs, int).reshape(-1, 2)
    graph = coo_matrix((np.ones(len(edges)), (edges[:, 0], edges[:, 1])), shape=(40, 40))
    _, groups = connected_components(graph, directed=False)
    _, firsts = np.unique(groups, return_index=True)
    assert np.flatnonzero(~dropped).tolist() == sorted(firsts.tolist())
