"""Windows over a long row of ids: one rule, for the loss on the way of training and for perplexity afterwards.

Every id but the first is scored once, each window scoring those that the one before it did not reach. Windows follow
each other until one reaches the end; the last may be shorter. Nothing here reads an id.
"""


def window_count(length: int, window: int, stride: int) -> int:
    """How many windows it takes to score a row of `length` ids; none for fewer than two.

    window: ids that are read at once; stride: how far windows move, from 1 to `window`.
    """
    return -(-max(0, length - 1 - window) // stride) + 1 if length > 1 else 0


def window_span(number: int, length: int, window: int, stride: int) -> tuple[int, int, int]:
    """Window `number`, from 0: where it begins, the first id that it scores, and where it ends (behind its last id).

    It reads all its ids but the last.
    """
    start = number * stride
    return start, start + 1 + (window - stride if number else 0), min(length, start + window + 1)
