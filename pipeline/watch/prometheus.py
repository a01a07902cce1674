"""Serve a build's numbers to Prometheus. Only this file imports prometheus_client, an optional package."""

from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from typing import Any, get_args, get_type_hints

from ...errors import ConfigError, InputError
from .progress import WorkerState
from .tally import Tally

STATES = get_args(get_type_hints(WorkerState)["doing"])


class Metrics(Tally):
    """Serves a build's numbers at ``http://HOST:PORT/metrics`` for as long as it runs.

    Args:
        port: port to listen at; 0 takes a free one.
        host: address to listen at; the default admits this machine only.

    Attributes:
        port: port that the server listens at.

    Raises:
        InputError: the package prometheus-client is not installed.
        ConfigError: the server cannot listen there.
    """

    def __init__(self, port: int, host: str = "127.0.0.1"):
        super().__init__()
        if find_spec("prometheus_client") is None:
            raise InputError(
                "metrics need prometheus-client, not installed here. Install it: pip install prometheus-client"
            )
        from prometheus_client import CollectorRegistry, start_http_server

        # Computed by the build's thread, read by the server's.
        self._remaining_s: float | None = None
        self._speed = 0.0
        registry = CollectorRegistry(auto_describe=False)
        registry.register(self)  # pyrefly: ignore
        try:
            self._server, self._thread = start_http_server(port, host, registry)
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise ConfigError(
                f"metrics cannot be served at port {port} of {host}: {reason}. Name another --metrics-port."
            ) from None
        self.port = self._server.server_port

    def workers(self, states: Sequence[WorkerState]) -> None:
        """Keep the workers' states, and the speed and remaining time that follow from them."""
        super().workers(states)
        self._estimate()

    def finished_shard(self, number: int, documents: int, tokens: int, size: int) -> None:
        """Count a written shard."""
        super().finished_shard(number, documents, tokens, size)
        self._estimate()

    def ended(self) -> None:
        """Stop the server."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def collect(self) -> Iterator[Any]:
        """Yield the current metrics; called in the server's own thread."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        counters = {
            "documents": ("Documents of the shards that were written.", self.written_documents),
            "tokens": ("Tokens fed to the compressor, in written shards.", self.written_tokens),
            "payload_bytes": ("Bytes of payloads that were written.", self.size),
            "shard_failures": ("Attempts at shards that failed.", self.failures),
            "quarantined_documents": ("Documents that cannot be compressed.", self.quarantined_documents),
            "lost_workers": ("Workers that died, or were ended because they hung.", self.lost_workers),
            "store_retries": ("Times that the store could not be reached.", self.unreachable),
        }
        for name, (help_text, value) in counters.items():
            yield CounterMetricFamily(f"pisco_index_{name}", help_text, value=value)
        shards = GaugeMetricFamily("pisco_index_shards", "Shards of the plan.", labels=["state"])
        todo = self.shards - self.done - self.given_up
        states = {"todo": todo, "written": self.uncommitted, "failed": self.given_up}
        for state, count in {**states, "committed": self.done - self.uncommitted}.items():
            shards.add_metric([state], count)
        yield shards
        workers = GaugeMetricFamily("pisco_index_workers", "Number of workers by state.", labels=["state"])
        doing = self.doing
        for state in STATES:
            workers.add_metric([state], doing.get(state, 0))
        yield workers
        gauges = {
            "tokens_per_second": ("Recent tokens per second of all workers.", self._speed),
            "eta_seconds": ("Seconds until the last shard is done; absent before there is a speed.", self._remaining_s),
            "last_commit_timestamp_seconds": ("When this run last committed, in Unix time.", self.committed_at),
        }
        for name, (help_text, value) in gauges.items():
            if value is not None:
                yield GaugeMetricFamily(f"pisco_index_{name}", help_text, value=value)

    def _estimate(self) -> None:
        self._remaining_s, self._speed = self.pace.remaining_s, self.tokens_per_s
