"""What the Hub's client raises, as one line: what was expected, what came, what to do."""

from collections.abc import Iterator
from contextlib import contextmanager

from aim_mlx.errors import AimError, CheckpointError, OutputError


class Unreachable(CheckpointError):
    """The Hub did not answer, or not in a useful way: what is cached still serves."""


@contextmanager
def explained(repo: str, revision: str) -> Iterator[None]:
    """Turns whatever the client raises, also about senseless answers, into one of our errors."""
    try:
        yield
    except AimError:
        raise
    except Exception as error:
        raise _explanation(error, repo, revision) from error


def _explanation(error: Exception, repo: str, revision: str) -> AimError:
    from huggingface_hub import constants, errors

    if isinstance(error, errors.LocalEntryNotFoundError) and isinstance(error.__cause__, Exception):
        error = error.__cause__  # the client's own summary of a failed request
    page = f"{constants.ENDPOINT}/{repo}"
    login = "log in with 'hf auth login'"
    if isinstance(error, errors.GatedRepoError):
        return CheckpointError(f"{repo} is gated: accept its licence on {page}, then {login}")
    if isinstance(error, errors.RepositoryNotFoundError):
        return CheckpointError(
            f"no model repo {repo} on {constants.ENDPOINT}, or a private one: correct the name "
            f"(a folder here is ./{repo}), or {login}"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return CheckpointError(f"{repo} has no revision {revision}: see {page} for those it has")
    if isinstance(error, errors.HfHubHTTPError):
        return _answer(error.response.status_code, repo, page, login)
    if isinstance(error, errors.HTTPError):  # pyright: ignore[reportPrivateImportUsage]
        return Unreachable(
            f"{constants.ENDPOINT} cannot be reached for {repo} ({_kind(error)}): check the "
            "connection and run again; finished files are kept"
        )
    if isinstance(error, OSError) and error.errno is not None:
        return OutputError(
            f"{repo} cannot be stored in {constants.HF_HUB_CACHE} ({error.strerror}): make room "
            "there, or set HF_HOME to a folder on another disk"
        )
    return CheckpointError(
        f"the answers for {page} are not those of a model repo ({_kind(error)}): run again later"
    )


def _answer(status: int, repo: str, page: str, login: str) -> CheckpointError:
    """What an answer that is none of the Hub's known refusals means."""
    if status == 401:
        return CheckpointError(f"the Hub refused the access token for {repo} (401): {login}")
    if status == 403:
        return CheckpointError(
            f"access to {repo} is forbidden (403): accept its licence on {page}, then {login}"
        )
    if status == 429 or status >= 500:
        return Unreachable(
            f"the Hub cannot serve {repo} now (status {status}): run again later; finished files "
            "are kept"
        )
    return CheckpointError(f"expected the files of {repo}, got status {status}: see {page}")


def _kind(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:150]}".rstrip(": ")
