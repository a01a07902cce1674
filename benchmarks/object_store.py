"""Measure what it costs to fetch documents from an object store: requests and milliseconds, at a given latency.

A local S3 server (moto) stands behind a relay, which delays each request and counts it. The baseline fetches the same
documents one after the other, from the same store in the same process. "k = …" is measured after the data files have
been read from before; "first k = …" when the store has just been opened, with its id map cached.

    python benchmarks/object_store.py --latency-ms 30 --files 4 --documents 500
"""

import http.client
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
from measure import options, report, seconds
from random_store import create_store, rows_of

from pisco_index.store import Store, commit, write_fragment

K = 10
N_MEM, DIM = 8, 1024
URI = "s3://bench/index"


class Relay:
    """Passes bytes between clients and a server, and delays requests."""

    def __init__(self, server: tuple[str, int], delay_s: float):
        self.delay_s = delay_s
        self.requests = 0
        self._server = server
        self._socket = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            client, _ = self._socket.accept()
            server = socket.create_connection(self._server)
            for end in (client, server):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=self._pass, args=(client, server, True), daemon=True).start()
            threading.Thread(target=self._pass, args=(server, client, False), daemon=True).start()

    def _pass(self, source: socket.socket, target: socket.socket, asks: bool) -> None:
        try:
            while data := source.recv(1 << 20):
                if asks and data.startswith((b"GET ", b"HEAD ", b"PUT ", b"POST ")):
                    self.requests += 1
                    time.sleep(self.delay_s)
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # The client or the server has closed its connection.


@contextmanager
def served() -> Iterator[tuple[str, int]]:
    """Run an S3 server with a bucket, and yield its address."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = free.getsockname()
    command = [sys.executable, "-m", "moto.server", "-H", address[0], "-p", str(address[1])]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while not _makes_bucket(address):
            if server.poll() is not None:
                sys.exit("The S3 server did not start. Is moto installed? pip install -e '.[dev]'")
            time.sleep(0.05)
        yield address
    finally:
        server.terminate()


def _makes_bucket(address: tuple[str, int]) -> bool:
    try:
        connection = http.client.HTTPConnection(*address)
        connection.request("PUT", "/bench")
        connection.getresponse().read()
    except ConnectionRefusedError:
        return False
    return True


def fill(files: int, documents: int) -> list[str]:
    """Write a store with some documents in each of its files, and return their ids."""
    store = create_store(URI, dim=DIM)
    generator, ids = np.random.default_rng(0), []
    for shard in range(files):
        own = [f"{shard}-{i}" for i in range(documents)]
        memory = generator.standard_normal((documents, N_MEM, DIM), dtype=np.float32)
        commit(store, [write_fragment(URI, shard, rows_of(own, memory))])
        ids += own
    return ids


def measure(relay: Relay, query: Callable[[], object], times: int) -> tuple[float, float]:
    """Return the median milliseconds and the mean requests of a query."""
    before = relay.requests
    took = [seconds(query) for _ in range(times)]
    return statistics.median(took) * 1000, (relay.requests - before) / times


def compare(relay: Relay, store: Store, draw: Callable[[int], list[str]], queries: int, name: str) -> dict[str, float]:
    """Return the milliseconds and requests of each kind of query, with the relay's delay."""
    opened = iter([Store.open(URI) for _ in range(5)])
    found = {
        "k = 1": measure(relay, lambda: store.fetch(draw(1)), queries),
        f"k = {K}": measure(relay, lambda: store.fetch(draw(K)), queries),
        f"k = {K}, one by one": measure(relay, lambda: [store.fetch([each]) for each in draw(K)], max(3, queries // 5)),
        "opening": measure(relay, lambda: Store.open(URI), 5),
        f"first k = {K}": measure(relay, lambda: next(opened).fetch(draw(K)), 5),
    }
    result = {}
    for label, (ms, requests) in found.items():
        result[f"{label}, {name}: ms"] = ms
        result[f"{label}, {name}: requests"] = requests
    result[f"at once / one by one, {name}"] = found[f"k = {K}"][0] / found[f"k = {K}, one by one"][0]
    return result


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--latency-ms", type=float, default=30, help="delay of each request, in milliseconds")
    parser.add_argument("--files", type=int, default=4, help="number of data files in the store")
    parser.add_argument("--documents", type=int, default=500, help="number of documents in each file")
    parser.add_argument("--queries", type=int, default=20, help="number of queries of each kind")
    args = parser.parse_args()

    with served() as address, tempfile.TemporaryDirectory() as cache:
        relay = Relay(address, 0)
        os.environ |= {
            "AWS_ACCESS_KEY_ID": "any",
            "AWS_SECRET_ACCESS_KEY": "any",
            "AWS_ENDPOINT_URL": relay.url,
            "AWS_REGION": "us-east-1",
            "AWS_ALLOW_HTTP": "true",
            "XDG_CACHE_HOME": cache,
        }
        ids = fill(args.files, args.documents)
        generator = np.random.default_rng(1)

        def draw(k: int) -> list[str]:
            return [ids[i] for i in generator.choice(len(ids), k, replace=False)]

        store = Store.open(URI)
        # One document of each file, so that all files have been read from.
        store.fetch([f"{shard}-0" for shard in range(args.files)])
        result: dict[str, float] = {"latency, ms": args.latency_ms}
        for name, latency_s in (("without latency", 0.0), ("with latency", args.latency_ms / 1000)):
            relay.delay_s = latency_s
            result |= compare(relay, store, draw, args.queries, name)
        report(result, args.json)


if __name__ == "__main__":
    main()
