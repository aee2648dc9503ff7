"""Addresses of servers: whether one answers, and the user and password that may stand in it. Light to import."""

import contextlib
import http.client
import re
import urllib.request
from urllib.parse import unquote, urlsplit


def answers(url: str, seconds: float) -> bool:
    """Whether a server gives that page, within so many seconds."""
    try:
        with urllib.request.urlopen(url, timeout=seconds) as answer:
            return bool(answer.status == 200)
    except (OSError, ValueError, http.client.HTTPException):
        return False


def is_server(uri: str) -> bool:
    """Whether an address is of a server, and not of a file or a database."""
    return urlsplit(uri).scheme in ("http", "https")


def without_password(address: str) -> str:
    """An address as it may be shown, kept and sent to anybody: without user and password."""
    return re.sub(r"//[^/]*@", "//", address)


def user_in(address: str) -> tuple[str, str] | None:
    """User and password in the address of a server, if there are any."""
    with contextlib.suppress(ValueError):  # what is no address is refused later, by name
        parts = urlsplit(address)
        if is_server(address) and parts.username is not None:
            return unquote(parts.username), unquote(parts.password or "")
    return None
