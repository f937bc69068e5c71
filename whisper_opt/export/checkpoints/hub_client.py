"""Requests to the Hugging Face hub, through its client ``huggingface_hub``.

One listing says which files a model has and what their hashes are. Files are then fetched one by
one into the client's cache and compared with the listing: the client itself compares sizes only.

What the client does, by its version: all ask once for a listing, without a limit of time unless one
is given. If a connection breaks off during a transfer, 0.34 and 1.8 raise an error, keep what has
arrived, and go on there in the next call. 2.4 goes on by itself, five times in a row without
progress, and then removes what has arrived. 2.4 asks up to six times for the headers of a file, in
23 s.
"""

from __future__ import annotations

import errno
import hashlib
import importlib
import logging
import os
import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Union

from whisper_opt.core.errors import BackendUnavailable, CheckpointError
from whisper_opt.core.remedies import install_hint

__all__ = ["Hub", "Listed", "Listing", "check_cached", "is_commit"]

_log = logging.getLogger(__name__)

_TIMEOUTS = (5.0, 10.0, 20.0)
"""Seconds that the hub has to send a listing, in the first attempt and in later ones."""
_PAUSE = 1.0
"""Seconds between two attempts."""
_TRANSFERS = 3
"""How often a transfer is tried if it breaks off."""
_SLOW = {"ReadTimeout", "ReadError", "RemoteProtocolError", "ChunkedEncodingError"}
"""Exceptions of the client's HTTP libraries after which the same request may succeed."""
_BUSY = {408, 429, 500, 502, 503, 504}
_DISK = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS),
    *(errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST),
}
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


class Listed(NamedTuple):
    """What the hub says of a file.

    Attributes:
        size: bytes; None if unknown.
        sha256: of the contents, for a file of Git LFS; None for others.
        blob: Git's hash of the contents (SHA-1), for others; None if unknown.
    """

    size: Union[int, None] = None
    sha256: Union[str, None] = None
    blob: Union[str, None] = None


class Listing(NamedTuple):
    """The files of a model at one commit."""

    commit: str
    files: Mapping[str, Listed]


def is_commit(revision: str | None) -> bool:
    """Whether a revision is a whole commit, which no branch can change."""
    return revision is not None and _COMMIT.fullmatch(revision) is not None


