"""Availability of models on the Hugging Face hub, checked with a short time limit."""

from __future__ import annotations

from pathlib import Path

from coterie.errors import ModelError

TIMEOUT_S = 10.0
"""Limit of the one request. Loading itself retries for more than a minute where there is no network."""


def locate(name: str, revision: str | None = None) -> str:
    """The id itself when the hub has it; without a network, the folder of the copy in the hub's cache.

    Args:
        name: `owner/name`.
        revision: branch, tag or commit; None is the default branch.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        get_hf_file_metadata(hf_hub_url(name, "config.json", revision=revision), timeout=TIMEOUT_S)
    except HFValidationError as error:
        raise ModelError(f"{name!r} is not a model id: {_first_line(error)}; expected owner/name") from error
    except GatedRepoError as error:
        raise ModelError(
            f"the model {name!r} is gated: accept its licence on the hub's page of the model, then log in with "
            "`hf auth login` or set HF_TOKEN"
        ) from error
    except RepositoryNotFoundError as error:
        raise ModelError(
            f"the Hugging Face hub has no model {name!r}; check owner and name, or log in with `hf auth login` when it "
            "is private"
        ) from error
    except RevisionNotFoundError as error:
        raise ModelError(
            f"the model {name!r} has no revision {revision!r}; expected a branch, tag or commit (model.revision)"
        ) from error
    except EntryNotFoundError:  # an adapter's repository: loading says what it lacks
        return name
    except HfHubHTTPError as error:
        if error.response is not None and error.response.status_code < 500:
            return name
        return _cached(name, revision, error)
    except OSError as error:
        return _cached(name, revision, error)
    except Exception as error:
        if not type(error).__module__.startswith(("httpx", "httpcore", "requests")):
            raise
        return _cached(name, revision, error)
    return name


def _cached(name: str, revision: str | None, error: Exception) -> str:
    """Folder of the copy in the hub's cache."""
    from huggingface_hub import snapshot_download

    try:
        folder = snapshot_download(name, revision=revision, local_files_only=True)
    except (OSError, ValueError):
        folder = None
    if folder is not None and (Path(folder) / "config.json").is_file():
        return str(folder)
    raise ModelError(
        f"the model {name!r} is not in the hub's cache, and the Hugging Face hub cannot be reached "
        f"({_first_line(error)}); check the network and HF_HUB_OFFLINE, or name a local model folder or an asset "
        "(`coterie assets ls`)"
    ) from error


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), "") or type(error).__name__
