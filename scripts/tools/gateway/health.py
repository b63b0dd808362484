"""The health page, in the text format of Prometheus."""

from __future__ import annotations

import time

from prometheus_client import CollectorRegistry, Counter, Gauge, start_http_server

from .state import State

PREFIX = "breast_ultrasound_gateway"
SHARES = ("suspicious", "unsure")  # of the answered images


class Health:
    """What the page shows; numbers of the last day survive a restart, counters begin anew, as Prometheus expects.

    Args:
        address: to listen at.
        port: to listen at; 0 for no page.

    Raises:
        OSError: the port is taken.
    """

    def __init__(self, address: str, port: int) -> None:
        self.registry = registry = CollectorRegistry()

        def made(kind: type, name: str, about: str, *labels: str) -> Counter | Gauge:
            return kind(f"{PREFIX}_{name}", about, labels, registry=registry)

        self.frames = made(Counter, "images", "Images (frames of a cine count) by what became of them", "outcome")
        self.errors = made(Counter, "errors", "What went wrong and is tried again", "kind")
        self.seconds = made(Counter, "busy_seconds", "Time spent on images")
        self.polled = made(Gauge, "last_poll_timestamp_seconds", "When Orthanc last answered")
        self.last = made(Gauge, "last_image_timestamp_seconds", "When the last image was finished; 0 since the start")
        self.queue = made(Gauge, "queue_objects", "Objects that wait, those still arriving among them")
        self.reachable = made(Gauge, "orthanc_reachable", "Whether Orthanc answers and stores: 1 or 0")
        self.day = made(Gauge, "images_24h", "Images of the last 24 hours by what became of them", "outcome")
        self.share = made(
            Gauge, "share_24h", "Suspicious and unsure among the answered, refused among all, of 24 hours", "answer"
        )
        for outcome in ("answered", "refused", "failed"):
            self.frames.labels(outcome)
        for kind in ("orthanc", "image"):
            self.errors.labels(kind)
        if port:
            try:
                start_http_server(port, address, registry)
            except OSError as error:
                raise OSError(f"--health_port {port}: {error.strerror} at {address}; pass another, or 0") from None

    def update(self, state: State) -> None:
        """Show what is kept."""
        self.queue.set(state.queue_length())
        day = state.last_day()
        for outcome in ("answered", "refused", "failed"):
            self.day.labels(outcome).set(day[outcome])
        for answer in SHARES:
            self.share.labels(answer).set(day[answer] / max(1, day["answered"]))
        self.share.labels("refused").set(day["refused"] / max(1, day["images"]))

    def reached(self) -> None:
        """Orthanc answers."""
        self.polled.set(time.time())
        self.reachable.set(1)

    def finished(self, outcome: str, seconds: float) -> None:
        """Count an image."""
        self.frames.labels(outcome).inc()
        self.seconds.inc(seconds)
        self.last.set(time.time())

    def failing(self, kind: str) -> None:
        """Count an error: ``orthanc`` (or room on a disk), or ``image``."""
        self.errors.labels(kind).inc()
        if kind == "orthanc":
            self.reachable.set(0)
