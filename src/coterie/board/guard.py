"""The guard before every answer of the board: Host, Origin, method and token of a request, headers of a response.

What `web/origin.py` checks keeps out other pages, and the token other users of the machine. The cookie is HttpOnly and
SameSite=Strict, and its name carries the port, since cookies of one host are shared by all its ports.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qs, urlencode

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from coterie.web import origin

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS: Mapping[str, str] = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-embedder-policy": "require-corp",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
    "cache-control": "no-store",
}
READING = ("GET", "HEAD")
LONGEST = 4096
"""Bytes of an address with its query."""


class Guard:
    """ASGI middleware that lets through what may see the board.

    Args:
        port: that the server listens on.
        token: that an address, a cookie or an Authorization header carries.
        posted: paths that take POST; from a page of the board alone, which its Origin says.
    """

    def __init__(self, app: ASGIApp, *, port: int, token: str, posted: Collection[str] = ()) -> None:
        self.app = app
        self.port = port
        self.token = token
        self.posted = posted

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            await PlainTextResponse("", 404)(scope, receive, send)
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
            await send(message)

        refusal = self.refusal(scope)
        await (refusal or self.app)(scope, receive, with_headers)

    def refusal(self, scope: Scope) -> Response | None:
        """The answer to a request that is not let through; a redirect where the address carries the token."""
        headers = Headers(scope=scope)
        posted = scope["method"] == "POST" and scope["path"] in self.posted
        if scope["method"] not in READING and not posted:
            return PlainTextResponse("the board only reads: GET and HEAD", 405, {"allow": ", ".join(READING)})
        if len(scope["raw_path"] or b"") + len(scope["query_string"]) > LONGEST:
            return PlainTextResponse(f"the address is longer than {LONGEST} bytes", 414)
        if origin.is_rebound(headers, self.port):
            return PlainTextResponse("this is no address of the board: use the one that it printed", 421)
        linked = origin.is_from_another_site(headers) and scope["path"] != "/"
        if origin.is_foreign(headers, self.port) or linked or (posted and "origin" not in headers):
            return PlainTextResponse("a page of another origin asked", 403)
        query = parse_qs(scope["query_string"].decode("ascii", "replace"))
        if scope["path"] == "/" and self.fits(query.pop("token", [""])[0]):
            return self.entrance(urlencode(query, doseq=True))
        if self.fits(self.cookie(headers)) or self.fits(origin.bearer(headers)):
            return None
        return PlainTextResponse(
            "the board asks for its token: open the address that `coterie board` printed, with ?token=…", 403
        )

    def entrance(self, query: str) -> Response:
        """Keep the token in a cookie, and take it out of the address."""
        response = RedirectResponse("/" + (f"?{query}" if query else ""), 303)
        response.set_cookie(self.cookie_name, self.token, httponly=True, samesite="strict", path="/")
        return response

    @property
    def cookie_name(self) -> str:
        return f"coterie-board-{self.port}"

    def cookie(self, headers: Headers) -> str:
        """The token that a request's cookie carries; empty without one."""
        try:
            morsel = SimpleCookie(headers.get("cookie", "")).get(self.cookie_name)
        except CookieError:
            return ""
        return morsel.value if morsel is not None else ""

    def fits(self, token: str) -> bool:
        """True for the right token, in a time that does not tell how much of it is right."""
        return origin.equal_secrets(token, self.token)
