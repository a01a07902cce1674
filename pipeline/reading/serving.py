"""A reader process: it reads one shard after another, until the worker that started it ends."""

import os
import pickle
import socket
import struct
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from ...children import end_with_parent, portable
from .shard import Reading, ShardReader

# Number of bytes of a message, which precedes it.
_SIZE = struct.Struct("<Q")


class PeerEndedError(Exception):
    """The process at the other end of a channel has ended."""


class Channel:
    """Sends and receives objects through a socket.

    A peer may stop in the middle of a message. So that this is noticed, no call waits longer than the socket's timeout
    without calling ``on_wait``, which may raise an error.

    Args:
        connected: socket that is connected to the other process.
    """

    def __init__(self, connected: socket.socket):
        self._socket = connected

    def send(self, value: Any, on_wait: Callable[[], Any] = bool) -> None:
        """Send an object.

        Raises:
            PeerEndedError: the other process has ended.
        """
        content = pickle.dumps(value, protocol=5)
        left = memoryview(_SIZE.pack(len(content)) + content)
        while left:
            try:
                left = left[self._socket.send(left) :]
            except TimeoutError:
                on_wait()
            except OSError:
                raise PeerEndedError from None

    def receive(self, on_wait: Callable[[], Any] = bool) -> Any:
        """Return the next object.

        Raises:
            PeerEndedError: the other process has ended.
        """
        (size,) = _SIZE.unpack(self._receive(_SIZE.size, on_wait))
        return pickle.loads(self._receive(size, on_wait))  # noqa: S301  the other end is a process of this build

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def _receive(self, size: int, on_wait: Callable[[], Any]) -> bytearray:
        content = bytearray(size)
        left = memoryview(content)
        while left:
            try:
                count = self._socket.recv_into(left)
            except TimeoutError:
                on_wait()
                continue
            except OSError:
                raise PeerEndedError from None
            if not count:
                raise PeerEndedError
            left = left[count:]
        return content


def serve(descriptor: int, parent: int) -> None:
    """Run a reader process: open the sources, then read one shard after another until the worker ends.

    Args:
        descriptor: descriptor of the socket that is connected to the worker.
        parent: process id of the worker.
    """
    end_with_parent()
    if os.getppid() != parent:
        return
    channel = Channel(socket.socket(fileno=descriptor))
    readers: list[ShardReader] = []

    def open_reader(reading: Reading) -> None:
        readers.append(ShardReader(reading, lambda: channel.send(("step", None))))

    with suppress(PeerEndedError):
        # The first message opens the sources, each further one names a shard.
        while True:
            arguments = channel.receive()
            call = readers[0].read if readers else open_reader
            try:
                answer = "returned", call(*arguments)
            except PeerEndedError:
                raise
            except Exception as error:  # noqa: BLE001  the worker raises it
                answer = "raised", portable(error)
            channel.send(answer)
