"""Numbers as people read them, for what a run and a plan say. No torch here."""

import math


def counted(number: int, thing: str) -> str:
    """So many of a thing: "1 shard", "1,200 shards"."""
    return f"{number:,} {thing}{'s' * (number != 1)}"


def figure(value: float, digits: int = 3) -> str:
    """A number with so many digits that say something, and never an exponent: "0.00001", "99.6", "1,234"."""
    if not value:
        return "0"
    places = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    text = f"{value:,.{places}f}"
    return text.rstrip("0").rstrip(".") if places else text


def of_the_data(epochs: float) -> str:
    """How much of the data is read, or how often: "12 % of the data", "the data 3.5 times"."""
    if epochs < 1:
        return f"{figure(100 * epochs)} % of the data"
    times = f"{epochs:,.{0 if epochs >= 10 else 1}f}"
    return "the data once" if times == "1.0" else f"the data {times} times"
