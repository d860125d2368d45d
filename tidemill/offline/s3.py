"""Talking to S3: one request for each operation, none of unbounded length, with errors in our own words.

s3fs does the talking, and is kept from what it does for people at a prompt: its cache of listings (another process may have created
something), its uploads in parts (see `put`), its reads in parts (of an object that is replaced meanwhile they would mix old and new),
and its five attempts on top of botocore's.

Credentials, region and endpoint are found by botocore: AWS_ACCESS_KEY_ID and its like, the usual files in ~/.aws, the machine's own role;
AWS_DEFAULT_REGION; AWS_ENDPOINT_URL for any other server that speaks S3. No error shows any of them.
"""

from __future__ import annotations

import os
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import s3fs
from botocore import exceptions as boto
from s3fs.core import S3_RETRYABLE_ERRORS

from tidemill.errors import StoreError, StoreUnavailableError

#: In seconds: what an operation may take in all, with botocore's attempts; and, per byte of an upload, besides.
SECONDS, _PER_BYTE = 30.0, 1e-6
#: botocore's attempts, unless AWS_MAX_ATTEMPTS says otherwise. Each may be silent for this share of the time.
_ATTEMPTS = 3
#: A download may go on for so many times as long, if it is never silent.
_DOWNLOAD = 20
#: S3 takes an object of up to 5 GiB whole.
_WHOLE = 5 * 2**30
#: Keys in one answer to a listing; S3 gives no more.
_PAGE = 1000
#: How often a conditional write is sent again that met another request for the same key, and the first pause before, in seconds.
_CONFLICTS, _PAUSE = 6, 0.05
#: The metadata by which an object says who created it.
_CREATOR = "tidemill-creator"

_TAKEN = ("PreconditionFailed", "412")
_CONFLICT = ("ConditionalRequestConflict", "OperationAborted", "409")
_UNDER_WAY = "other requests for it are under way: try again"
_AWAY = ("SlowDown", "ServiceUnavailable", "InternalError", "RequestTimeout", "Throttling", "ThrottlingException", "TooManyRequests")
_ADVICE = {
    "NoSuchBucket": "there is no such bucket: create it, or correct [offline] url",
    "AccessDenied": "access is denied: allow these credentials s3:ListBucket, and s3:GetObject, s3:PutObject and s3:DeleteObject in it",
    "RequestTimeTooSkewed": "this machine's clock differs from the server's: set it right",
    "PermanentRedirect": "the bucket lies in another region: set AWS_DEFAULT_REGION to it",
    "NotImplemented": "the server has no conditional writes (If-None-Match), which the offline store needs: use another server",
    "EntityTooLarge": "the object is larger than the server takes at once (5 GiB on S3)",
}
_REFUSED = "the credentials are not valid (any more): renew AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN, or ~/.aws"
_SAME = {
    "Forbidden": "AccessDenied",
    "403": "AccessDenied",
    "AllAccessDisabled": "AccessDenied",
    "301": "PermanentRedirect",
    "AuthorizationHeaderMalformed": "PermanentRedirect",
    "IllegalLocationConstraintException": "PermanentRedirect",
    "501": "NotImplemented",
}
_NO_CREDENTIALS = (
    boto.NoCredentialsError,
    boto.PartialCredentialsError,
    boto.CredentialRetrievalError,
    boto.ProfileNotFound,
    boto.TokenRetrievalError,
    boto.SSOError,
)
_CREDENTIALS = ("InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken", "TokenRefreshRequired", "InvalidSecurity")

#: By process, the environment's AWS_ variables and the time-out: what all buckets of a process share that have the same settings, and
#: so its connections. A child keeps those of its parent too, unused: to close them would disturb the parent.
_systems: dict[tuple[int, tuple[tuple[str, str], ...], float], Any] = {}
_opening = threading.Lock()


class Child(NamedTuple):
    """What lies directly under a prefix: an object's key, or that of a folder with a slash at its end."""

    key: str
    folder: bool


