"""What it costs to fetch documents from an object store: requests and milliseconds, at a given latency.

A local S3 server (moto) stands behind a relay that holds back each request for a while and counts them. The baseline is
the same documents fetched one after the other from the same store in the same process. Warm means that the data files
were read from before; first, that the store was just opened, with its map of ids kept from before.

    python benchmarks/object_store.py [--latency-ms 30] [--files 4] [--documents 500] [--queries 20] [--json]
"""

import argparse
import http.client
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable

import numpy as np
from measure import report

from pisco_index.store import (
    Fingerprint,
    Store,
    StoreMeta,
    codec_by_name,
    commit,
    encode,
    memory_rows,
    text_hash,
    write_fragment,
)

K = 10
N_MEM, DIM = 8, 1024


class Relay:
    """Hands bytes on to a server, requests with a delay."""

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
            pass  # one of the two has gone


def serve() -> tuple[subprocess.Popen, tuple[str, int]]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = free.getsockname()
    command = [sys.executable, "-m", "moto.server", "-H", address[0], "-p", str(address[1])]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while True:
        try:
            connection = http.client.HTTPConnection(*address)
            connection.request("PUT", "/bench")
            connection.getresponse().read()
            return server, address
        except ConnectionRefusedError:
            if server.poll() is not None:
                sys.exit("moto is not installed: pip install -e '.[dev]'")
            time.sleep(0.05)


def fill(uri: str, files: int, documents: int) -> list[str]:
    meta = StoreMeta(
        fingerprint=Fingerprint({"compressor": "none"}),
        stage="hidden",
        dim=DIM,
        codec="bf16",
        checkpoint={},
        package_version="0",
    )
    store = Store.create(uri, meta=meta, assets={})
    rng, codec, ids = np.random.default_rng(0), codec_by_name("bf16"), []
    for shard in range(files):
        own = [f"{shard}-{i}" for i in range(documents)]
        rows = memory_rows(
            doc_ids=own,
            tokens_total=[128] * documents,
            tokens_fed=[128] * documents,
            payloads=[encode(i, rng.standard_normal((N_MEM, DIM), dtype=np.float32), codec) for i in own],
            text_hashes=[text_hash(i) for i in own],
            errors=[None] * documents,
        )
        commit(store, [write_fragment(uri, shard, rows)])
        ids += own
    return ids


def measure(relay: Relay, query: Callable[[], object], times: int) -> tuple[float, float]:
    """Median milliseconds, and mean requests, of a query."""
    seconds, before = [], relay.requests
    for _ in range(times):
        began = time.perf_counter()
        query()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds) * 1000, (relay.requests - before) / times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--latency-ms", type=float, default=30)
    parser.add_argument("--files", type=int, default=4)
    parser.add_argument("--documents", type=int, default=500, help="in each file")
    parser.add_argument("--queries", type=int, default=20)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    server, address = serve()
    try:
        relay = Relay(address, 0)
        uri = "s3://bench/index"
        with tempfile.TemporaryDirectory() as cache:
            os.environ |= {
                "AWS_ACCESS_KEY_ID": "any",
                "AWS_SECRET_ACCESS_KEY": "any",
                "AWS_ENDPOINT_URL": relay.url,
                "AWS_REGION": "us-east-1",
                "AWS_ALLOW_HTTP": "true",
                "XDG_CACHE_HOME": cache,
            }
            ids = fill(uri, options.files, options.documents)
            rng = np.random.default_rng(1)

            def some(k: int) -> list[str]:
                return [ids[i] for i in rng.choice(len(ids), k, replace=False)]

            store = Store.open(uri)
            store.fetch([f"{shard}-0" for shard in range(options.files)])
            result: dict[str, float] = {"latency, ms": options.latency_ms}
            for name, latency in (("without latency", 0.0), ("with latency", options.latency_ms / 1000)):
                relay.delay_s = latency
                one = measure(relay, lambda: store.fetch(some(1)), options.queries)
                at_once = measure(relay, lambda: store.fetch(some(K)), options.queries)
                in_a_row = measure(
                    relay, lambda: [store.fetch([each]) for each in some(K)], max(3, options.queries // 5)
                )
                opening = measure(relay, lambda: Store.open(uri), 5)
                opened = iter([Store.open(uri) for _ in range(5)])
                first = measure(relay, lambda opened=opened: next(opened).fetch(some(K)), 5)
                for label, (ms, requests) in {
                    "k = 1": one,
                    f"k = {K}": at_once,
                    f"k = {K}, one by one": in_a_row,
                    "opening": opening,
                    f"first k = {K}": first,
                }.items():
                    result[f"{label}, {name}: ms"] = ms
                    result[f"{label}, {name}: requests"] = requests
                result[f"at once / one by one, {name}"] = at_once[0] / in_a_row[0]
            report(result, options.json)
    finally:
        server.terminate()


if __name__ == "__main__":
    main()
