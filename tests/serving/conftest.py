"""A server over two small stores, shared by all tests of the room."""

import contextlib
import json
import shutil
import threading
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
import uvicorn

import pisco_index
from pisco_index import Index, build, load_config
from pisco_index.configs import ServeConfig
from pisco_index.reader.live.engine import LocalEngine
from pisco_index.reader.live.loop import LiveAnswering
from pisco_index.serving.access import Keys
from pisco_index.serving.app import make_app
from pisco_index.serving.stores import Stores
from pisco_index.training.tinypedia import write

CHECKPOINT = Path(pisco_index.__file__).parent / "examples/tinypedia-checkpoint"


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """A folder with Tinypedia and its store, and another store that keeps no text and is not searchable."""
    folder = tmp_path_factory.mktemp("serving")
    write(folder, "held-out", count=24)
    build([folder / "corpus.jsonl"], CHECKPOINT, folder / "wiki", load_config("tinypedia"))
    (folder / "other.jsonl").write_text(json.dumps({"_id": "a/b?c#d %", "title": "Odd", "text": "An odd id."}) + "\n")
    silent = load_config("tinypedia", {"store": {"index": False, "keep": ["title"]}})
    build([folder / "other.jsonl"], CHECKPOINT, folder / "other", silent)
    return folder


@pytest.fixture(scope="session")
def questions(folder):
    return [json.loads(line) for line in (folder / "questions.jsonl").read_text().splitlines()]


@pytest.fixture(scope="session")
def index(folder):
    with Index(folder / "wiki", CHECKPOINT, dtype="float32") as index:
        yield index


@contextlib.contextmanager
def serving(app):
    """Serve an application in a thread, and yield a client of it."""
    config = uvicorn.Config(app, port=0, log_level="error", lifespan="off", server_header=False)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive()
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            yield client
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="session")
def stores(folder, index):
    with Index(folder / "other", CHECKPOINT, dtype="float32") as other:
        yield Stores({"wiki": index, "other": other})


@pytest.fixture(scope="session")
def live(index):
    with LiveAnswering(LocalEngine(index.decoder), wait=0.002) as live:
        yield live


@pytest.fixture(scope="session")
def client(stores, live):
    """A client of a server of both stores."""
    with serving(make_app(stores, live, ServeConfig(max_documents=20), Keys(), names=("127.0.0.1",))) as client:
        yield client


@pytest.fixture
def served(stores, folder, index, tmp_path):
    """Serve a copy of a store, which may change, with settings of a test's own."""
    with contextlib.ExitStack() as stack:

        def serve(config=None, keys=None, names=(), engine=None, queue=256):
            shutil.copytree(folder / "wiki", tmp_path / "wiki")
            opened = stack.enter_context(Index(tmp_path / "wiki", CHECKPOINT, dtype="float32"))
            opened.decoder = index.decoder
            loop = stack.enter_context(LiveAnswering(engine or LocalEngine(index.decoder), queue=queue))
            own = Stores({"wiki": opened})
            client = stack.enter_context(
                serving(make_app(own, loop, config or ServeConfig(), keys or Keys(), names=names))
            )
            return SimpleNamespace(client=client, stores=own, live=loop, folder=tmp_path / "wiki")

        yield serve


def chat(client, question, **further):
    """Ask a question; return the response."""
    body = {"model": "wiki", "messages": [{"role": "user", "content": question}]} | further
    return client.post("/v1/chat/completions", json=body)
