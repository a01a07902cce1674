"""Measure how many requests a server answers, how fast, and what it does with more of them than it can answer.

A server of the shipped checkpoint, in float32, answers questions about Tinypedia, each from the document that it
names. First the same questions are answered offline, as `pisco-index answer` does it: all together, and in batches of
as many as there will be clients. Then 1, 8, 32 and 128 clients ask one question after the other. At last, questions
come at four times the highest rate, whether there are answers or not: each must be answered, or refused with status
503. The clients' own processor time is part of what the machine does, so the rates are lower than with clients
elsewhere; the processor time of the server is measured apart.

    python benchmarks/serve.py --clients 32 --overload-seconds 60
"""

import argparse
import asyncio
import itertools
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from measure import CHECKPOINT, PAGE, options, positive, print_json

from pisco_index.cli import keep_threads_awake

# As the command does, so that the baseline has the same threads as the server.
keep_threads_awake()

from pisco_index import Index, build, load_config  # noqa: E402
from pisco_index.training.tinypedia import write  # noqa: E402

# Longer than any answer in Tinypedia.
NEW_TOKENS = 16
OVERLOAD = 4


class Reply(NamedTuple):
    status: int
    seconds: float
    answer: str


class Client:
    """A client of HTTP/1.1 that keeps its connection: what a library does beyond this would be measured too."""

    def __init__(self, port: int):
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def post(self, body: bytes) -> Reply:
        began = time.perf_counter()
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self._port)
        reader, writer = self._streams
        writer.write(
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
            b"content-length: %d\r\n\r\n%s" % (len(body), body)
        )
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        content = await reader.readexactly(int(length.partition(b":")[2]))
        status = int(head[9:12])
        answer = json.loads(content)["choices"][0]["message"]["content"] if status == 200 else ""
        return Reply(status, time.perf_counter() - began, answer)

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--articles", type=positive, default=60, help="number of articles")
    parser.add_argument("--clients", type=positive, nargs="+", default=[1, 8, 32, 128], help="numbers of clients")
    parser.add_argument("--seconds", type=positive, default=20, help="seconds for each number of clients")
    parser.add_argument("--overload-seconds", type=int, default=60, help="seconds of overload; 0 skips it")
    parser.add_argument("--search", action="store_true", help="search for the documents instead of naming them")
    parser.add_argument("--server", nargs=argparse.REMAINDER, default=[], help="further options of the server")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write(folder, "held-out", count=args.articles, seed=0)
        build([folder / "corpus.jsonl"], CHECKPOINT, folder / "store", load_config("tinypedia"))
        questions = [json.loads(line) for line in (folder / "questions.jsonl").read_text().splitlines()]
        result, answers = offline(folder / "store", questions, args)
        bodies = [body_of(question, args.search) for question in questions]
        with server(folder / "store", args.server) as (process, port):
            for clients in args.clients:
                result[f"clients_{clients}"] = asyncio.run(closed_loop(process, port, bodies, answers, clients, args))
            if args.overload_seconds:
                rate = OVERLOAD * max(each["requests_per_s"] for name, each in result.items() if "clients" in name)
                result["overload"] = asyncio.run(open_loop(process, port, bodies, rate, args.overload_seconds))
    for name, figures in result.items():
        print(f"{name:14}", "  ".join(f"{key} {value:,.3g}" for key, value in figures.items()))
    if args.json:
        print_json(result)


def body_of(question: dict[str, Any], is_searched: bool) -> bytes:
    body = {"model": "store", "messages": [{"role": "user", "content": question["question"]}]}
    named = {"hits": 1} if is_searched else {"documents": question["doc_ids"]}
    return json.dumps(body | named | {"max_tokens": NEW_TOKENS}).encode()


def offline(
    store: Path, questions: Sequence[dict[str, Any]], args: argparse.Namespace
) -> tuple[dict[str, dict[str, float]], list[str]]:
    """Answer the questions, in batches of several sizes and all together, twice; the second time counts.

    Returns:
        The figures for each size, and the answers.
    """
    figures: dict[str, dict[str, float]] = {}
    answers: list[str] = []
    with Index(store, CHECKPOINT, dtype="float32") as index:
        for size in (*args.clients, len(questions)):
            asked = questions[: 20 * size]
            for _ in range(2):
                began, cpu = time.perf_counter(), time.process_time()
                answers = []
                for start in range(0, len(asked), size):
                    batch = asked[start : start + size]
                    doc_ids = None if args.search else [each["doc_ids"] for each in batch]
                    found = index.answer(
                        [each["question"] for each in batch], doc_ids=doc_ids, hits=1, max_new_tokens=NEW_TOKENS
                    )
                    answers += [each.answer for each in found]
                took, used = time.perf_counter() - began, time.process_time() - cpu
            name = "offline" if size == len(questions) else f"offline_{size}"
            figures[name] = {"requests_per_s": len(asked) / took, "cpu_ms": 1000 * used / len(asked)}
    return figures, answers


