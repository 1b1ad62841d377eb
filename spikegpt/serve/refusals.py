"""What a request is refused with: a status, and the reason in the form that clients of OpenAI's API know."""

from typing import Any

from ..config.values import check

# status -> type of the error, as OpenAI's clients know it
_TYPES = {401: "authentication_error", 429: "rate_limit_error", 500: "server_error"}


class Refused(Exception):
    """A request that is not answered; the message is for its sender.

    Args:
        status: of HTTP.
        param: the field that is wrong.
        code: a word for programs.
    """

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None):
        check(400 <= status < 600, f"{status} refuses nothing")
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code

    def to_dict(self) -> dict[str, Any]:
        """Return the body of the answer."""
        kind = _TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}
