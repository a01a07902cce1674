"""A local S3 server (moto), and a proxy in front of it that counts, delays, loses and fails requests."""

import http.client
import importlib.util
import itertools
import random
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple
from urllib.parse import unquote

import numpy as np
import pyarrow as pa
import pytest

from pisco_index.store import Fingerprint, Store, StoreMeta, codec_by_name, encode, memory_rows, text_hash

ACCESS_KEY, SECRET_KEY = "AKIATESTACCESSKEY", "a-secret/that+nobody=may-see"
DIM = 32
_numbers = itertools.count()


class Request(NamedTuple):
    """A request that a client has sent.

    Attributes:
        method: HTTP method.
        path: address and query.
        is_conditional: True if the request must fail when the object exists.
        status: HTTP status of the answer; 0 without an answer.
    """

    method: str
    path: str
    is_conditional: bool
    status: int


class Proxy(ThreadingHTTPServer):
    """A proxy in front of a server.

    Attributes:
        requests: all requests, in the order of their answers.
        failing: share of the requests that get an error, or no answer, instead of the server's answer.
        before: function called with method and path of each request before it is forwarded.
        loses: function called with method, path and the server's status; if it returns True, the answer gets lost.
    """

    daemon_threads = True
    request_queue_size = 256

    def __init__(self, server: tuple[str, int]):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.server = server
        self.requests: list[Request] = []
        self.failing = 0.0
        self.before: Callable[[str, str], object] = lambda method, path: None
        self.loses: Callable[[str, str, int], bool] = lambda method, path, status: False
        self.random = random.Random(0)
        # S3 checks for an object and puts it in one step. moto needs two, so only one client at a time may do it.
        self.conditional = threading.Lock()
        self.url = f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request, client_address):
        """A client that goes away is no error of the proxy."""

    def fault(self) -> int | None:
        """Return the error for a request that is to fail: a status, or 0 to close the connection."""
        return self.random.choice([500, 503, 0]) if self.random.random() < self.failing else None


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Proxy

    def log_message(self, *args):
        """A proxy does not print."""

    def _forward(self):
        proxy = self.server
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        is_conditional = self.headers.get("If-None-Match") == "*"
        proxy.before(self.command, self.path)
        status, data, headers = proxy.fault(), b"", []
        if status is None:
            if is_conditional:
                with proxy.conditional:
                    status, data, headers = self._ask(body)
            else:
                status, data, headers = self._ask(body)
            if proxy.loses(self.command, self.path, status):
                status = 0
        proxy.requests.append(Request(self.command, unquote(self.path), is_conditional, status))
        if not status:
            self.close_connection = True
            return
        self.send_response_only(status)
        for name, value in headers:
            if name.lower() not in {"connection", "content-length", "transfer-encoding"}:
                self.send_header(name, value)
        length = dict(headers).get("Content-Length", "0") if self.command == "HEAD" else str(len(data))
        self.send_header("Content-Length", length)
        self.end_headers()
        self.wfile.write(data)

    def _ask(self, body: bytes) -> tuple[int, bytes, list[tuple[str, str]]]:
        connection = http.client.HTTPConnection(*self.server.server)
        connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            if name.lower() != "connection":
                connection.putheader(name, value)
        connection.endheaders(body)
        answer = connection.getresponse()
        data = answer.read()
        connection.close()
        return answer.status, data, answer.getheaders()

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _forward  # noqa: N815


@pytest.fixture(scope="session")
def moto() -> Iterator[tuple[str, int]]:
    """The address of an S3 server that loses its content when the tests end."""
    if not all(importlib.util.find_spec(name) for name in ("moto", "flask", "flask_cors")):
        pytest.skip("the local S3 server moto is not installed: pip install -e '.[dev]'")
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = free.getsockname()
    command = [sys.executable, "-W", "ignore", "-m", "moto.server", "-H", address[0], "-p", str(address[1])]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while True:
        try:
            socket.create_connection(address).close()
            break
        except ConnectionRefusedError:
            assert server.poll() is None
            time.sleep(0.05)
    yield address
    server.terminate()
    server.wait()