class Bucket:
    """The objects of one bucket. Safe for threads; after a fork, parent and child have connections of their own.

    Every method raises `StoreError`, or `StoreUnavailableError` for what waiting may help against. `seconds` bounds each.
    """

    def __init__(self, name: str, seconds: float = SECONDS) -> None:
        self.name, self._seconds = name, seconds
        self._opened: tuple[int, Any] = (0, None)

    def get(self, key: str) -> bytes | None:
        """The object, in one request and so of one version; None where there is none."""
        with self._explained("read", key):
            try:
                try:
                    return self._get(key)
                except S3_RETRYABLE_ERRORS as error:
                    if isinstance(error, (boto.HTTPClientError, TimeoutError)):
                        raise  # botocore has tried that again
                    return self._get(key)  # it broke off in the middle
            except FileNotFoundError as error:
                if _code(error) == "NoSuchBucket":
                    raise
                return None

    def put(self, key: str, data: bytes) -> None:
        """Make the object, or replace it.

        Whole, in one request: parts that a crash leaves behind would be listed nowhere, and paid for.
        """
        with self._explained("write", key):
            self._put(key, data)

    def create(self, key: str, data: bytes) -> bool:
        """Make the object if there is none, which the server decides in the same request; whether it is ours."""
        # A request that was applied, but whose answer was lost, is sent again by botocore and then refused: the object says whose it is.
        mine = secrets.token_hex(16)
        for attempt in range(_CONFLICTS):
            with self._explained("create", key):
                try:
                    self._put(key, data, mode="create", Metadata={_CREATOR: mine})
                    return True
                except OSError as error:
                    code = _code(error)
                    if code not in (*_TAKEN, *_CONFLICT):
                        raise
            if code in _TAKEN:
                found = self._head("create", key)
                return found is not None and found.get("Metadata", {}).get(_CREATOR) == mine
            time.sleep(_PAUSE * 2**attempt)
        raise StoreUnavailableError(f"cannot create {self._path(key)}: {_UNDER_WAY}")

    def size(self, key: str) -> int | None:
        """Bytes of the object; None where there is none."""
        found = self._head("look for", key)
        return None if found is None else int(found["ContentLength"])

    def stamp(self, key: str) -> tuple[int, str] | None:
        """What `objects` says of one object beside its key: its bytes, and a text that changes with the content; None: there is none."""
        found = self._head("look for", key)
        return None if found is None else (int(found["ContentLength"]), str(found["ETag"]))

    def delete(self, key: str) -> None:
        """Remove the object, if it is there."""
        with self._explained("delete", key):
            self._s3.rm_file(self._path(key), timeout=self._seconds)

    def children(self, prefix: str) -> Iterator[Child]:
        """What lies directly under a prefix that is empty or ends with a slash, in no order."""
        more: dict[str, str] = {}
        while True:
            with self._explained("list", prefix):
                asked = {"Bucket": self.name, "Prefix": prefix, "Delimiter": "/", "MaxKeys": _PAGE, **more}
                page = self._s3.call_s3("list_objects_v2", **asked, timeout=self._seconds)
            yield from (Child(each["Prefix"], folder=True) for each in page.get("CommonPrefixes", ()))
            yield from (Child(each["Key"], folder=False) for each in page.get("Contents", ()))
            if not page.get("IsTruncated"):
                return
            more = {"ContinuationToken": page["NextContinuationToken"]}

    def objects(self, prefix: str) -> Iterator[tuple[str, int, str]]:
        """(key, bytes, a text that changes with the content) of every object below a prefix, in the order of their keys."""
        more: dict[str, str] = {}
        while True:
            with self._explained("list", prefix):
                asked = {"Bucket": self.name, "Prefix": prefix, "MaxKeys": _PAGE, **more}
                page = self._s3.call_s3("list_objects_v2", **asked, timeout=self._seconds)
            yield from ((each["Key"], int(each["Size"]), str(each["ETag"])) for each in page.get("Contents", ()))
            if not page.get("IsTruncated"):
                return
            more = {"ContinuationToken": page["NextContinuationToken"]}

    def download(self, key: str, path: str) -> None:
        """Put an object into a file of this machine."""
        with self._explained("read", key):
            self._s3.get_file(self._path(key), path)

    # ---- requests ---------------------------------------------------------------------------------------------------------------

    def _get(self, key: str) -> bytes:
        found: bytes = self._s3.cat_file(self._path(key), max_concurrency=1, timeout=_DOWNLOAD * self._seconds)
        return found

    def _put(self, key: str, data: bytes, **options: Any) -> None:
        seconds = self._seconds + len(data) * _PER_BYTE
        self._s3.pipe_file(self._path(key), data, chunksize=_WHOLE, timeout=seconds, **options)

    def _head(self, action: str, key: str) -> dict[str, Any] | None:
        with self._explained(action, key):
            try:
                found: dict[str, Any] = self._s3.call_s3("head_object", Bucket=self.name, Key=key, timeout=self._seconds)
            except FileNotFoundError:
                return None
        return found

    def _path(self, key: str) -> str:
        return f"s3://{self.name}/{key}"

    @property
    def _s3(self) -> Any:
        process, system = self._opened
        if process != os.getpid():
            process = os.getpid()
            of = (process, tuple(sorted(item for item in os.environ.items() if item[0].startswith("AWS_"))), self._seconds)
            with _opening:
                system = _systems[of] = _systems.get(of) or _file_system(self._seconds)
            self._opened = (process, system)
        return system

    @contextmanager
    def _explained(self, action: str, key: str) -> Iterator[None]:
        try:
            yield
        # Not chained: botocore's texts name endpoints. ValueError: an endpoint that is no URL.
        except (boto.BotoCoreError, boto.ClientError, OSError, ValueError, *S3_RETRYABLE_ERRORS) as error:
            kind, reason = _reason(error)
            raise kind(f"cannot {action} {self._path(key)}: {reason}") from None


