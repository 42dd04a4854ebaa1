"""The hub: which commit a name means, and one message for each way it can refuse. No torch here."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from vlmtune.catalog import nearest_ids
from vlmtune.errors import VlmtuneError


class OutOfReach(VlmtuneError):
    """The hub cannot be reached, and what is asked for is not in the cache."""


MODEL, DATA = "model.name", "data.train_path"
"""Keys of the config that name what is on the hub; of data sets whichever key it was."""


def pinned_commit(name: str, revision: str | None, key: str = MODEL) -> str:
    """Return the commit that a branch or tag of a hub model, or data set, stands for.

    Where there is no hub it is the last known one.

    Raises:
        VlmtuneError: the hub refuses, or cannot be reached and what is asked for is not in the cache.
    """
    from huggingface_hub import HfApi

    kind = None if key == MODEL else "dataset"
    with hub_errors(name, revision, key):
        return HfApi().resolve_revision(name, revision=revision, repo_type=kind).resolved


@contextmanager
def hub_errors(name: str, revision: str | None, key: str = MODEL) -> Iterator[None]:
    """Turn what the hub library raises into one message each."""
    from huggingface_hub import errors

    try:
        yield
    except errors.GatedRepoError as error:
        raise _gated(name, key, error.response.status_code) from None
    except errors.RepositoryNotFoundError:
        what = "neither a folder nor a hub model is" if key == MODEL else "no data set of the hub is"
        hint = f"check the spelling of the hub id; if it is private, run `hf auth login`{_nearest(name, key)}"
        raise VlmtuneError(f"{key}: {what} called {name}", hint) from None
    except errors.HFValidationError:
        raise VlmtuneError(f"{name} is neither a folder nor a hub id", "a hub id is org/model") from None
    except errors.RevisionNotFoundError:
        where = "model.revision" if key == MODEL else key
        raise VlmtuneError(f"{where}: {name} has no revision {revision}", "see its branches and tags") from None
    except (errors.RevisionResolutionError, errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled):
        raise _out_of_reach(name, key) from None
    except errors.HfHubHTTPError as error:
        raise _refused(name, key, error.response.status_code) from None
    except (errors.HTTPError, errors.FileMetadataError):
        raise _out_of_reach(name, key) from None
    except OSError as error:
        if error.errno is None:
            raise
        raise _cannot_keep(name, error) from None


def _cannot_keep(name: str, error: OSError) -> VlmtuneError:
    """Return what the system says of the hub's cache."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return VlmtuneError(
            f"the disk is full: a file of {name} could not be written",
            "make room and run the command again: what has arrived is kept. Or set HF_HOME to a larger disk",
        )
    where = error.filename or "its folder"
    return VlmtuneError(f"the hub's cache cannot be used: {where}: {error.strerror}", "set HF_HOME to another folder")


def page_of(name: str, key: str = MODEL) -> str:
    """Return the address of a model's or data set's page."""
    from huggingface_hub import constants

    return f"{constants.ENDPOINT}/{'' if key == MODEL else 'datasets/'}{name}"


def _gated(name: str, key: str, status: int) -> VlmtuneError:
    """401: nobody is logged in. 403: the account has not accepted the licence, or its token may not read."""
    log_in = "" if status == 403 else ", then log in: hf auth login"
    return VlmtuneError(
        f"{key}: {name} is gated: its licence must be accepted first"
        + (" by the account that is logged in" if status == 403 else ""),
        f"accept it at {page_of(name, key)}{log_in}",
    )


def _refused(name: str, key: str, status: int) -> VlmtuneError:
    if status in (401, 403):
        return VlmtuneError(
            f"{key}: the hub does not let this account read {name} (HTTP {status})",
            f"accept its licence at {page_of(name, key)} if it has one, then log in with a token that may read it: "
            "hf auth login",
        )
    waits = "it limits how often you ask: wait some minutes" if status == 429 else "try again later"
    return VlmtuneError(f"{key}: the hub refused {name} (HTTP {status})", waits)


def _out_of_reach(name: str, key: str) -> OutOfReach:
    what = "model" if key == MODEL else "rows"
    return OutOfReach(
        f"{key}: {name} is not in the local cache and the hub cannot be reached",
        f"check the connection, or give the path of a folder with the {what}{_nearest(name, key)}",
    )


def _nearest(name: str, key: str) -> str:
    """Words for the end of a hint: ids of the catalogue that look like `name`."""
    ids = [near for near in nearest_ids(name) if key == MODEL and near.lower() != name.lower()]
    return f"; known models with a similar name: {', '.join(ids)}" if ids else ""