def ask(address: tuple[str, int], method: str, path: str, body: bytes = b"") -> bytes:
    """Send one request to the server, without the proxy."""
    connection = http.client.HTTPConnection(*address)
    # moto accepts any signature, but requires one.
    credential = f"Credential={ACCESS_KEY}/20260101/us-east-1/s3/aws4_request"
    headers = {"Authorization": f"AWS4-HMAC-SHA256 {credential}, SignedHeaders=host, Signature=0"}
    connection.request(method, path, body, headers)
    answer = connection.getresponse()
    assert answer.status == 200, (method, path, answer.status)
    data = answer.read()
    connection.close()
    return data


class Bucket:
    """A bucket, as its server sees it, without the proxy."""

    def __init__(self, address: tuple[str, int]):
        # Every test has another name, because Lance keeps clients from former tests, with their environment.
        self.name = f"bucket-{next(_numbers)}"
        self._address = address
        ask(address, "PUT", f"/{self.name}")

    def put(self, key: str, body: bytes) -> None:
        ask(self._address, "PUT", f"/{self.name}/{key}", body)

    def objects(self) -> dict[str, bytes]:
        """The bytes of every object by its key."""
        listing = ask(self._address, "GET", f"/{self.name}?list-type=2").decode()
        assert "<IsTruncated>false" in listing
        keys = [part.partition("</Key>")[0] for part in listing.split("<Key>")[1:]]
        return {key: ask(self._address, "GET", f"/{self.name}/{key}") for key in keys}


@pytest.fixture
def bucket(moto) -> Bucket:
    return Bucket(moto)


@pytest.fixture
def proxy(moto, monkeypatch, tmp_path) -> Iterator[Proxy]:
    """A proxy in front of the server, with the environment set so that clients use it."""
    proxy = Proxy(moto)
    threading.Thread(target=proxy.serve_forever, args=[0.02], daemon=True).start()
    for name, value in {
        "AWS_ACCESS_KEY_ID": ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
        "AWS_ENDPOINT_URL": proxy.url,
        "AWS_REGION": "us-east-1",
        "AWS_ALLOW_HTTP": "true",
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
    }.items():
        monkeypatch.setenv(name, value)
    yield proxy
    proxy.shutdown()
    proxy.server_close()


@pytest.fixture
def uri(proxy, bucket) -> str:
    """A free address for a store."""
    return f"s3://{bucket.name}/some/index"


@pytest.fixture
def meta() -> StoreMeta:
    return StoreMeta(
        fingerprint=Fingerprint({"weights": "aa11"}),
        stage="hidden",
        dim=DIM,
        codec="fp32",
        checkpoint={"name": "tiny"},
        package_version="0.1.0",
    )


@pytest.fixture
def store(uri, meta) -> Store:
    return Store.create(uri, meta=meta, assets={"connector": b"weights"})


@pytest.fixture
def payload_of() -> Callable[[str], bytes]:
    """Make a payload from a document's id, so long that Lance stores it as a large value."""

    def payload_of(doc_id: str) -> bytes:
        values = np.arange(40 * DIM, dtype=np.float32).reshape(40, DIM) + sum(doc_id.encode())
        return encode(doc_id, values, codec_by_name("fp32"))

    return payload_of


@pytest.fixture
def shard_rows(payload_of) -> Callable[..., pa.Table]:
    """Make the rows of a shard: documents ``"<shard>-<i>"``."""

    def shard_rows(shard: int, documents: int = 5) -> pa.Table:
        ids = [f"{shard}-{i}" for i in range(documents)]
        return memory_rows(
            doc_ids=ids,
            tokens_total=[40] * documents,
            tokens_fed=[30] * documents,
            payloads=list(map(payload_of, ids)),
            text_hashes=list(map(text_hash, ids)),
            errors=[None] * documents,
        )

    return shard_rows


@pytest.fixture
def secrets() -> tuple[str, str]:
    """The values that must not appear anywhere but in the environment."""
    return ACCESS_KEY, SECRET_KEY
