"""Data sets on the Hugging Face hub, streamed row by row; nothing is stored here but what `datasets` keeps itself."""

from collections.abc import Iterator
from typing import Any

from gpt2.corpus.documents import Document
from gpt2.corpus.readers import Reading
from gpt2.errors import BadData, Unavailable


def read_hub(reading: Reading) -> Iterator[Document]:
    """The rows of `owner/name`, `owner/name:config` or `owner/name:config:split`; the split is `train` if not named."""
    name, config, split = ([*reading.where.split(":"), "", ""])[:3]
    for row in stream(name, config or None, split or "train"):
        reading.unit = "row"
        reading.number += 1
        yield from reading.record(row)
    reading.finish()


def stream(name: str, config: str | None, split: str) -> Iterator[dict[str, Any]]:
    """The rows of a data set. Raises Unavailable, BadData."""
    try:
        import datasets
    except ImportError:
        raise Unavailable(
            f"{name} is no file or folder here; reading it from the hub needs datasets: install the extra `corpus`."
        ) from None
    try:
        yield from datasets.load_dataset(name, config, split=split, streaming=True)
    except (OSError, datasets.exceptions.DatasetsError) as error:
        # No network, no such data set, no access: the library's first line says which.
        raise Unavailable(f"{name} is no file or folder here, and the hub did not give it: {_first(error)}") from None
    except ValueError as error:
        raise BadData(f"{name} on the hub: {_first(error)}") from None


def _first(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
