"""Numbers of a server for Prometheus."""

import os
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from starlette.responses import Response

if TYPE_CHECKING:
    from ..reader.live.question import Grounds, LiveResult

# Variable by which prometheus_client shares the numbers of several processes through files.
SHARED_FOLDER = "PROMETHEUS_MULTIPROC_DIR"
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


def forget_process(pid: int | None) -> None:
    """Count the answers in progress of a process that died no longer."""
    mark_process_dead(pid)


class ServerMetrics:
    """Counts requests, tokens and times. Several processes of one server share their numbers."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self._requests = Counter(
            "pisco_index_requests", "Requests by path and status.", ["path", "status"], registry=registry
        )
        self._seconds = Histogram(
            "pisco_index_request_seconds", "Time of a request.", ["path"], buckets=_SECONDS, registry=registry
        )
        self._parts = Histogram(
            "pisco_index_answer_seconds",
            "Time of an answer's parts: queue, retrieve, fetch, first_token, decode.",
            ["part"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._tokens = Counter(
            "pisco_index_tokens",
            "Tokens of answered questions: prompt, memory in it, text that memory stands for, completion.",
            ["kind"],
            registry=registry,
        )
        self._queued = Gauge(
            "pisco_index_queued", "Questions that wait.", registry=registry, multiprocess_mode="livesum"
        )
        self._running = Gauge(
            "pisco_index_running", "Answers in progress.", registry=registry, multiprocess_mode="livesum"
        )

    def request(self, path: str, status: int, seconds: float) -> None:
        """Count a finished request. Status 499 stands for a client that hung up."""
        self._requests.labels(path, str(status)).inc()
        self._seconds.labels(path).observe(seconds)

    def answer(self, grounds: "Grounds", result: "LiveResult") -> None:
        """Count a finished answer."""
        timings = result.timings
        for part in ("queue", "retrieve", "fetch", "first_token", "decode"):
            self._parts.labels(part).observe(getattr(timings, part))
        counts = {"prompt": grounds.prompt_tokens, "memory": grounds.memory_tokens, "text": grounds.text_tokens}
        for kind, count in {**counts, "completion": result.tokens}.items():
            self._tokens.labels(kind).inc(count)

    def load(self, queued: int, running: int) -> None:
        """Note the present load."""
        self._queued.set(queued)
        self._running.set(running)

    def response(self) -> Response:
        """Return all numbers in Prometheus' text format."""
        registry = self._registry
        if SHARED_FOLDER in os.environ:
            registry = CollectorRegistry()
            MultiProcessCollector(registry)
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)
