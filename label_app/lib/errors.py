"""The error that the server answers with a status of its own, and one line for what pydantic finds wrong."""

from collections.abc import Iterable


class RequestError(ValueError):
    """A request that cannot be served; the message says what to change.

    Args:
        status: HTTP status: 400 to 499, or from 500 on where it is the server's fault, not the client's.
        message: one line for the person who asked.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def in_one_line(errors: Iterable[dict]) -> str:
    """What is wrong with each value, from ``ValidationError.errors()`` of pydantic."""
    lines = []
    for error in errors:
        name = ".".join(str(part) for part in error["loc"] if part not in ("body", "query")) or "body"
        lines.append(f"{name}: {error['msg']}")
    return "; ".join(lines)
