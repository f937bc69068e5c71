"""Client secrets: keys that a web page may hold, for a while and for realtime sessions only."""

from __future__ import annotations

import dataclasses
import hashlib
import secrets
import time
from typing import Callable, Union

from whisper_opt.serving.http.errors import ApiError
from whisper_opt.serving.http.realtime.settings import Settings

__all__ = ["DEFAULT_SECONDS", "Secret", "Secrets", "digest"]

DEFAULT_SECONDS = 600
_MOST = 10_000


@dataclasses.dataclass(frozen=True)
class Secret:
    """A client secret.

    Attributes:
        value: the secret itself.
        expires_at: when it expires, in seconds of Unix time.
    """

    value: str
    expires_at: int


class Secrets:
    """The secrets that are valid, as digests; they are forgotten when they expire."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._known: dict[bytes, tuple[int, str, Settings]] = {}

    def make(self, client: str, settings: Settings, seconds: int = DEFAULT_SECONDS) -> Secret:
        """A new secret of a client, which opens sessions with these settings.

        Raises:
            ApiError: 429, there are too many that are valid.
        """
        now = self._clock()
        self._known = {key: found for key, found in self._known.items() if found[0] > now}
        if len(self._known) >= _MOST:
            raise ApiError(
                429,
                f"{_MOST} client secrets are valid, as many as this server keeps",
                code="too_many_secrets",
                retry_after=60,
            )
        made = Secret(f"ek_{secrets.token_hex(24)}", int(now) + seconds)
        self._known[digest(made.value)] = made.expires_at, client, settings
        return made

    def find(self, value: str) -> Union[tuple[str, Settings], None]:
        """The client that made a secret, and its settings; None if it is not valid."""
        found = self._known.get(digest(value))
        if found is None or found[0] <= self._clock():
            return None
        return found[1:]


def digest(key: str) -> bytes:
    """What is kept of a key or a secret: its SHA-256.

    Args:
        key: as it was sent; bytes that are no UTF-8 are kept as surrogates.
    """
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
