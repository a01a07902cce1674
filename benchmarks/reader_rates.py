"""Rates of a reader for ``fetch.py``: one thread, several threads, lists together, and a decoder's embeddings."""

import random
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from measure import seconds
from random_store import create_store, rows_of
from safetensors.torch import save

from pisco_index import Reader
from pisco_index.configs.names import Stage
from pisco_index.model.connector import Connector
from pisco_index.store import CONNECTOR_ASSET, Store, commit, write_fragment

K, THREADS, ROUNDS = 10, 8, 5
# Lists in one call of fetch_many.
LISTS = 16
# Width, hidden width and output of a connector, and documents and vectors of the store for embeddings.
WIDTHS, DOCUMENTS, N_MEM = (512, 1024, 1024), 2000, 9


def rates(reader: Reader, doc_ids: Sequence[str]) -> dict[str, float]:
    """Return queries for 10 documents per second: medians of rounds in which the ways take turns."""
    ways: dict[str, Callable[[], float]] = {
        "queries_per_s": partial(_rate, reader, doc_ids, 1),
        f"queries_per_s_{THREADS}_threads": partial(_rate, reader, doc_ids, THREADS),
        "queries_per_s_fetch_many": partial(_rate_together, reader, doc_ids),
    }
    found: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, measure in ways.items():
            found[name].append(measure())
    return {name: round(statistics.median(each)) for name, each in found.items()}


def _rate(reader: Reader, doc_ids: Sequence[str], threads: int) -> float:
    queries = [random.sample(doc_ids, K) for _ in range(2000)]
    done = [0] * threads
    end = time.perf_counter() + 1

    def ask(thread: int) -> None:
        draw = random.Random(thread).choice
        while time.perf_counter() < end:
            for _ in range(10):
                reader.fetch(draw(queries))
            done[thread] += 10

    started = [threading.Thread(target=ask, args=(number,)) for number in range(threads)]
    began = time.perf_counter()
    for each in started:
        each.start()
    for each in started:
        each.join()
    return sum(done) / (time.perf_counter() - began)


def _rate_together(reader: Reader, doc_ids: Sequence[str]) -> float:
    times = []
    for _ in range(20):
        lists = [random.sample(doc_ids, K) for _ in range(LISTS)]
        times.append(seconds(partial(reader.fetch_many, lists)))
    return LISTS / statistics.median(times)


def embedding_times(folder: Path) -> dict[str, float]:
    """Return the microseconds that bfloat16 embeddings of 10 documents take, and those of fetch, connector and cast.

    Stage ``hidden`` has a connector, and stage ``embedding`` has memory of a decoder's width.
    """
    shapes = {"0.weight": WIDTHS[1::-1], "0.bias": WIDTHS[1:2], "2.weight": WIDTHS[:0:-1], "2.bias": WIDTHS[2:]}
    connector = Connector.from_state({name: torch.randn(shape) / 32 for name, shape in shapes.items()}, "benchmark")
    result: dict[str, float] = {}
    for stage in get_args(Stage):
        store = _embedding_store(folder / stage, stage, connector)
        with Reader(store.uri) as reader:
            doc_ids = list(reader.ids())
            own, other = [], []
            for _ in range(300):
                asked = random.sample(doc_ids, K)
                own.append(seconds(partial(reader.embeddings, asked, dtype=torch.bfloat16)))
                other.append(seconds(partial(_connected, reader, asked)))
        result[f"embeddings_{stage}_us"] = round(statistics.median(own) * 1e6, 1)
        result[f"embeddings_{stage}_baseline_us"] = round(statistics.median(other) * 1e6, 1)
        result[f"embeddings_{stage}_ratio"] = round(statistics.median(own) / statistics.median(other), 2)
    return result


def _connected(reader: Reader, doc_ids: Sequence[str]) -> torch.Tensor:
    return reader.connector.connect(reader.fetch(doc_ids)).values.bfloat16()


def _embedding_store(uri: Path, stage: Stage, connector: Connector) -> Store:
    dim = connector.in_dim if stage == "hidden" else connector.out_dim
    assets = {CONNECTOR_ASSET: save(connector.state())}
    store = create_store(uri, dim=dim, assets=assets, stage=stage, connector=connector.digest)
    memory = np.random.default_rng(0).standard_normal((DOCUMENTS, N_MEM, dim), dtype=np.float32)
    rows = rows_of([f"doc-{number}" for number in range(DOCUMENTS)], memory)
    commit(store, [write_fragment(store.uri, 0, rows)])
    return store.refresh()