@contextmanager
def server(store: Path, further: Sequence[str]) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Start a server and yield its process and port; at the end it must leave in peace."""
    command = [sys.executable, "-m", "pisco_index.cli", "serve", str(store), "-k", str(CHECKPOINT)]
    given = ["--port", "0", "--dtype", "float32", *further]
    with subprocess.Popen([*command, *given], stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("http://127.0.0.1:"):
                yield process, int(line.split(":")[2])
                break
            print(line, end="", file=sys.stderr)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 0


async def closed_loop(
    process: subprocess.Popen[str],
    port: int,
    bodies: Sequence[bytes],
    answers: Sequence[str],
    clients: int,
    args: argparse.Namespace,
) -> dict[str, float]:
    """Let clients ask one question after the other, and compare their answers with those offline."""
    numbers = itertools.cycle(range(len(bodies)))
    replies: list[Reply] = []
    same = 0

    async def ask(end: float) -> None:
        nonlocal same
        client = Client(port)
        while time.perf_counter() < end:
            number = next(numbers)
            reply = await client.post(bodies[number])
            replies.append(reply)
            same += reply.answer == answers[number]
        client.close()

    await asyncio.gather(*(ask(time.perf_counter() + 1) for _ in range(clients)))
    replies.clear()
    same = 0
    began, cpu = time.perf_counter(), cpu_seconds(process.pid)
    await asyncio.gather(*(ask(began + args.seconds) for _ in range(clients)))
    took, used = time.perf_counter() - began, cpu_seconds(process.pid) - cpu
    assert {reply.status for reply in replies} == {200}
    return {
        "requests_per_s": len(replies) / took,
        **latencies(replies),
        "cpu_ms": 1000 * used / len(replies),
        "same_answers": same / len(replies),
    }


async def open_loop(
    process: subprocess.Popen[str], port: int, bodies: Sequence[bytes], rate: float, seconds: float
) -> dict[str, float]:
    """Send questions at a rate, and count what becomes of them."""
    chance = random.Random(0)
    idle: list[Client] = []
    outcomes: Counter[int | str] = Counter()
    replies: list[Reply] = []
    sizes: list[int] = []

    async def ask(body: bytes) -> None:
        client = idle.pop() if idle else Client(port)
        try:
            reply = await client.post(body)
        except (OSError, asyncio.IncompleteReadError) as error:
            outcomes[repr(error)] += 1
            return
        outcomes[reply.status] += 1
        if reply.status == 200:
            replies.append(reply)
        idle.append(client)

    tasks: set[asyncio.Task[None]] = set()
    began = due = time.perf_counter()
    while due < began + seconds:
        due += chance.expovariate(rate)
        if (pause := due - time.perf_counter()) > 0:
            await asyncio.sleep(pause)
        task = asyncio.create_task(ask(chance.choice(bodies)))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        if len(sizes) < time.perf_counter() - began:
            sizes.append(resident_bytes(process.pid))
            await asyncio.sleep(0)
    await asyncio.gather(*tasks)
    took = time.perf_counter() - began
    for client in idle:
        client.close()
    for outcome in outcomes.keys() - {200, 503}:
        print(f"lost: {outcomes[outcome]} requests with {outcome}", file=sys.stderr)
    quarter = max(len(sizes) // 4, 1)
    return {
        "sent_per_s": sum(outcomes.values()) / took,
        "answered_per_s": outcomes[200] / took,
        "answered": outcomes[200],
        "refused": outcomes[503],
        "lost": sum(outcomes.values()) - outcomes[200] - outcomes[503],
        **latencies(replies),
        "first_quarter_mb": statistics.median(sizes[:quarter]) / 1e6,
        "last_quarter_mb": statistics.median(sizes[-quarter:]) / 1e6,
    }


def latencies(replies: Sequence[Reply]) -> dict[str, float]:
    times = sorted(1000 * reply.seconds for reply in replies)
    return {"p50_ms": times[len(times) // 2], "p99_ms": times[int(len(times) * 0.99)]}


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE


if __name__ == "__main__":
    main()
