"""From a URL to the driver of its server: address, credentials, retries."""

from __future__ import annotations

import configparser
import os
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from obstore.exceptions import BaseError
from obstore.store import AzureStore, GCSStore, HTTPStore, S3Store

from actstore.store.arguments import did_you_mean
from actstore.store.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Mapping

    Driver = S3Store | GCSStore | AzureStore | HTTPStore

_S3: Final = ("s3", "s3a")
_GCS: Final = ("gs", "gcs")
_HTTP: Final = ("http", "https")

MAX_RETRIES: Final = 7
"""Of each request, after 0.1 s, 0.2 s, 0.4 s …: 13 s in all."""
_CLIENT: Final[dict[str, Any]] = {"connect_timeout": "10s", "read_timeout": "60s", "timeout": "15min"}
"""An answer that stalls is given up and asked for again; one that flows slowly is not."""
_S3_KEYS: Final = {
    "access_key_id": "aws_access_key_id",
    "secret_access_key": "aws_secret_access_key",
    "session_token": "aws_session_token",
}


def connect(location: str, options: Mapping[str, Any] | None, *, max_retries: int | None = None) -> Driver:
    """The driver of a URL's server, for keys relative to the URL's path; nothing is asked of the server yet.

    `options` are obstore's: those of its `S3Config`, `GCSConfig` or `AzureConfig`, and `client_options` and `retry_config`.
    What they leave out comes from the environment. `InvalidInputError` where URL or options cannot be right.
    """
    given = dict(options or {})
    client = {**_CLIENT, "allow_http": _is_http_allowed(), **given.pop("client_options", {})}
    max_retries = MAX_RETRIES if max_retries is None else max_retries
    retries = {"max_retries": max_retries, "retry_timeout": timedelta(minutes=2), **given.pop("retry_config", {})}
    settings: dict[str, Any] = {"client_options": client, "retry_config": retries}
    scheme = location.partition("://")[0]
    try:
        return _http(location, given, settings) if scheme in _HTTP else _bucket(location, given, settings)
    except (BaseError, TypeError, ValueError) as error:
        if isinstance(error, InvalidInputError):
            raise
        reason = str(error).partition("\n")[0].rstrip(".")
        raise InvalidInputError(f"{location} cannot be opened with these settings: {reason}.") from None


def _is_http_allowed() -> bool:
    """What the environment says; the driver asks it only where no option of the client is given."""
    return os.environ.get("AWS_ALLOW_HTTP", "").lower() in ("1", "true", "yes", "on")


def _bucket(location: str, given: dict[str, Any], settings: dict[str, Any]) -> S3Store | GCSStore | AzureStore:
    scheme, _, rest = location.partition("://")
    bucket, _, path = rest.partition("/")
    prefix = path.strip("/") or None
    if scheme not in (*_S3, *_GCS):
        bucket, account = _container(bucket)
        given = account | given
    if not bucket:
        raise InvalidInputError(
            f"{location} is no URL that can be opened: it names no bucket. Write it as {scheme}://BUCKET/STORE."
        )
    if scheme in _S3:
        return S3Store(bucket, prefix=prefix, **_profile(given) | given, **settings)
    if scheme in _GCS:
        return GCSStore(bucket, prefix=prefix, **given, **settings)
    return AzureStore(bucket, prefix=prefix, **given, **settings)


def _http(location: str, given: dict[str, Any], settings: dict[str, Any]) -> HTTPStore:
    if given:
        name = next(iter(given))
        known = ("client_options", "retry_config")
        raise InvalidInputError(
            f"storage_options of an HTTP server are {' and '.join(known)}, found {name!r}.{did_you_mean(name, known)}"
        )
    parts = urlsplit(location)
    if not parts.netloc or parts.query or parts.fragment:
        raise InvalidInputError(
            f"{location.partition('?')[0]} is no URL of a store: it should be https://HOST/PATH, without ? and #, as keys are "
            "added to it."
        )
    settings["client_options"]["allow_http"] = True  # as the URL says
    return HTTPStore(location.rstrip("/"), **settings)


def _container(bucket: str) -> tuple[str, dict[str, str]]:
    """Container and account of `container@account.dfs.core.windows.net`, which need not name one."""
    container, _, host = bucket.partition("@")
    return container, {"account_name": host.partition(".")[0]} if host else {}


def _profile(given: Mapping[str, Any]) -> dict[str, str]:
    """Keys, region and address of the profile in ~/.aws that applies; nothing where keys are given or in the environment.

    The driver knows environment variables, web identities, containers and machines of AWS, and no files.
    """
    environment = os.environ
    named = environment.get("AWS_PROFILE")
    if "access_key_id" in given or given.get("skip_signature") or ("AWS_ACCESS_KEY_ID" in environment and not named):
        return {}
    home = Path.home() / ".aws"
    files = [
        Path(environment.get("AWS_CONFIG_FILE") or home / "config"),
        Path(environment.get("AWS_SHARED_CREDENTIALS_FILE") or home / "credentials"),
    ]
    parser = configparser.ConfigParser(interpolation=None)
    try:
        parser.read(files, encoding="utf-8")
    except (configparser.Error, OSError, UnicodeDecodeError) as error:
        raise InvalidInputError(
            f"{files[1]} cannot be read as profiles of AWS: {str(error).splitlines()[0]}."
        ) from None
    name = named or "default"
    profile: dict[str, str] = {}
    for section in (f"profile {name}", name):
        profile |= dict(parser[section]) if parser.has_section(section) else {}
    if named and not profile:
        raise InvalidInputError(
            f"There is no profile {named!r} of AWS in {files[0]} or {files[1]}: correct AWS_PROFILE."
        )
    found = {key: profile[theirs] for key, theirs in _S3_KEYS.items() if theirs in profile}
    if named and "access_key_id" not in found:
        raise InvalidInputError(
            f"The profile {named!r} of AWS has no access key of its own. Put temporary ones into the environment: "
            "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN, without AWS_PROFILE."
        )
    if not (environment.get("AWS_REGION") or environment.get("AWS_DEFAULT_REGION")) and "region" in profile:
        found["region"] = profile["region"]
    if not environment.get("AWS_ENDPOINT_URL") and "endpoint_url" in profile:
        found["endpoint"] = profile["endpoint_url"]
    return found
