"""Weights on the Hugging Face hub, read and pushed: `hf:OWNER/NAME[/FILE][@REVISION]`.

Cache, token, endpoint and offline mode are those of huggingface_hub (HF_HOME, HF_TOKEN,
HF_ENDPOINT, HF_HUB_OFFLINE). A repository that `fsq_jax.export --push` made says in its card what
each file's SHA-256 is, and a file of another one is refused.
"""

import os
from collections.abc import Mapping, Sequence
from types import ModuleType

import yaml

from fsq_jax.runtime import bounded, manifest
from fsq_jax.runtime.user_error import UserError

PREFIX = "hf:"
FORM = "hf:OWNER/NAME[/FILE][@REVISION]"
DEFAULT_FILES = ("model.safetensors", "model.msgpack", "model.npz")
CARD = "README.md"
_MAX_FRONT_MATTER = 1 << 18
SECTION = "fsq_jax"  # of the card's front matter: {"files": {name: SHA-256}} and facts


def local_path(path: str | os.PathLike) -> str:
    """The file on this machine that a path names: one of the hub is fetched, unless it is here.

    Raises:
      UserError: the hub has no such file, it can't be reached and the file isn't in the cache, or
        the file is not the one that the repository's card describes.
    """
    path = os.fspath(path)
    if not path.startswith(PREFIX):
        return path
    repository, file, revision = parse(path)
    names = (file,) if file else DEFAULT_FILES
    for name in names:
        found = _fetch(path, repository, name, revision)
        if found:
            _check(path, name, found, _fetch(path, repository, CARD, revision))
            return found
    listed = " or ".join(names)
    raise UserError(f"{path}: neither the hub nor the cache here has {listed} in {repository}.")


def parse(path: str) -> tuple[str, str, str | None]:
    """(OWNER/NAME, FILE or "", REVISION or None) of hf:OWNER/NAME[/FILE][@REVISION]."""
    place, at, revision = path.removeprefix(PREFIX).partition("@")
    parts = place.split("/", 2)
    if len(parts) < 2 or not all(parts) or (at and not revision):
        raise UserError(f"{path!r} is not of the form {FORM}.")
    return "/".join(parts[:2]), "/".join(parts[2:]), revision or None


def require() -> ModuleType:
    """The huggingface_hub library; a UserError that says what to install where it is missing."""
    try:
        import huggingface_hub.constants
        import huggingface_hub.errors
    except ImportError:
        raise UserError("The hub needs huggingface_hub; pip install 'fsq_jax[hub]'.") from None
    return huggingface_hub


def push(folder: str, files: Sequence[str], repository: str) -> str:
    """Puts files of a folder into a repository of the hub, made if need be; returns its address.

    Raises:
      UserError: the hub refuses, or can't be reached.
    """
    library = require()
    api = library.HfApi()
    try:
        repo_id = api.create_repo(repository, exist_ok=True).repo_id
        adds = [
            library.CommitOperationAdd(
                path_in_repo=name, path_or_fileobj=os.path.join(folder, name)
            )
            for name in files
        ]
        api.create_commit(repo_id, adds, commit_message=f"fsq_jax.export: {', '.join(files)}")
    except (library.errors.HfHubHTTPError, library.errors.HFValidationError, OSError) as error:
        raise UserError(f"{repository} on the hub: {_first_line(error)}") from error
    except library.errors.LocalTokenNotFoundError:
        raise UserError("The hub wants a token: set HF_TOKEN or run `hf auth login`.") from None
    return f"{library.constants.ENDPOINT}/{repo_id}"


def front_matter(facts: Mapping) -> str:
    """The YAML block that a card on the hub begins with."""
    return f"---\n{yaml.safe_dump(dict(facts), sort_keys=False, allow_unicode=True)}---\n\n"


def _fetch(path: str, repository: str, name: str, revision: str | None) -> str:
    """The cached copy of a file; "" where the repository has no such file."""
    library = require()
    errors = library.errors
    try:
        return library.hf_hub_download(repository, name, revision=revision)
    except errors.RevisionNotFoundError:
        raise UserError(f"{path}: {repository} has no revision {revision!r}.") from None
    except errors.GatedRepoError as error:
        raise UserError(f"{path}: {_first_line(error)}") from error
    except errors.RepositoryNotFoundError:
        raise UserError(
            f"{path}: there is no repository {repository} on the hub, or it is private and "
            "HF_TOKEN doesn't open it."
        ) from None
    except errors.LocalEntryNotFoundError:
        return ""  # offline or unreachable, and not in the cache
    except errors.EntryNotFoundError:
        return ""
    except (errors.HFValidationError, errors.HfHubHTTPError, OSError) as error:
        raise UserError(f"{path}: {_first_line(error)}") from error


def _check(path: str, name: str, file: str, card: str) -> None:
    """Raises a UserError where a card names another checksum for the file than it has."""
    expected = _checksums(path, card).get(name) if card else None
    if expected is None:
        return  # a repository of others
    found = manifest.sha256(file)
    if found != expected:
        raise UserError(
            f"{path}: {name} has the SHA-256 {found[:12]}…, and its card says {expected[:12]}…: "
            "it is damaged, or another file took its place."
        )


def _checksums(path: str, card: str) -> dict[str, str]:
    """{file: SHA-256} of a card's front matter; {} of a card that has none."""
    text = bounded.read_bytes(card, bounded.MAX_JSON).decode(errors="replace")
    parts = text.split("---\n", 2)
    if len(parts) < 3 or parts[0].strip():
        return {}
    if len(parts[1]) > _MAX_FRONT_MATTER:
        raise UserError(f"{path}: the card's front matter has {len(parts[1])} letters.")
    try:
        section = (yaml.safe_load(parts[1]) or {}).get(SECTION, {})
        sums = section.get("files", {}).items()
        # Text alone: what is made of aliases of aliases is never printed whole.
        return {name: value for name, value in sums if isinstance(value, str)}
    # The last three: a nesting, a date and a key that cannot be.
    except (yaml.YAMLError, AttributeError, RecursionError, ValueError, TypeError):
        if f"{SECTION}:" not in parts[1]:
            return {}
        raise UserError(f"{path}: the card's front matter can't be read as YAML.") from None


def _first_line(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0]
