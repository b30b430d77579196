"""Checks of where a request comes from: the name it asks by, the page that asks, and the secret that it carries.

A server on this machine's loopback is within reach of every web page that its user opens. Host is checked against DNS
rebinding, Origin and Sec-Fetch-Site against pages of other origins (another port is another origin).
"""

from __future__ import annotations

import hmac
import secrets
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from starlette.datastructures import Headers

NAMES = ("127.0.0.1", "localhost", "[::1]")
"""Of loopback, as a request may write them."""


def hosts(port: int) -> set[str]:
    """The values of Host by which a server on loopback may be asked.

    >>> sorted(hosts(80))
    ['127.0.0.1:80', '[::1]:80', 'localhost:80']
    """
    return {f"{name}:{port}" for name in NAMES}


def is_rebound(headers: Headers, port: int) -> bool:
    """True for a request that asks by another name than those of loopback, or by several."""
    return headers.getlist("host") not in [[host] for host in hosts(port)]


def is_foreign(headers: Headers, port: int) -> bool:
    """True for a request from a page of another origin. Programs send no Origin and are none."""
    origin = headers.get("origin", "http://" + headers.get("host", ""))
    return origin not in {f"http://{host}" for host in hosts(port)}


def is_from_another_site(headers: Headers) -> bool:
    """True where the browser says that a page of another origin asks or links."""
    return headers.get("sec-fetch-site", "") in ("cross-site", "same-site")


def new_secret() -> str:
    """A secret of 192 random bits."""
    return secrets.token_urlsafe(24)


def equal_secrets(given: str, expected: str) -> bool:
    """True for the right secret, in a time that does not tell how much of it is right."""
    return hmac.compare_digest(given.encode("utf-8", "replace"), expected.encode())


def bearer(headers: Headers) -> str:
    """The secret of an Authorization header; empty without one."""
    scheme, _, secret = headers.get("authorization", "").partition(" ")
    return secret.strip() if scheme.lower() == "bearer" else ""


def is_loopback(host: str) -> bool:
    """True for an address of this machine alone."""
    return host == "localhost" or host.startswith("127.") or host == "::1"