def _file_system(seconds: float) -> Any:
    """One that leaves nothing to chance; see the module's text."""
    system = s3fs.S3FileSystem(
        anon=False,
        use_listings_cache=False,
        skip_instance_cache=True,  # it does not know of the environment, where the settings are
        config_kwargs={
            "connect_timeout": min(seconds / _ATTEMPTS, 5.0),
            "read_timeout": seconds / _ATTEMPTS,
            "retries": {"mode": "standard"},
            "max_pool_connections": 32,
        },
    )
    system.retries = 1
    return system


def _code(error: BaseException) -> str:
    """S3's own name of an error, such as NoSuchBucket; of an answer without a body the number; empty where no server answered."""
    for each in (error, error.__cause__):
        if isinstance(each, boto.ClientError):
            return str(each.response.get("Error", {}).get("Code", "Unknown"))
    return ""


def _reason(error: BaseException) -> tuple[type[StoreError], str]:
    """What to raise, and what to say. Never the text of an error: it may hold endpoints and keys."""
    code = _SAME.get(_code(error), _code(error))
    if code in _ADVICE:
        return StoreError, f"{_ADVICE[code]} ({code})"
    if code in _CREDENTIALS:
        return StoreError, f"{_REFUSED} ({code})"
    if code in _CONFLICT:
        return StoreUnavailableError, _UNDER_WAY
    if code in _AWAY or code.startswith("5"):
        return StoreUnavailableError, f"S3 takes no requests now ({code}): wait for it"
    if code:
        return StoreError, f"S3 answers {code}, which tidemill did not expect"
    name = type(error).__name__
    if isinstance(error, boto.SSLError):
        return StoreError, "the server's certificate is not trusted: set AWS_CA_BUNDLE to the file of its authority"
    if isinstance(error, _NO_CREDENTIALS):
        return StoreError, f"there are no credentials for S3 ({name}): set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
    if isinstance(error, (OSError, boto.ConnectionError, *S3_RETRYABLE_ERRORS)):
        return StoreUnavailableError, f"S3 does not answer ({name}): wait for it, or look at the network and AWS_ENDPOINT_URL"
    return StoreError, f"the settings for S3 are wrong ({name}): look at AWS_ENDPOINT_URL, AWS_DEFAULT_REGION and ~/.aws/config"
