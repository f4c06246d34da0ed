"""Fetches a model from the Hugging Face hub by its name, through `huggingface_hub` and into its cache.

Only what is needed: the config, the tokenizer's files, and one kind of weights. `HF_HUB_OFFLINE`, `HF_HOME`,
`HF_ENDPOINT` and tokens mean what they mean to `huggingface_hub`. What comes back is a folder; reading it is not
this file's business.
"""

from __future__ import annotations

import warnings
from pathlib import Path

from gpt2.checkpoint.huggingface import CONFIG, TOKENIZER, WEIGHTS, read_config, shards
from gpt2.errors import BadCheckpoint, Unavailable

# The small files. Tokenizers written by others may keep their control tokens in the last three.
_SMALL = (
    CONFIG,
    "generation_config.json",
    *TOKENIZER,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)

_INSTEAD = "download it where there is a network and pass its folder's path, or take the model that ships, bookworm"


def fetch(name: str, revision: str | None = None, *, weights: bool = True) -> Path:
    """The folder in the hub's cache that holds a model (`owner/name`), fetched now as far as it is not there yet.

    weights: False fetches the config and the tokenizer's files alone.

    Shows huggingface_hub's progress bars. Where the hub cannot be reached, a model that was fetched before is used.

    Raises Unavailable, with what to do, when it can be had neither way; BadCheckpoint for a repository with another
    kind of model (found out before any weights are fetched).
    """
    from huggingface_hub import HfApi, constants, snapshot_download
    from huggingface_hub.errors import RevisionNotFoundError

    # Any failure inside huggingface_hub is a model that cannot be had; its exceptions changed with every major version.
    try:
        # With a time limit: a network that swallows everything should not hold up a model that is in the cache.
        info = HfApi().model_info(name, revision=revision, timeout=constants.HF_HUB_ETAG_TIMEOUT)
        files = [entry.rfilename for entry in info.siblings or []]
    except RevisionNotFoundError as error:
        raise Unavailable(_reason(name, revision, error)) from error
    except Exception as error:
        return _cached(name, revision, error, weights)
    weights_file = next((file for file in WEIGHTS if file in files), None)
    for wanted, found in ((CONFIG, CONFIG in files), ("weights", weights_file)):
        if not found:
            looked = f" (looked for {', '.join(WEIGHTS)})" if wanted == "weights" else ""
            raise BadCheckpoint(f"{name} on the hub has no {wanted}{looked}, so it is no model that can be read here.")
    assert weights_file is not None
    try:
        small = [*_SMALL, weights_file] if weights_file.endswith(".json") else [*_SMALL]
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=small))
        _check_kind(folder, name)
        if not weights:
            return folder
        heavy = list(shards(folder / weights_file)) if weights_file.endswith(".json") else [weights_file]
        return Path(snapshot_download(name, revision=revision, allow_patterns=heavy))
    except BadCheckpoint:
        raise
    except Exception as error:
        raise Unavailable(_reason(name, revision, error)) from error


def _check_kind(folder: Path, name: str) -> None:
    """Refuses another architecture before gigabytes of it are fetched; notices can wait until it is read."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            read_config(folder)
        except BadCheckpoint as error:
            raise BadCheckpoint(f"{name} on the hub cannot be run: {error}") from None


def _cached(name: str, revision: str | None, error: Exception, weights: bool) -> Path:
    """What the cache has, if it has all of it; else Unavailable for the error that stood in the way of the hub."""
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=[CONFIG], local_files_only=True))
    except Exception:
        raise Unavailable(_reason(name, revision, error)) from error
    found = next((file for file in WEIGHTS if (folder / file).is_file()), None)
    if found and found.endswith(".json") and not all((folder / file).is_file() for file in shards(folder / found)):
        found = None
    if not weights:
        found = next((file for file in TOKENIZER if (folder / file).is_file()), None)
    if not found or not (folder / CONFIG).is_file():
        raise Unavailable(f"Only a part of {name} was fetched before: {_reason(name, revision, error)}") from error
    return folder


def _reason(name: str, revision: str | None, error: Exception) -> str:
    """One sentence for a failure: what it was, and what to do."""
    from huggingface_hub import errors

    status = getattr(getattr(error, "response", None), "status_code", None)
    match error:
        case errors.OfflineModeIsEnabled():
            return f"{name} is not in the cache and HF_HUB_OFFLINE forbids fetching it; unset that, or {_INSTEAD}."
        case errors.GatedRepoError():
            return (
                f"{name} is gated: its owner must grant you access on its page on the hub; "
                "ask there, then log in with `hf auth login`."
            )
        case errors.RevisionNotFoundError():
            return f"{name} has no revision {revision!r} on the hub; give a branch, a tag or a full commit hash of it."
        case errors.RepositoryNotFoundError():
            return (
                f"There is no model {name} on the hub, or it is private; check the name, log in with `hf auth login`, "
                "or give a path with ./ in front."
            )
        case errors.HFValidationError():
            return f"{name} is no name that the hub allows; give owner/name, or a path with ./ in front."
    if isinstance(error, OSError) and error.filename is not None:
        return f"{name} could not be put into the hub's cache ({error.strerror}: {error.filename})."
    if status is not None:
        return f"The hub answered {status} when asked for {name}; try again later, or {_INSTEAD}."
    return f"{name} could not be fetched from the hub ({type(error).__name__}); {_INSTEAD}."
