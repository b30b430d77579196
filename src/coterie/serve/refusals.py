"""Refusals of the server in the form of OpenAI's errors."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

KINDS = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "timeout_error",
    409: "conflict_error",
    413: "invalid_request_error",
    415: "invalid_request_error",
    421: "permission_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "service_unavailable_error",
    504: "timeout_error",
}
"""`type` of an error by HTTP status."""


class RefusalError(Exception):
    """A request that is answered with an error.

    Args:
        status: of HTTP.
        message: with the value, what was expected, and the remedy.
        param: of the request that is wrong.
        code: OpenAI's name of the error, where it has one, e.g. `model_not_found`.
    """

    def __init__(self, status: int, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code

    def record(self) -> dict[str, Any]:
        """What the client gets."""
        kind = KINDS.get(self.status, "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    @property
    def headers(self) -> dict[str, str]:
        """Of the answer, as HTTP wants them."""
        if self.status in (429, 503):
            return {"retry-after": "1"}
        return {"www-authenticate": "Bearer"} if self.status == 401 else {}


def of_validation(error: ValidationError) -> RefusalError:
    """What is wrong in a request's body: the error that reaches deepest, which is that of the right type."""
    first = max(error.errors(include_url=False, include_context=False), key=lambda fault: len(fault["loc"]))
    # Members of unions and their validators stand in pydantic's path too; the body's own names come first.
    path = [
        str(part) for part in first["loc"] if not str(part).startswith(("list[", "str", "function-", "constrained-"))
    ]
    place = ".".join(path) or "the body"
    if first["type"] == "extra_forbidden":
        message = f"{place} is no parameter of this endpoint; leave it out"
    else:
        value = repr(first["input"])
        shown = value if len(value) <= 80 else value[:79] + "…"
        message = f"{place} = {shown}: {first['msg'][0].lower()}{first['msg'][1:]}"
    return RefusalError(400, message, param=path[0] if path else None)
