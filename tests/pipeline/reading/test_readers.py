"""Reader processes give what the worker's threads read, are as many as it takes, and may die without harm."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import lancedb
import pytest

from pisco_index import build
from pisco_index.corpus import open_corpus
from pisco_index.errors import CorpusError
from pisco_index.pipeline.job import prepare
from pisco_index.pipeline.planning.planner import plan_corpus
from pisco_index.pipeline.reading import readers as readers_module
from pisco_index.pipeline.reading.process import ReaderDiedError
from pisco_index.pipeline.reading.readers import Readers, ShardCancelledError, readers_limit
from pisco_index.pipeline.reading.shard import NoPassages, Reading
from pisco_index.pipeline.steps import Steps

from .conftest import await_end_of, linux, reader_pids

PAGE = "<page><title>{title}</title><ns>0</ns><id>{id}</id><revision><text>{text}</text></revision></page>"


@pytest.fixture
def dump(tmp_path):
    """An export of 60 articles, of which one cannot be used."""
    pages = []
    for number in range(60):
        text = f"'''Town {number}''' lies by [[River|a river]] {{{{box|{number}}}}}. " + "It has a long history. " * 40
        pages.append(PAGE.format(title=f"Town {number}", id=number + 1 if number != 17 else "", text=text))
    path = tmp_path / "dump.xml"
    path.write_text(f"<mediawiki>{''.join(pages)}</mediawiki>")
    return path


def rows(uri):
    tables = lancedb.connect(str(uri))
    found = [tables.open_table(name).to_arrow().to_pylist() for name in ("memory", "rejected")]
    return [sorted(table, key=json.dumps if i else lambda row: row["doc_id"]) for i, table in enumerate(found)]


@pytest.mark.usefixtures("plain_compressor")
def test_stores_do_not_depend_on_who_reads(checkpoint, dump, small, tmp_path):
    settings = {"corpus": {"on_error": "skip"}, "store": {"codec": "int8", "keep": ["title", "text"]}}
    for count in (0, 2):
        config = small(**settings, run={"reader_processes": count})
        build([dump], checkpoint, tmp_path / str(count), config)
    memory, rejected = rows(tmp_path / "2")
    assert [memory, rejected] == rows(tmp_path / "0")
    assert (len(memory), len(rejected)) == (59 * 3, 1)


@contextmanager
def opened(reading, **settings):
    readers = Readers(reading, **{"count": None, "limit": 3, "hang_s": 60.0, "steps": Steps(), **settings})
    with closing(readers):
        yield readers


@pytest.fixture
def reading(checkpoint, make_corpus, small, tmp_path):
    """What readers require, and shards of 600 documents."""
    job = prepare([make_corpus(1200)], checkpoint, tmp_path / "store", small())
    plan = plan_corpus(open_corpus(job.paths, job.config.corpus), shard_documents=600)
    tokenizer = job.checkpoint.passage_tokenizer(job.config.compression)
    return Reading(plan.sources, job.config.compression, tokenizer), plan.shards


def equal(one, other):
    arrays = ("ids", "lengths", "n_mem", "total", "fed")
    same = all((getattr(one.tokens, name) == getattr(other.tokens, name)).all() for name in arrays)
    return same and (one.doc_ids, one.titles, one.texts) == (other.doc_ids, other.titles, other.texts)


def test_texts_without_memory_are_read_too(reading):
    reading, shards = reading
    with opened(replace(reading, tokenizer=NoPassages()), count=1) as readers:
        read = readers.read(shards[1])
    assert (len(read.texts), len(read.tokens), len(read.tokens.ids), read.tokens.n_mem.sum()) == (600, 600, 0, 0)


@linux
def test_a_reader_process_is_small(reading):
    reading, shards = reading
    with opened(reading, count=1) as readers:
        assert equal(readers.read(shards[1], {3, 599}), readers.here.read(shards[1], {3, 599}))
        loaded = Path(f"/proc/{readers._idle[0]._process.pid}/maps").read_text()
    assert "tokenizers" in loaded
    assert not re.search("libtorch|lance|/ray/", loaded)


@pytest.mark.fault(
    "A reader process is killed, for example for lack of memory, or hangs.",
    "It is replaced, and its shard is read again.",
)
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
def test_a_shard_whose_reader_is_lost_is_read_again(reading, strike, number):
    reading, shards = reading
    struck = strike(number)
    with opened(reading, count=1, hang_s=1.0) as readers:
        assert equal(readers.read(shards[1]), readers.here.read(shards[1]))
        assert len(struck) == 1
        # The next one is used again.
        (second,) = readers._idle
        readers.read(shards[0])
        assert readers._idle == [second]


@pytest.mark.parametrize(
    ("number", "reason"), [(signal.SIGKILL, "died of SIGKILL"), (signal.SIGSTOP, "took no step for 1 s and was ended")]
)
def test_a_shard_whose_readers_are_lost_every_time_fails(reading, strike, number, reason):
    reading, shards = reading
    struck = strike(number, times=99)
    with opened(reading, count=1, hang_s=1.0) as readers:
        with pytest.raises(ReaderDiedError, match=f"shard 1 was read 2 times, and each time a reader process {reason}"):
            readers.read(shards[1])
        assert len(struck) == 2
        await_end_of(struck)


def test_an_error_of_reading_is_raised_here(reading):
    reading, shards = reading
    with opened(reading, count=1) as readers:
        with pytest.raises(CorpusError, match="planned with 601 documents"):
            readers.read(replace(shards[0], records=601))
        assert len(readers.read(shards[0]).doc_ids) == 600


def test_waiting_for_a_reader_counts_as_steps_and_ends_when_the_worker_stops(reading, strike):
    reading, shards = reading
    strike(signal.SIGSTOP)
    steps = Steps()
    with opened(reading, count=1, steps=steps) as readers:
        threading.Timer(1.5, readers.stop).start()
        with pytest.raises(ShardCancelledError):
            readers.read(shards[0])
    assert steps.pulse().steps >= 3


class TestTheNumber:
    def test_without_processes_the_calling_thread_reads(self, reading):
        reading, shards = reading
        with opened(reading, count=0) as readers:
            readers.compare(100.0, 1.0)
            readers.compare(100.0, 1.0)
            assert readers.count == 0
            assert len(readers.read(shards[0]).doc_ids) == 600
            assert not readers._idle

    @pytest.mark.parametrize(
        ("times", "count"),
        [
            ([(4.0, 1.0)], 0),  # One shard proves nothing.
            ([(0.5, 0.1), (0.5, 0.1)], 0),  # Nor is it worth a process that takes longer to start.
            ([(4.0, 10.0)] * 5, 0),
            ([(9.0, 1.0), (1.2, 10.0), (9.0, 10.0)], 0),  # A shard may be slow by chance.
            ([(4.0, 5.0)] * 2, 1),
            ([(4.0, 2.4)] * 2, 3),
            ([(90.0, 1.0)] * 2, 5),
            ([(4.0, 5.0)] * 2 + [(4.0, 2.4)] * 2 + [(4.0, 20.0)] * 5, 3),
        ],
    )
    def test_it_follows_from_the_times_of_reading_and_computing(self, reading, times, count):
        with opened(reading[0], limit=5) as readers:
            for read_s, computed_s in times:
                readers.compare(read_s, computed_s)
            assert readers.count == count

    def test_a_worker_keeps_a_core_for_itself(self):
        assert [readers_limit(asked, cores) for asked, cores in ((None, 4), (None, 1), (7, 1), (0, 9))] == [3, 0, 7, 0]
        assert 0 <= readers_limit(None, None) < os.cpu_count()

    @pytest.mark.usefixtures("plain_compressor")
    def test_a_build_with_slow_reading_changes_over(self, checkpoint, dump, small, tmp_path, monkeypatch):
        monkeypatch.setattr(readers_module, "_WORTH_S", 0.0)
        monkeypatch.setattr(readers_module, "_IN_THREAD", 0.0)
        monkeypatch.setattr(readers_module, "readers_limit", lambda *_: 2)
        monkeypatch.setattr("pisco_index.pipeline.worker.readers_limit", lambda *_: 2)
        counts, compare = [], Readers.compare

        def compare_and_count(self, *times):
            compare(self, *times)
            counts.append(self.count)

        monkeypatch.setattr(Readers, "compare", compare_and_count)
        settings = {"corpus": {"on_error": "skip"}, "store": {"codec": "int8", "keep": ["title", "text"]}}
        for count in (None, 0):
            build([dump], checkpoint, tmp_path / str(count), small(**settings, run={"reader_processes": count}))
        assert 0 < max(counts) <= 2
        assert rows(tmp_path / "None") == rows(tmp_path / "0")


def has_opened(pid):
    """Return True if a reader process has received its tokenizer."""
    with suppress(OSError):
        return "tokenizers" in Path(f"/proc/{pid}/maps").read_text()
    return False


@pytest.mark.fault(
    "The build is killed while its reader processes work, hang or are stopped.",
    "They end too.",
)
@linux
@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGINT])
def test_readers_end_with_their_build(checkpoint, make_corpus, tmp_path, ending):
    config = tmp_path / "config.json"
    run = {"shard_documents": 8, "reader_processes": 2, "hang_seconds": 600}
    config.write_text(json.dumps({"run": run, "compression": {"max_length": 64}}))
    command = [sys.executable, "-m", "pisco_index.cli", "build", make_corpus(4000), "-k", checkpoint, "-c", config]
    before = set(reader_pids())
    running = subprocess.Popen(
        [*map(str, command), "-o", str(tmp_path / "store")], start_new_session=True, stderr=subprocess.DEVNULL
    )
    try:
        while len(pids := {pid for pid in set(reader_pids()) - before if has_opened(pid)}) < 2:
            assert running.poll() is None
            time.sleep(0.05)
        if ending == signal.SIGKILL:
            os.kill(pids.pop(), signal.SIGSTOP)
            running.kill()
        else:
            # As a terminal sends it: to all processes of the command.
            os.killpg(running.pid, signal.SIGINT)
        assert running.wait(60) == (130 if ending == signal.SIGINT else -signal.SIGKILL)
    finally:
        running.kill()
        running.wait()
    await_end_of(set(reader_pids()) - before)
