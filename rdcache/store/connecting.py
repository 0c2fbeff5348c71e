"""How buckets are reached: from the environment variables of the clouds, with patience, and with
errors that say what to set.
"""

from __future__ import annotations

import math
import os
import re
from datetime import timedelta

from obstore.exceptions import BaseError
from obstore.store import ObjectStore, from_url

from rdcache.errors import UsageError
from rdcache.store.locations import RemotePath

PATIENCE_SECONDS = 60.0
ENDPOINTS = (
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
    "AWS_ENDPOINT",
    "AZURE_STORAGE_ENDPOINT",
    "AZURE_ENDPOINT",
)
CREDENTIALS = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, and AWS_ENDPOINT_URL if it is not Amazon's",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS",
    "az": "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY",
}
# Where the clouds' own machines get credentials; elsewhere nobody answers there.
METADATA_SERVERS = ("169.254.169.254", "metadata.google.internal")


def connect(location: RemotePath) -> ObjectStore:
    """A connection that is made with the first request.

    Raises:
        UsageError: the environment variables do not say how to reach the bucket.
    """
    limit = timedelta(seconds=patience())
    try:
        return from_url(
            location.url,
            # A limit for a whole request would be one for the slowest line and largest object.
            client_options={
                "timeout": timedelta(days=1),
                "read_timeout": limit / 2,
                "connect_timeout": limit / 6,
                **({"allow_http": True} if _is_plain_http() else {}),
            },
            # Time is what ends the trying, not a number of tries.
            retry_config={
                "max_retries": 1000,
                "retry_timeout": limit,
                "backoff": {
                    "init_backoff": timedelta(seconds=0.1),
                    "max_backoff": timedelta(seconds=5),
                    "base": 2,
                },
            },
        )
    except (BaseError, ValueError) as error:
        raise UsageError(
            "the environment does not say how to reach this bucket.",
            address=location,
            why=reason(error),
            next=advice(location),
        ) from error


def reason(error: Exception) -> str:
    """What went wrong, in a line: the server's own words where it has some."""
    text = str(error).strip()
    if any(server in text for server in METADATA_SERVERS):
        return "no credentials are set, and this machine's cloud gives none"
    said = [re.search(f"<{tag}>(.*?)</{tag}>", text, re.DOTALL) for tag in ("Code", "Message")]
    words = [match[1].strip() for match in said if match is not None]
    first = text.splitlines()[0].strip() if text else repr(error)
    return ": ".join(words) or first


def advice(location: RemotePath) -> str:
    """What to look at when a bucket cannot be reached."""
    variables = CREDENTIALS[location.url.partition("://")[0]]
    return f"check the address and the network, and set {variables}"


def patience() -> float:
    """Seconds after which an answer that fails or does not come is given up.

    Raises:
        UsageError: RDCACHE_PATIENCE is no such number.
    """
    text = os.environ.get("RDCACHE_PATIENCE") or str(PATIENCE_SECONDS)
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < 86_400:
        raise UsageError("RDCACHE_PATIENCE is a number of seconds, at most a day.", got=text)
    return seconds


def _is_plain_http() -> bool:
    """Whether the endpoint is one without encryption, which has to be allowed expressly.

    Raises:
        UsageError: an endpoint is no URL.
    """
    found = {name: os.environ[name] for name in ENDPOINTS if os.environ.get(name)}
    for name, value in found.items():
        if not re.match(r"https?://[^/\s]", value):
            raise UsageError(f"{name} begins with https:// or http://.", got=value)
    return any(value.startswith("http://") for value in found.values())
