"""The command serves until a signal, finishes what it has accepted, and leaves with exit code 0."""

import signal
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager

import httpx
import pytest

from pisco_index import delete

from .conftest import CHECKPOINT, chat

PARGER = "Where was Ebir Parger born?"


@contextmanager
def command(*arguments):
    """Run the command; yield its process and a client once it listens."""
    words = [sys.executable, "-m", "pisco_index.cli", "serve", *map(str, arguments)]
    given = ["-k", str(CHECKPOINT), "--dtype", "float32", "--port", "0"]
    with subprocess.Popen([*words, *given], stderr=subprocess.PIPE, text=True) as process:
        try:
            line = process.stderr.readline()
            assert line.startswith("http://127.0.0.1:"), line + process.stderr.read()
            with httpx.Client(base_url=line.partition(": ")[0], timeout=60) as client:
                yield process, client
        finally:
            process.kill()


def test_signals_open_stores_anew_and_end_the_server_in_peace(folder, tmp_path):
    import shutil

    shutil.copytree(folder / "wiki", tmp_path / "wiki")
    with command(tmp_path / "wiki", f"second={folder / 'wiki'}") as (process, client):
        assert [each["id"] for each in client.get("/v1/models").json()["data"]] == ["wiki", "second"]
        delete(tmp_path / "wiki", ["tp-held-out-000003"])
        process.send_signal(signal.SIGHUP)
        while client.get("/v1/models/wiki").json()["documents"] == 24:
            pass
        assert client.get("/v1/models/second").json()["documents"] == 24

        answers = []
        # A stop token of no answer: the decoder goes on to the largest length.
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
        (["wiki", "a/wiki"], "the name of another"),
        (["wiki", "--host", "0.0.0.0"], "--open"),
        (["wiki", "--engine", "vllm"], "--engine-url"),
        (["wiki", "--engine", "vllm", "--engine-url", "http://127.0.0.1:9"], "no vLLM server answers there"),
    ],
)
def test_what_cannot_be_served_is_said_before_the_server_listens(folder, arguments, message, monkeypatch):
    from typer.testing import CliRunner

    from pisco_index.cli import app

    monkeypatch.chdir(folder)
    (folder / "a").mkdir(exist_ok=True)
    (folder / "a" / "wiki").mkdir(exist_ok=True)
    result = CliRunner().invoke(app, ["serve", *arguments, "-k", str(CHECKPOINT), "--port", "0"])
    assert result.exit_code == 2
    assert message in result.output


def test_a_port_that_is_taken_is_named(folder):
    from typer.testing import CliRunner

    from pisco_index.cli import app

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        result = CliRunner().invoke(app, ["serve", str(folder / "wiki"), "-k", str(CHECKPOINT), "--port", port])
    assert result.exit_code == 2
    assert "Address already in use" in result.output
