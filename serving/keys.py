"""API keys: from the environment or a file, and compared without telling by the time it takes how much of one was right."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from pathlib import Path

from tidemill.errors import DefinitionError

VARIABLE = "TIDEMILL_API_KEYS"
SHORTEST = 16


class Keys:
    """Who may ask. Of a key only its hash is kept. Without any key everybody may."""

    def __init__(self, keys: list[str]) -> None:
        self._digests = [_digest(key.encode()) for key in keys]

    def __bool__(self) -> bool:
        return bool(self._digests)

    def allow(self, headers: list[tuple[bytes, bytes]]) -> bool:
        """Whether these headers hold a key: `Authorization: Bearer KEY`, or `X-API-Key: KEY`; the first of them counts.

        >>> Keys(["correct horse battery"]).allow([(b"authorization", b"Bearer correct horse battery")])
        True
        >>> Keys(["correct horse battery"]).allow([(b"x-api-key", b"correct horse")])
        False
        """
        given = b""
        for name, value in headers:
            if name == b"authorization" and value[:7].lower() == b"bearer ":
                given = value[7:].strip()
                break
            if name == b"x-api-key":
                given = value.strip()
                break
        digest, found = _digest(given), False
        for known in self._digests:  # all of them, whichever it is
            found |= hmac.compare_digest(known, digest)
        return found


def load_keys(file: str | None, environment: Mapping[str, str]) -> Keys:
    """The keys of TIDEMILL_API_KEYS (with commas between) and of a file (one per line; empty lines and `#` are passed over).

    Raises `DefinitionError` for a file that cannot be read or holds none, and for a key that is too short to be one. It never names a key.
    """
    keys = [key.strip() for key in environment.get(VARIABLE, "").split(",") if key.strip()]
    where = VARIABLE
    if file is not None:
        where = file
        try:
            lines = Path(file).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise DefinitionError(f"the keys in {file} cannot be read: {getattr(error, 'strerror', None) or 'not UTF-8 text'}") from None
        found = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
        if not found:
            raise DefinitionError(f"{file} holds no key: write one on a line of its own, or start without --keys-file")
        keys += found
    for key in keys:
        if len(key) < SHORTEST or not key.isascii() or not key.isprintable():
            raise DefinitionError(
                f"a key in {where} is shorter than {SHORTEST} characters, or has some that no HTTP header carries: "
                f"make one with `python -c 'import secrets; print(secrets.token_urlsafe())'`"
            )
    return Keys(keys)


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