class Hub:
    """One model of the hub.

    Attributes:
        name: hub id.
        revision: branch, tag or commit; None: the default branch.
    """

    def __init__(self, name: str, revision: str | None) -> None:
        """Import the client.

        Raises:
            BackendUnavailable: huggingface_hub is not installed.
        """
        self.name, self.revision = name, revision
        try:
            self._client: Any = importlib.import_module("huggingface_hub")
        except ImportError as error:
            raise BackendUnavailable(
                f"{name!r} is not a local path, and fetching it from the Hugging Face hub needs"
                f" huggingface_hub: {install_hint('hf')}"
            ) from error

    def ask(self) -> Listing | CheckpointError:
        """The listing of the revision; or the error to raise if no copy of the model is at hand.

        A host that cannot be reached is asked once, a slow or busy one several times.

        Raises:
            CheckpointError: there is no such revision.
        """
        failure = None
        for timeout in _TIMEOUTS:
            if failure is not None:
                time.sleep(_PAUSE)
            answer = self._ask_once(timeout)
            if isinstance(answer, Listing):
                return answer
            failure = self.explain(answer)
            failure.__cause__ = answer
            if "RevisionNotFoundError" in _kinds(answer):
                raise failure
            if not _may_pass(answer):
                break
        assert failure is not None
        return failure

    def _ask_once(self, timeout: float) -> Listing | Exception:
        try:
            info = self._client.HfApi().model_info(
                self.name, revision=self.revision, files_metadata=True, timeout=timeout
            )
            return Listing(str(info.sha), {f.rfilename: _listed(f) for f in info.siblings})
        except Exception as error:  # of the client's HTTP library, or an answer of another form
            return error

    def snapshot(self, revision: str | None) -> Path | None:
        """Directory of a revision in the client's cache, whole or not; None if there is none."""
        for name in ("config.json", "adapter_config.json"):
            try:
                path = self._client.try_to_load_from_cache(self.name, name, revision=revision)
            except ValueError:  # the client refuses the name; asking the hub says why
                return None
            if isinstance(path, str):
                return Path(path).parent
        return None

    def fetch(self, name: str, listing: Listing) -> Path:
        """Fetch a file into the client's cache, unless it is there; its contents are compared.

        Raises:
            CheckpointError: it cannot be fetched, or differs from the listing. It is not kept then.
        """
        expected = listing.files[name]
        while True:
            known = self._client.try_to_load_from_cache(self.name, name, revision=listing.commit)
            path = self._download(name, listing.commit)
            found = _difference(path, expected)
            if found is None:
                return path
            try:
                _discard(path)
            except OSError as error:
                raise CheckpointError(
                    f"{path} is damaged ({found}) and cannot be removed: {error.strerror}"
                ) from error
            if not isinstance(known, str):  # a damaged file of the cache is fetched again
                raise CheckpointError(
                    f"{name} of {self.name!r} ({listing.commit}) arrived damaged: {found}; it was"
                    " not kept: try again. If that does not help, a proxy or mirror changes files"
                    f" on their way: {self._elsewhere(listing.commit)}"
                )
            _log.warning("%s in the client's cache: %s; fetching it again", path, found)

    def _download(self, name: str, commit: str) -> Path:
        """Path of a file in the client's cache; a transfer that broke off is tried again."""
        for left in reversed(range(_TRANSFERS)):
            try:
                return Path(self._client.hf_hub_download(self.name, name, revision=commit))
            except Exception as error:  # includes errors of the client's HTTP library
                if not left or not _may_pass(error):
                    raise self.explain(error, name, commit) from error
            time.sleep(_PAUSE)
        raise AssertionError("unreachable")

    def record(self, listing: Listing, name: str) -> None:
        """Record the commit of a branch or tag in the client's cache, for use without a network.

        The client does so when a file is fetched by branch or tag; ``name`` is that of a small one.
        """
        if self.revision == listing.commit:
            return
        try:
            self._client.hf_hub_download(self.name, name, revision=self.revision)
        except Exception as error:  # includes errors of the client's HTTP library
            raise self.explain(error, name, listing.commit) from error

    def missing(self) -> CheckpointError:
        """The error to raise if the network may not be used and no copy is in the cache."""
        return CheckpointError(
            f"{self._what()}: local_files_only is set, and there is no whole copy of it in the"
            f" client's cache: leave local_files_only out, or {self._elsewhere()}"
        )

    def explain(
        self, error: Exception, file: str | None = None, commit: str | None = None
    ) -> CheckpointError:
        """An error of the client in words of this package.

        Args:
            error: what the client raised.
            file: what was being fetched; None: the listing.
            commit: of the revision, if known.
        """
        what = self._what(file)
        causes = list(_causes(error))
        kinds = set().union(*map(_kinds, causes))
        status = next((found for found in map(_status, causes) if found is not None), None)
        detail = _detail(causes)
        if "OfflineModeIsEnabled" in kinds:
            reason = "its client is offline (HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE is set)"
            return CheckpointError(f"{what}: {reason}; {self._elsewhere(commit)}")
        if "GatedRepoError" in kinds:
            reason = "access is restricted; accept its terms and log in with `hf auth login`"
        elif "RevisionNotFoundError" in kinds:
            reason = f"it has no revision {self.revision!r}; give a branch, tag or commit of it"
        elif any(_is_missing_file(each) for each in causes):
            reason = "the hub lists this file, but does not have it; try another revision"
        elif "RepositoryNotFoundError" in kinds:
            reason = "no such model; check the spelling (log in if it is private)"
        elif status is not None:
            reason = _answer(status, detail)
        elif "HFValidationError" in kinds:
            reason = f"this is not the form of a hub id: {detail}"
        elif any(isinstance(each, OSError) and each.errno in _DISK for each in causes):
            reason = f"{detail}; free space, or name another cache directory by HF_HUB_CACHE"
        else:
            return CheckpointError(
                f"{what} ({detail}); check the network, or {self._elsewhere(commit)}"
            )
        return CheckpointError(f"{what}: {reason}")

    def _what(self, file: str | None = None) -> str:
        name = repr(self.name) if self.revision is None else repr(f"{self.name}@{self.revision}")
        verb = "could not be fetched from the Hugging Face hub"
        if file is not None:
            return f"{file} of {name} {verb}"
        return f"{name} is not a local path and {verb}"

    def _elsewhere(self, commit: str | None = None) -> str:
        """What to do on a machine with a network."""
        revision = commit or self.revision
        option = f" --revision {revision}" if revision else ""
        return (
            f"fetch it on another machine: `hf download {self.name}{option} --local-dir DIR`, copy"
            " DIR, and pass it in place of the name (Whisper.load('DIR')); or load the name there"
            " and copy its engine cache, the directory that WHISPER_OPT_CACHE names"
        )


