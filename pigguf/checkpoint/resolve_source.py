"""Resolve what the user gave as a checkpoint or an adapter to a local directory.

A Path, and a string that exists on this disk or begins like a path (./, ../, /, ~), is a local directory.
A string OWNER/NAME or OWNER/NAME@REVISION is a repository on the Hugging Face hub, which hub_download.py
downloads into huggingface_hub's cache; the snapshot there is a directory like any other.

Which files a checkpoint and an adapter need: checkpoint.py and adapter.py. Not supported: files in a
repository's subfolders, and GGUF files.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from pigguf.errors import CheckpointError, HubError, MissingPackage
from pigguf.progress import Progress

DEFAULT_REVISION = "main"


@dataclass(frozen=True)
class HubRepo:
    """A hub repository at a revision.

    Attributes:
        repo_id: OWNER/NAME.
        revision: a branch, a tag or a commit.
    """

    repo_id: str
    revision: str = DEFAULT_REVISION

    def __str__(self) -> str:
        return self.repo_id if self.revision == DEFAULT_REVISION else f"{self.repo_id}@{self.revision}"


@dataclass(frozen=True)
class SourceFiles:
    """The files of a repository that a checkpoint or an adapter needs; no others are downloaded.

    Attributes:
        description: what the files are, with its article, for messages: "a checkpoint".
        config_files: names of small files; those that the repository has are downloaded.
        weight_layouts: alternatives, the preferred one first. Each is a tuple of regular expressions for
            file names: the layout applies if its first pattern matches a file, and then every file that
            matches one of its patterns is downloaded. An index (*.index.json) brings the shards that it
            names.
    """

    description: str
    config_files: tuple[str, ...]
    weight_layouts: tuple[tuple[str, ...], ...]


def resolve_source(source: str | os.PathLike[str], files: SourceFiles, progress: Progress) -> Path:
    """Return the local directory of a source, after downloading what is missing of a hub repository.

    Args:
        source: a directory, or OWNER/NAME or OWNER/NAME@REVISION.
        files: which files are needed.
        progress: reports the download, in bytes.

    Raises:
        CheckpointError: the string is not a valid name of a hub repository.
        HubError: the repository does not exist, access is refused, or the hub cannot be reached.
        MissingPackage: huggingface_hub is not installed.
        OutputError: the cache cannot be written, or its disk is full.
    """
    repo = parse_hub_repo(source)
    if repo is None:
        return Path(source)
    try:
        from pigguf.checkpoint import hub_download
    except ImportError as error:
        raise MissingPackage(
            f"{repo} is not a local directory, and downloading it from a hub needs huggingface_hub: {error}",
            'pip install -e ".[hub]" in the clone, or give a directory',
        ) from error
    except ValueError as error:  # huggingface_hub reads its settings on import
        raise HubError(
            f"{repo} cannot be downloaded: a setting of huggingface_hub is invalid: {error}",
            "check HF_ENDPOINT and the other HF_ variables",
        ) from error
    return hub_download.download_snapshot(repo, files, progress)


def parse_hub_repo(source: str | os.PathLike[str]) -> HubRepo | None:
    """Parse OWNER/NAME[@REVISION]; return None for a source that is a local path.

    Raises:
        CheckpointError: the revision after @ is missing or invalid.
    """
    if not isinstance(source, str) or os.path.lexists(source):
        return None
    repo_id, separator, revision = source.partition("@")
    owner, _, model = repo_id.partition("/")
    if owner[:1] in ("", ".", "~") or "/" in model or not model:
        return None
    if separator and (not revision or ".." in revision or revision != revision.strip(" /")):
        raise CheckpointError(
            f"{source}: {revision!r} after @ is not a revision", "give a branch, a tag or a commit after @"
        )
    return HubRepo(repo_id, revision or DEFAULT_REVISION)
