"""Where a checkpoint or an adapter lies: the directory that is given, or what a hub keeps under its name.

A str OWNER/NAME or OWNER/NAME@REVISION that is nothing on this disk is a hub's; a Path never is, and
neither is ./OWNER/NAME. What is fetched lies in huggingface_hub's own cache, and is a directory
like any other.

Left out: which files a checkpoint (directory.py) and an adapter (adapter.py) have; files in a
repository's folders, GGUF files, fetching no more than headers for a dry run.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from pigguf.errors import CheckpointError, HubError, MissingPackage
from pigguf.progress import Progress

DEFAULT_REVISION = "main"


@dataclass(frozen=True)
class HubName:
    """A repository of a hub at a branch, a tag or a commit."""

    repository: str
    revision: str = DEFAULT_REVISION

    def __str__(self) -> str:
        marked = self.revision != DEFAULT_REVISION
        return f"{self.repository}@{self.revision}" if marked else self.repository


@dataclass(frozen=True)
class Kind:
    """What is taken from a repository: the files that are read here, and no others.

    Attributes:
        name: what such a directory is called.
        settings: the small files, those of them that there are.
        weights: forms of weights, as patterns of file names; of the first form whose first pattern fits a
            file every file is taken. An index (*.index.json) brings the files that it names.
    """

    name: str
    settings: tuple[str, ...]
    weights: tuple[tuple[str, ...], ...]


def directory_of(source: str | os.PathLike[str], kind: Kind, progress: Progress) -> Path:
    """The directory of a source; a hub's is fetched first, as far as it is not in the cache.

    Raises:
        CheckpointError: a name that no hub can have.
        HubError: the hub has no such thing, gives it to others only, or cannot be reached.
        MissingPackage: huggingface_hub is not installed.
        OutputError: the cache cannot be written, or its disk is full.
    """
    name = hub_name(source)
    if name is None:
        return Path(source)
    try:
        from pigguf.checkpoint import hub
    except ImportError as error:
        raise MissingPackage(
            f"{name} is no directory here, and fetching it from a hub needs huggingface_hub: {error}",
            'pip install -e ".[hub]" in the clone, or give a directory',
        ) from error
    except ValueError as error:  # the library reads its settings when it is imported
        raise HubError(
            f"{name} cannot be fetched: huggingface_hub does not take its settings: {error}",
            "see to HF_ENDPOINT and the other HF_ variables",
        ) from error
    return hub.fetch(name, kind, progress)


def hub_name(source: str | os.PathLike[str]) -> HubName | None:
    """The hub's name that a source is, or None for a path.

    Raises:
        CheckpointError: nothing, or what no revision is called, follows its @.
    """
    if not isinstance(source, str) or os.path.lexists(source):
        return None
    repository, marked, revision = source.partition("@")
    owner, _, model = repository.partition("/")
    if owner[:1] in ("", ".", "~") or "/" in model or not model:
        return None
    if marked and (not revision or ".." in revision or revision != revision.strip(" /")):
        raise CheckpointError(
            f"{source}: {revision!r} after @ is no revision", "give a branch, a tag or a commit after @"
        )
    return HubName(repository, revision or DEFAULT_REVISION)