def check_cached(path: Path) -> None:
    """Compare a file of the client's cache with the hash that its link to a blob has as name.

    Raises:
        CheckpointError: it is damaged.
    """
    if not path.is_symlink():  # a file system without links: the hash is not known
        return
    name = os.path.basename(os.readlink(path))
    if _SHA256.fullmatch(name):
        expected = Listed(sha256=name)
    elif is_commit(name):  # Git's hashes of files have the same form
        expected = Listed(blob=name)
    else:
        return
    found = _difference(path, expected)
    if found is not None:
        raise CheckpointError(
            f"{path} is damaged: {found}; remove it and load the model with a network"
        )


def _listed(file: Any) -> Listed:
    lfs = file.lfs
    return Listed(file.size, lfs.sha256, None) if lfs else Listed(file.size, None, file.blob_id)


def _kinds(error: BaseException) -> set[str]:
    """Names of the classes of an exception: those of the client's HTTP library vary."""
    return {kind.__name__ for kind in type(error).__mro__}


def _answer(status: int, detail: str) -> str:
    """An answer of the server that has no other meaning than its status."""
    if status in (401, 403):
        return f"access was denied ({detail}); log in with `hf auth login`, or check HF_TOKEN"
    if status in _BUSY:
        return f"the hub answered {status} ({detail}); try again later"
    return f"the server answered {status} ({detail}); check HF_ENDPOINT and proxies"


def _may_pass(error: BaseException) -> bool:
    """Whether the same request may succeed soon; not for what the client has tried again itself."""
    return bool(_kinds(error) & _SLOW) or _status(error) in _BUSY


def _is_missing_file(error: BaseException) -> bool:
    kinds = _kinds(error)  # the client's "local" error says only that no copy is at hand
    return "EntryNotFoundError" in kinds and "LocalEntryNotFoundError" not in kinds


def _status(error: BaseException) -> int | None:
    status = getattr(getattr(error, "response", None), "status_code", None)
    return status if isinstance(status, int) else None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An exception and those that it was raised from."""
    while error is not None:
        yield error
        error = error.__cause__


def _detail(causes: list[BaseException]) -> str:
    """The innermost exception that says something, on one line."""
    for error in reversed(causes):
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        if lines:
            return f"{type(error).__name__}: {lines[0].rstrip('.')}"
    return type(causes[-1]).__name__


def _difference(path: Path, expected: Listed) -> str | None:
    """How a file differs from what the hub says of it; None if it does not."""
    size = path.stat().st_size
    if expected.size is not None and size != expected.size:
        return f"it has {size} bytes, expected {expected.size}"
    wanted = expected.sha256 or expected.blob
    if wanted is None:
        return None
    if expected.sha256 is not None:
        kind, digest = "sha256", hashlib.sha256()
    else:  # as Git computes it: git-scm.com/book/en/v2/Git-Internals-Git-Objects
        kind, digest = "Git hash", hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    with path.open("rb") as stream:
        for block in iter(lambda: stream.read(1 << 20), b""):
            digest.update(block)
    found = digest.hexdigest()
    return None if found == wanted else f"its {kind} is {found}, expected {wanted}"


def _discard(path: Path) -> None:
    """Remove a file of the client's cache, and the blob that it is a link to."""
    blob = path.resolve()
    path.unlink()
    if blob != path:
        blob.unlink(missing_ok=True)
