"""Without a key only this machine is served, under its own names; with one, whoever presents it."""

import asyncio
import socket
from types import SimpleNamespace

import pytest

from pisco_index.configs import ServeConfig
from pisco_index.errors import ConfigError
from pisco_index.reader.live.engine import FakeEngine
from pisco_index.serving.access import Gate, Keys, is_loopback, own_names
from pisco_index.serving.run import listening_socket, read_keys

KEY = "a-key-of-some-length"


def test_keys_are_asked_for_on_all_paths_but_the_page_and_probes(served):
    client = served(keys=Keys([KEY, "another-key-of-length"]), engine=FakeEngine({})).client
    for path in ("/", "/page.css", "/page.js", "/health", "/ready"):
        assert client.get(path).status_code == 200
    paths = ["/v1/models", "/v1/documents", "/v1/documents/x", "/v1/stores/wiki", "/metrics", "/none"]
    for path in paths:
        response = client.get(path)
        assert (response.status_code, response.json()["error"]["type"]) == (401, "authentication_error")
    for path in ("/v1/chat/completions", "/v1/retrieve", "/reload"):
        assert client.post(path, json={}).status_code == 401
    for wrong in (f"Bearer {KEY}x", "Bearer", f"Basic {KEY}", KEY, "Bearer é"):
        assert client.get("/v1/models", headers={"authorization": wrong.encode()}).status_code == 401
    for key in (KEY, "another-key-of-length"):
        assert client.get("/v1/models", headers={"authorization": f"Bearer {key}"}).status_code == 200


def test_a_page_of_another_name_does_not_reach_a_server_without_keys(client):
    for host in ("evil.example", "evil.example:80", "127.0.0.1.evil.example", ""):
        assert client.get("/v1/models", headers={"host": host}).status_code == 421
    assert client.get("/v1/models", headers={"host": "127.0.0.1:1"}).status_code == 200
    # A form needs no permission of a browser, and /reload no body.
    assert client.post("/reload", headers={"sec-fetch-site": "cross-site"}).status_code == 403


def test_other_origins_are_admitted_by_name_only(served, client):
    asked = {"origin": "https://a.example", "access-control-request-method": "POST"}
    assert "access-control-allow-origin" not in client.options("/v1/models", headers=asked).headers
    assert "access-control-allow-origin" not in client.get("/v1/models", headers=asked).headers
    named = served(ServeConfig(cors=("https://a.example",)), Keys([KEY]), engine=FakeEngine({})).client
    headers = named.options("/v1/models", headers=asked).headers
    assert headers["access-control-allow-origin"] == "https://a.example"
    other = asked | {"origin": "https://b.example"}
    assert "access-control-allow-origin" not in named.options("/v1/models", headers=other).headers


def test_responses_protect_the_page(client):
    headers = client.get("/").headers
    assert "default-src 'none'" in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"
    assert "server" not in headers


def test_addresses_of_this_machine():
    assert all(map(is_loopback, ("127.0.0.1", "127.8.0.1", "::1", "localhost")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "10.0.0.1", "example.org", "")))
    assert "localhost" in own_names("127.0.0.1")


@pytest.mark.parametrize("content", ["", "\n \n", "short\n", f"{KEY}\nshort\n", b"\xff" * 20])
def test_a_file_without_good_keys_is_refused(content, tmp_path):
    path = tmp_path / "keys"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ConfigError, match="keys"):
        read_keys(ServeConfig(api_key_file=str(path)))


def test_another_address_needs_keys_or_a_word(tmp_path):
    with pytest.raises(ConfigError, match=r"--api-key-file.*--open"):
        read_keys(ServeConfig(host="0.0.0.0"))
    assert not read_keys(ServeConfig(host="0.0.0.0", open=True))
    (tmp_path / "keys").write_text(f"{KEY}\n\n")
    keys = read_keys(ServeConfig(host="0.0.0.0", api_key_file=str(tmp_path / "keys")))
    assert keys.admits(f"Bearer {KEY}")


def test_an_address_that_is_taken_is_named():
    with listening_socket(ServeConfig(port=0)) as taken:
        taken.listen()
        with (
            pytest.raises(ConfigError, match="cannot listen at port"),
            listening_socket(ServeConfig(port=taken.getsockname()[1])),
        ):
            pass


def test_a_failure_of_the_server_tells_nothing_and_is_protected(served, monkeypatch):
    server = served(engine=FakeEngine({}))

    def fail():
        raise RuntimeError("/a/path of the machine")

    monkeypatch.setattr(server.live, "problem", fail)
    response = server.client.get("/ready")
    assert response.status_code == 500
    assert "path" not in response.text
    assert response.headers["x-content-type-options"] == "nosniff"


def test_a_response_that_breaks_off_counts_as_a_failure():
    async def broken(_scope, _receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise RuntimeError("no more")

    async def ignored(_message):
        pass

    counted = []
    metrics = SimpleNamespace(request=lambda _path, status, _seconds: counted.append(status))
    gate = Gate(broken, keys=Keys(), metrics=metrics, names=())
    with pytest.raises(RuntimeError, match="no more"):
        asyncio.run(gate({"type": "http", "path": "/", "headers": []}, None, ignored))
    assert counted == [500]


def test_the_end_of_a_response_is_not_held_back():
    """Nagle's algorithm is off."""
    undelayed = []

    class Protocol(asyncio.Protocol):
        def connection_made(self, transport):
            undelayed.append(transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            transport.close()

    async def connect():
        with listening_socket(ServeConfig(port=0)) as bound:
            server = await asyncio.get_running_loop().create_server(Protocol, sock=bound)
            reader, writer = await asyncio.open_connection(*bound.getsockname())
            await reader.read()
            writer.close()
            server.close()

    asyncio.run(connect())
    assert undelayed == [1]


def test_errors_of_the_server_itself_are_not_those_of_its_address():
    with pytest.raises(FileNotFoundError), listening_socket(ServeConfig(port=0)):
        raise FileNotFoundError
