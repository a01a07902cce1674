"""The way from a request to the loop of the reader and back: events of other threads, a deadline, and a hang-up."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress

from starlette.types import Receive

from ..errors import DeadlineError
from ..reader.live.loop import LiveAnswering
from ..reader.live.question import Grounds, LiveQuestion, LiveResult

Event = Grounds | str | LiveResult
"""An event of a question, in this order: its documents are known, pieces of the answer come, the answer is finished."""


class _Mailbox:
    """A listener that hands the events of other threads to the event loop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.events: asyncio.Queue[Event | Exception] = asyncio.Queue()

    def prepared(self, grounds: Grounds) -> None:
        self._put(grounds)

    def piece(self, text: str) -> None:
        self._put(text)

    def answered(self, result: LiveResult) -> None:
        self._put(result)

    def failed(self, error: Exception) -> None:
        self._put(error)

    def _put(self, event: Event | Exception) -> None:
        # The event loop is closed if the server was forced to end.
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self.events.put_nowait, event)


async def ask(live: LiveAnswering, question: LiveQuestion, deadline: float) -> AsyncIterator[Event]:
    """Ask a question and yield what happens to it. Closing the iterator gives the question up.

    Args:
        live: the loop.
        question: the question.
        deadline: time of the event loop at which it is given up.

    Raises:
        DeadlineError: the answer is not finished in time.
        Exception: the reason for having no answer.
    """
    mailbox = _Mailbox()
    ticket = live.submit(question, mailbox)
    try:
        while True:
            try:
                async with asyncio.timeout_at(deadline):
                    event = await mailbox.events.get()
            except TimeoutError:
                raise DeadlineError(
                    "The answer was not finished in time. Ask again later, or for fewer tokens."
                ) from None
            if isinstance(event, Exception):
                raise event
            yield event
            if isinstance(event, LiveResult):
                return
    finally:
        ticket.cancel()


async def until_gone(receive: Receive) -> None:
    """Return when the client has hung up. The body of its request must have been read."""
    while (await receive())["type"] != "http.disconnect":
        pass
