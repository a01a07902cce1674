"""The command serves until a signal, finishes what it has accepted, and leaves with exit code 0."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
import uvicorn
from typer.testing import CliRunner

from pisco_index import delete
from pisco_index.cli import app
from pisco_index.serving.run import _Server

from .conftest import CHECKPOINT, chat

PARGER = "Where was Ebir Parger born?"


@contextmanager
def command(*arguments):
    """Run the command; yield its process and a client once it listens."""
    words = [sys.executable, "-m", "pisco_index.cli", "serve", *map(str, arguments)]
    given = ["-k", str(CHECKPOINT), "--dtype", "float32", "--port", "0"]
    with subprocess.Popen([*words, *given], stderr=subprocess.PIPE, text=True) as process:
        try:
            said = []
            while not (line := process.stderr.readline()).startswith("http://127.0.0.1:"):
                said.append(line)
                assert line, "".join(said)
            assert said == [f"Loading the checkpoint {CHECKPOINT} …\n"]
            with httpx.Client(base_url=line.partition(": ")[0], timeout=60) as client:
                yield process, client
        finally:
            process.kill()


def test_signals_open_stores_anew_and_end_the_server_in_peace(folder, tmp_path):
    shutil.copytree(folder / "wiki", tmp_path / "wiki")
    with command(tmp_path / "wiki", f"second={folder / 'wiki'}") as (process, client):
        assert [each["id"] for each in client.get("/v1/models").json()["data"]] == ["wiki", "second"]
        delete(tmp_path / "wiki", ["tp-held-out-000003"])
        process.send_signal(signal.SIGHUP)
        while client.get("/v1/models/wiki").json()["documents"] == 24:
            pass
        assert client.get("/v1/models/second").json()["documents"] == 24

        answers = []
        ask = threading.Thread(target=lambda: answers.append(chat(client, PARGER, max_tokens=16)))
        metrics = client.get("/metrics").text
        assert "pisco_index_running 0.0" in metrics
        asked = httpx.Client(base_url=client.base_url, timeout=60)
        ask.start()
        while not answers and "pisco_index_queued 1.0" not in (text := asked.get("/metrics").text):
            if "pisco_index_running 1.0" in text:
                break
        process.send_signal(signal.SIGTERM)
        ask.join()
        asked.close()
        assert answers[0].json()["choices"][0]["message"]["content"] == "Niritur"
        assert process.wait(60) == 0
        with pytest.raises(httpx.ConnectError):
            client.get("/health")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none"], "there is no store at"),
        (["wiki", "a/wiki"], "another store is named 'wiki' too"),
        (["wiki", "--host", "0.0.0.0"], "--open"),
        (["wiki", "--engine", "vllm"], "--engine-url"),
        (["wiki", "--engine-url", "http://127.0.0.1:9"], "--engine vllm"),
        (["wiki", "--engine", "vllm", "--engine-url", "http://127.0.0.1:9"], "no vLLM server answers there"),
    ],
)
def test_what_cannot_be_served_is_said_before_the_server_listens(folder, arguments, message, monkeypatch):
    monkeypatch.chdir(folder)
    (folder / "a").mkdir(exist_ok=True)
    (folder / "a" / "wiki").mkdir(exist_ok=True)
    result = CliRunner().invoke(app, ["serve", *arguments, "-k", str(CHECKPOINT), "--port", "0"])
    assert result.exit_code == 2
    assert message in result.output


def test_a_port_that_is_taken_and_missing_keys_are_named_before_the_checkpoint_is_opened(folder, tmp_path):
    # An empty folder cannot be opened as a checkpoint.
    (tmp_path / "checkpoint").mkdir()
    serve = ["serve", str(folder / "wiki"), "-k", str(tmp_path / "checkpoint")]
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        refused = CliRunner().invoke(app, [*serve, "--port", port])
    without_keys = CliRunner().invoke(app, [*serve, "--port", "0", "--api-key-file", str(tmp_path / "keys")])
    for result, message in ((refused, "Address already in use"), (without_keys, "keys cannot be read")):
        assert result.exit_code == 2
        assert message in result.output
        assert "Loading" not in result.stderr


def test_a_worker_leaves_ctrl_c_to_its_parent_and_loses_no_reload():
    reloaded = threading.Event()
    server = _Server(uvicorn.Config(None), SimpleNamespace(reload=reloaded.set), lambda: None)
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    held = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    try:
        signal.raise_signal(signal.SIGHUP)
        with server.capture_signals():
            signal.raise_signal(signal.SIGINT)
            assert not server.should_exit
            assert reloaded.wait(60)
            signal.raise_signal(signal.SIGTERM)
            assert server.should_exit
            assert not server.force_exit
    finally:
        signal.signal(signal.SIGINT, before)
        signal.pthread_sigmask(signal.SIG_SETMASK, held)


@pytest.mark.skipif("PISCO_INDEX_TORTURE" not in os.environ, reason="loads three decoders: set PISCO_INDEX_TORTURE")
def test_several_processes_serve_together_and_are_started_again(folder, tmp_path):
    shutil.copytree(folder / "wiki", tmp_path / "wiki")
    with command(tmp_path / "wiki", "--workers", "2") as (process, client):
        children = children_of(process.pid)
        assert chat(client, PARGER, max_tokens=16).json()["choices"][0]["message"]["content"] == "Niritur"
        delete(tmp_path / "wiki", ["tp-held-out-000003"])
        assert client.post("/reload").status_code == 200
        # Each connection may come to another process.
        for _ in range(12):
            while httpx.get(f"{client.base_url}/v1/models/wiki", timeout=60).json()["documents"] == 24:
                pass
        # The numbers are those of all processes.
        assert 'pisco_index_requests_total{path="/v1/chat/completions",status="200"} 1.0' in client.get("/metrics").text
        os.kill(children[0], signal.SIGKILL)
        while len({*children_of(process.pid)} - {children[0]}) < 2:
            time.sleep(0.1)
        client.close()
        assert httpx.get(f"{client.base_url}/health", timeout=60).status_code == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0


def children_of(pid):
    """Numbers of the processes that serve, below another process."""
    found = []
    for path in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        if b"spawn_main" in Path(f"/proc/{path}/cmdline").read_bytes():
            found.append(int(path))
    return found
