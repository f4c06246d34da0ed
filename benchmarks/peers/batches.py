"""Ragged streams for programs without continuous batching: the fairest static batches. Standard library only."""

from collections.abc import Callable

from benchmarks.peers.protocol import END

Decode = Callable[[list[list[int]], int], list[list[int]]]


def by_length(decode: Decode, prompts: list[list[int]], tokens: list[int], slots: int) -> list[list[int]]:
    """Sorts texts by how many tokens they want, decodes `slots` at a time to the longest, and cuts the rest off.

    Sorting needs to know the lengths beforehand, which no server does: it favours the peer.
    """
    order = sorted(range(len(prompts)), key=lambda i: tokens[i])
    answers: dict[int, list[int]] = {}
    for start in range(0, len(order), slots):
        batch = order[start : start + slots]
        ids = decode([prompts[i] for i in batch], max(tokens[i] for i in batch))
        answers |= {i: row[: tokens[i]] for i, row in zip(batch, ids, strict=True)}
    return [answers[i] for i in range(len(prompts))]


def left_padded(prompts: list[list[int]]) -> tuple[list[list[int]], list[list[int]]]:
    """Prompts as rows of one length, end of text before the short ones, and a mask: 1 where a token is text."""
    width = max(map(len, prompts))
    return (
        [[END] * (width - len(prompt)) + prompt for prompt in prompts],
        [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts],
    )
