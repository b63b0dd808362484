"""The error that the server answers with a status of its own."""


class RequestError(ValueError):
    """A request that cannot be served; the message says what to change.

    Args:
        status: HTTP status: 400 to 499, or 500 where the server is at fault.
        message: one line for the person who asked.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
