"""Open stores, load the decoder, and serve until a signal ends it."""

import signal
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from types import FrameType
from typing import Any

import torch
import uvicorn

from ..configs import ServeConfig
from ..configs.names import Dtype
from ..errors import ConfigError
from ..model.decoding.embedder import load_embedder
from ..model.families import Checkpoint
from ..reader.index import Index
from ..reader.live.engine import Engine, LocalEngine
from ..reader.live.loop import LiveAnswering
from ..reader.live.vllm import VllmEngine
from .access import Keys, is_loopback, own_names
from .app import make_app
from .stores import Stores
from .workers import run_workers

# Seconds that a server which ends waits for its last responses, beyond the deadline of their requests.
_GRACE = 5
_BACKLOG = 2048
# Seconds that an idle connection stays open: longer than proxies keep theirs, or one would reuse it just as it closes.
_KEEP_ALIVE = 75


@dataclass(frozen=True)
class Models:
    """The checkpoint, and how its models are loaded.

    Attributes:
        checkpoint: the opened checkpoint.
        dtype: dtype of the decoder.
        device: device of the models.
        repetition_penalty: see ``Index``.
    """

    checkpoint: Checkpoint
    dtype: Dtype = "bfloat16"
    device: str = "auto"
    repetition_penalty: float | None = None


def serve(
    uris: Mapping[str, str],
    models: Callable[[], Models],
    config: ServeConfig,
    *,
    started: Callable[[str], object] = lambda _: None,
) -> None:
    """Answer requests until SIGINT or SIGTERM. Questions that were accepted are answered before this returns.

    Args:
        uris: address of each store, by its name.
        models: function that opens the checkpoint that all stores were built with. It is called once the keys are read
            and the address is bound.
        config: settings of the server.
        started: callback that is given the server's address once it listens.

    Raises:
        ConfigError: the address cannot be listened at, or is open to others without a key.
        StoreError, CheckpointError, FingerprintMismatchError: see ``Index``.
    """
    keys = read_keys(config)
    with listening_socket(config) as listening:
        host, port = listening.getsockname()[:2]
        address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        work = partial(run, uris, models(), config, keys)
        if config.workers == 1:
            work(listening, lambda: started(address))
        else:
            run_workers(work, listening, config.workers, lambda: started(address))


def read_keys(config: ServeConfig) -> Keys:
    """Return the keys that clients may present.

    Raises:
        ConfigError: the address is open to other machines without a key, or the keys cannot be read.
    """
    if config.api_key_file is not None:
        return Keys.read(config.api_key_file)
    if not is_loopback(config.host) and not config.open:
        raise ConfigError(
            f"{config.host}: other machines may reach this address. Give a file of keys (--api-key-file), or say that "
            "everyone may use the server (--open)."
        )
    return Keys()


@contextmanager
def listening_socket(config: ServeConfig) -> Iterator[socket.socket]:
    """Yield a socket that is bound to the server's address.

    Raises:
        ConfigError: the address cannot be bound.
    """
    try:
        bound = _bound(config.host, config.port)
    except OSError as error:
        raise ConfigError(
            f"the server cannot listen at port {config.port} of {config.host}: {error.strerror or error}. Name another "
            "--port or --host."
        ) from None
    with bound:
        yield bound


def _bound(host: str, port: int) -> socket.socket:
    # Only on sockets that name their protocol does asyncio switch Nagle's algorithm off, which would hold the end of a
    # response back for 40 ms.
    bound = socket.socket(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0], proto=socket.IPPROTO_TCP)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((host, port))
        # Only a socket that listens keeps others from the port.
        bound.listen(_BACKLOG)
    except OSError:
        bound.close()
        raise
    return bound


def run(
    uris: Mapping[str, str],
    models: Models,
    config: ServeConfig,
    keys: Keys,
    listening: socket.socket,
    started: Callable[[], object],
) -> None:
    """Serve at a socket, in this process, until a signal."""
    with ExitStack() as stack:
        # Nothing here keeps an index: a reload replaces it, and its memory is freed.
        stores = Stores({name: _index(uri, models) for name, uri in uris.items()})
        stack.callback(stores.close)
        engine = _engine(next(iter(stores)).index, models, config)
        live = stack.enter_context(LiveAnswering(engine, queue=config.queue, wait=config.wait_ms / 1000))
        names = frozenset() if config.open else own_names(config.host)
        app = make_app(stores, live, config, keys, names=names)
        server = _Server(_uvicorn_config(app, config), stores, started)
        server.run([listening])


def _index(uri: str, models: Models) -> Index:
    return Index(
        uri,
        models.checkpoint,
        dtype=models.dtype,
        device=models.device,
        repetition_penalty=models.repetition_penalty,
    )


def _engine(index: Index, models: Models, config: ServeConfig) -> Engine:
    if config.engine == "local":
        return LocalEngine(index.decoder, config.token_budget)
    assert config.engine_url is not None
    embedder = load_embedder(
        models.checkpoint, dtype=getattr(torch, models.dtype), repetition_penalty=models.repetition_penalty
    )
    return VllmEngine(config.engine_url, embedder, config.token_budget)


def _uvicorn_config(app: Any, config: ServeConfig) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        lifespan="off",
        backlog=_BACKLOG,
        timeout_keep_alive=_KEEP_ALIVE,
        timeout_graceful_shutdown=int(config.deadline_s) + _GRACE,
    )


class _Server(uvicorn.Server):
    """A server that ends with exit code 0 at a signal, and opens its stores anew at SIGHUP."""

    def __init__(self, config: uvicorn.Config, stores: Stores, started: Callable[[], object]):
        super().__init__(config)
        self._stores = stores
        self._tell_started = started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to listen."""
        await super().startup(sockets)
        self._tell_started()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Catch the signals that end the server, or open its stores anew."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        handlers = {signal.SIGINT: self._end, signal.SIGTERM: self._end, signal.SIGHUP: self._reload}
        if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
            # A worker's parent turns Ctrl-C into SIGTERM. A second signal would end the worker at once.
            del handlers[signal.SIGINT]
        before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
        # The parent of a worker holds this signal back until there is a handler.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _end(self, _number: int, _frame: FrameType | None) -> None:
        # The second signal ends without the last responses.
        self.force_exit = self.should_exit
        self.should_exit = True

    def _reload(self, _number: int, _frame: FrameType | None) -> None:
        threading.Thread(target=self._stores.reload, name="pisco-index-reload").start()
