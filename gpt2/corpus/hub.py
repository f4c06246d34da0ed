"""Data sets on the Hugging Face hub, streamed row by row; nothing is stored here but what `datasets` keeps itself."""

from collections.abc import Iterator
from typing import Any

from gpt2.corpus.documents import Document
from gpt2.corpus.readers import Reading
from gpt2.errors import BadData, Unavailable

_SECONDS = 10


def read_hub(reading: Reading) -> Iterator[Document]:
    """The rows of `owner/name`, `owner/name:config` or `owner/name:config:split`; the split is `train` if not named."""
    name, config, split = ([*reading.where.split(":"), "", ""])[:3]
    for row in stream(name, config or None, split or "train"):
        reading.unit = "row"
        reading.number += 1
        yield from reading.record(row)
    reading.finish()


def check_hub(where: str) -> None:
    """One short attempt to reach the hub about a data set. Raises Unavailable.

    Streaming asks again and again, and says so, for half a minute: right in a long build, wrong for a mistyped path.
    """
    name = where.partition(":")[0]
    try:
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
    except ImportError:
        return  # `stream` says what is missing
    try:
        HfApi().dataset_info(name, timeout=_SECONDS)
    except OfflineModeIsEnabled:
        return  # there may be a copy here
    except Exception as error:
        # The library has changed the package that it asks through, and with it the errors of a network.
        if not isinstance(error, HfHubHTTPError) or error.response.status_code in (401, 404):
            raise _not_given(name, error) from None


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
        raise _not_given(name, error) from None
    except ValueError as error:
        raise BadData(f"{name} on the hub: {_first(error)}") from None


def _not_given(name: str, error: Exception) -> Unavailable:
    return Unavailable(f"{name} is no file or folder here, and the hub did not give it: {_first(error)}")


def _first(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
