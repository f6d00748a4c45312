"""Errors of obstore in one sentence each: what a server or the network refused, and what to do about it."""

from __future__ import annotations

import re
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from obstore.exceptions import BaseError

from actstore.store.errors import StorageError, UnlistableError

if TYPE_CHECKING:
    from collections.abc import Iterator

_NO_BUCKET: Final = ("NoSuchBucket", "ContainerNotFound", "The specified bucket does not exist", "FilesystemNotFound")
_HTTP_STATUS: Final = re.compile(r"status code: (\d{3})(?: ([A-Z][A-Za-z -]+?)(?:[:.]|$))?")
_ADDRESS: Final = re.compile(r"performing [A-Z]+ (\w+://[^/\s?]+)")

# What the driver says in its message → what to tell; the first that matches.
_REASONS: Final[tuple[tuple[str, str], ...]] = (
    (
        r"169\.254\.169\.254|latest/(api/token|meta-data)|metadata\.google|computeMetadata|[Nn]o credentials|MissingCredential",
        "no credentials were found. Set those of the environment, such as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or "
        "give `storage_options`",
    ),
    (
        r"redirect without LOCATION|PermanentRedirect|AuthorizationHeaderMalformed|IllegalLocationConstraint",
        "the bucket is in another region. Set AWS_REGION to the bucket's, or `storage_options={'region': …}`",
    ),
    (
        r"BadScheme|builder error",
        "its address is http://, which is not encrypted. Set AWS_ALLOW_HTTP=true where that is meant",
    ),
    (r"dns error", "there is no host of that name: {address}. Check the address and the network"),
    (
        r"ConnectError|tcp connect error|kind: Connect",
        "no server answers at {address}. Check the address and the network",
    ),
    (
        r"TimedOut|operation timed out|kind: Timeout",
        "{address} did not answer in time. Check the network, and try again",
    ),
    (
        r"error decoding response body|IncompleteMessage|UnexpectedEof|connection closed|kind: (Interrupted|Decode|Request)",
        "the connection to {address} was cut, again and again. Check the network, and try again",
    ),
)
_TRANSIENT: Final = re.compile(
    r"status code: (409|429|5\d\d)|kind: (Connect|Timeout|Interrupted|Decode|Request)|HTTP error: error (sending|decoding)"
)
_DENIED: Final = "access is denied"
_REFUSALS: Final = {
    "SignatureDoesNotMatch": "the secret key does not belong to the access key",
    "InvalidAccessKeyId": "the server does not know the access key",
    "ExpiredToken": "the credentials have expired",
    "RequestTimeTooSkewed": "this machine's clock is wrong",
}


@contextmanager
def sentences(location: str, doing: str = "read") -> Iterator[None]:
    """Every error of the driver becomes a `StorageError` that says in a sentence why `location` cannot be read or written.

    A missing object stays a `FileNotFoundError`, unless it is the bucket that is missing. A server that may read objects, and
    not list them, is an `UnlistableError`.
    """
    try:
        yield
    except FileNotFoundError as error:
        if not any(mark in str(error) for mark in _NO_BUCKET):
            raise FileNotFoundError(location) from None  # not the page that the driver says
        reason, may_pass = "there is no such bucket. Create it, or correct the name", False
    except BaseError as error:
        reason, may_pass = _reason_of(error), _TRANSIENT.search(str(error)) is not None
    else:
        return
    is_refused = doing == "listed" and reason.startswith(_DENIED)
    failure = (UnlistableError if is_refused else StorageError)(f"{location} cannot be {doing}: {reason}.")
    failure.may_pass = may_pass
    raise failure


def _reason_of(error: BaseError) -> str:
    text = str(error)
    address = match[1] if (match := _ADDRESS.search(text)) else "the address"
    status, name = match.groups() if (match := _HTTP_STATUS.search(text)) else ("", "")
    for pattern, reason in _REASONS:
        if re.search(pattern, text):
            return reason.replace("{address}", address)
    if status in ("401", "403"):
        why = next((why for code, why in _REFUSALS.items() if code in text), "these credentials do not permit it")
        return f"{_DENIED} ({status}): {why}. Check the credentials"
    if status:
        return f"{address} answers {status}{f' {name}' if name else ''}. Try again later"
    first = text.partition("Debug source")[0].partition("\n")[0]
    # Addresses may be signed: what stands behind the question mark gives access.
    return re.sub(r"\?\S*", "", first).strip().rstrip(".")[:300] or type(error).__name__
