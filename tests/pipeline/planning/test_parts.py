"""A corpus that is read in parts, or by several processes, gives the plan of one reading from beginning to end."""

import bz2
import gzip
import json
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import pytest
import zstandard

import pisco_index
from pisco_index.configs import CorpusConfig
from pisco_index.corpus import open_corpus
from pisco_index.corpus.parts import cutting
from pisco_index.errors import CorpusError, PiscoIndexError
from pisco_index.pipeline.planning import planner, processes
from pisco_index.pipeline.planning.ordering import OrderedReading
from pisco_index.pipeline.planning.planner import plan_corpus
from pisco_index.pipeline.planning.processes import Processes, ThisProcess
from pisco_index.pipeline.planning.survey import Survey, survey_part

WORDS = ("time", "person", "year", "way", "day", "thing", "man", "world", "life", "hand", "part", "child", "eye")


class Parts(ThisProcess):
    """Reads parts in this process, each without knowing the others."""

    def readers(self, sources, survey, parts):
        return PartReaders(sources, survey, parts)


class PartReaders:
    def __init__(self, sources, survey, parts):
        self.sources, self.survey, self.given, self.again = sources, survey, parts, 0

    def parts(self, index):
        if self.given is not None:
            return iter([part for part in self.given if part.source == index])
        return cutting.parts_of(index, self.sources[index])

    def read(self, part):
        return survey_part(self.sources[part.source], part, self.survey)

    def discard(self, part):
        pass


def outcome(paths, pool, monkeypatch, shard_documents=3, **config):
    """Plan a corpus; return the plan or the message of the error."""
    with monkeypatch.context() as patch:
        patch.setattr(planner, "reading_pool", lambda sources, count: nullcontext(pool))
        try:
            plan = plan_corpus(open_corpus(paths, CorpusConfig(**config)), shard_documents=shard_documents)
            return plan.to_json()
        except CorpusError as error:
            return str(error)


def rows(count, seed=0, longest=40):
    chance = random.Random(seed)
    return [(f"d{n}", " ".join(chance.choices(WORDS, k=chance.randrange(longest)))) for n in range(count)]


def jsonl(records):
    return [json.dumps({"id": doc_id, "text": text}).encode() + b"\n" for doc_id, text in records]


def tsv(records):
    return [f"{doc_id}\t{text}\n".encode() for doc_id, text in records]


def quoted(records):
    return [
        b"id\ttext\n",
        *(f'{doc_id}\t"{text}\nand ""more""\n\n{doc_id}\tno row"\n'.encode() for doc_id, text in records),
    ]


def late_quotes(records):
    return [b'%s, "so"\t"%s" they said\n' % (b"x" * (n == 1), n) if n > 70 else b"" for n in range(1)] + [
        f"{doc_id}\t{text}, {text}\n".encode() if n < 70 else f'{doc_id}\t"{text}" was said\n'.encode()
        for n, (doc_id, text) in enumerate(records)
    ]


def bulk(records):
    return [
        json.dumps({"index": {"_id": doc_id}}).encode() + b"\n" + json.dumps({"text": text}).encode() + b"\n"
        for doc_id, text in records
    ]


def packed_objects(records):
    lines = jsonl(records)
    return [b" ".join(line.strip() for line in lines[n : n + 3]) + b"\n" for n in range(0, len(lines), 3)]


PAGE = (
    "<page>\n<title>{1}</title><ns>{2}</ns><id>{0}</id>{3}<revision><id>{4}</id><timestamp>2020-01-01T00:00:{5:02}Z"
    "</timestamp><text>{6}</text></revision></page>\n"
)


def pages(records):
    found = [b'<mediawiki xml:lang="en"><siteinfo><namespaces><namespace key="0"/></namespaces></siteinfo>\n']
    for n, (_, text) in enumerate(records):
        redirect = '<redirect title="A"/>' if n % 5 == 0 else ""
        # Of some pages there are several versions in succession.
        for version in range(1 + 3 * (n % 4 == 1)):
            found.append(PAGE.format(n + 1, f"T{n}", int(n % 7 == 3), redirect, n, version, text).encode())
    return [*found, b"</mediawiki>\n"]


def as_it_is(pieces):
    return b"".join(pieces)


def members(compress, size=3, aligned=True):
    def packed(pieces):
        data = b"".join(pieces)
        if aligned:
            parts = [b"".join(pieces[n : n + size]) for n in range(0, len(pieces), size)]
        else:
            parts = [data[n : n + 211] for n in range(0, len(data), 211)]
        return b"".join(map(compress, parts))

    return packed


PACKED = {
    "plain": as_it_is,
    "bz2": members(bz2.compress),
    "bz2-unaligned": members(bz2.compress, aligned=False),
    "gzip-unaligned": members(gzip.compress, aligned=False),
    "zstd": members(zstandard.compress),
    "zstd-skippable": members(lambda data: b"\x50\x2a\x4d\x18\3\0\0\0abc" + zstandard.compress(data), aligned=False),
    "bz2-one": lambda pieces: bz2.compress(b"".join(pieces)),
}
WRITTEN = [jsonl, tsv, quoted, late_quotes, bulk, packed_objects, pages]


def cut_every(size, monkeypatch):
    monkeypatch.setattr(cutting, "PART_BYTES", dict.fromkeys(cutting.PART_BYTES, size))


CASES = [
    *((jsonl, packed) for packed in PACKED),
    *((pages, packed) for packed in PACKED),
    *(
        (written, packed)
        for written in (tsv, quoted, late_quotes, bulk, packed_objects)
        for packed in ("plain", "zstd")
    ),
]


@pytest.mark.parametrize(("written", "packed"), CASES)
@pytest.mark.parametrize("size", [97, 1000])
def test_parts_make_the_plan_of_the_whole(tmp_path, monkeypatch, written, packed, size):
    cut_every(size, monkeypatch)
    path = tmp_path / "corpus"
    path.write_bytes(PACKED[packed](written(rows(80))))
    config = {"quoting": "csv"} if written is quoted else {}
    whole = outcome([path], ThisProcess(), monkeypatch, **config)
    assert isinstance(whole, bytes), whole
    assert outcome([path], Parts(), monkeypatch, **config) == whole


@pytest.mark.parametrize("packed", ["plain", "gzip-unaligned", "zstd"])
@pytest.mark.parametrize("written", [jsonl, tsv, pages])
@pytest.mark.parametrize("on_error", ["fail", "skip"])
@pytest.mark.parametrize("damage", ["record", "repeated", "truncated"])
def test_errors_of_parts_are_those_of_the_whole(tmp_path, monkeypatch, written, packed, on_error, damage):
    cut_every(150, monkeypatch)
    pieces = written(rows(60))
    if damage == "record":
        for n in (31, 32, 47):
            pieces[n] = pieces[n].replace(b"\t", b" ").replace(b'"text"', b'"txt"').replace(b"</title>", b"</ttle>")
    elif damage == "repeated":
        pieces[3:3] = pieces[44:45]
        pieces[20:20] = pieces[40:42]
    data = PACKED[packed](pieces)
    path = tmp_path / "corpus"
    path.write_bytes(data[: -len(data) // 3] if damage == "truncated" else data)
    found = [
        outcome([path], pool, monkeypatch, on_error=on_error, format="tsv" if written is tsv else "auto")
        for pool in (ThisProcess(), Parts())
    ]
    assert found[0] == found[1]
    versions = written is pages and damage == "repeated"
    assert isinstance(found[0], bytes) == (
        on_error == "skip" or versions or (damage == "truncated" and packed == "plain" and written is tsv)
    )


def test_rejected_records_keep_their_places(tmp_path, monkeypatch):
    cut_every(150, monkeypatch)
    pieces = jsonl(rows(60))
    pieces[40] = b'{"id": "x"}\n'
    path = tmp_path / "corpus.jsonl"
    path.write_bytes(b"".join(pieces))
    found = []
    for pool in (ThisProcess(), Parts()):
        corpus = open_corpus([path], CorpusConfig(on_error="skip"))
        readers = pool.readers(corpus.sources, Survey(), None)
        asides = [aside for batch in OrderedReading(corpus.sources, readers).batches(0) for aside in batch.asides]
        found.append([(aside.place, aside.item) for aside in asides])
    assert found[0] == found[1]
    assert [item.source for _, item in found[0]] == ["corpus.jsonl, line 41"]


def test_bytes_that_look_like_a_member_cost_no_record(tmp_path, monkeypatch):
    cut_every(64, monkeypatch)
    # So short a frame is stored as it is, and holds the beginning of another one.
    lines = [b"d%d\tP*M\x18\2\0\0\0%d\n" % (n, n % 7) if n > 40 else b"d%d\ttext\n" % n for n in range(200)]
    path = tmp_path / "corpus.zst"
    path.write_bytes(b"".join(map(zstandard.compress, lines)))
    assert path.read_bytes().count(b"P*M\x18") == 159
    whole = outcome([path], ThisProcess(), monkeypatch)
    assert isinstance(whole, bytes)
    assert outcome([path], Parts(), monkeypatch) == whole


def planned(pool, path, **config):
    with nullcontext(pool), pytest.MonkeyPatch.context() as patch:
        return outcome([path], pool, patch, **config)


@pytest.fixture(scope="module")
def pool():
    with Processes(2) as both:
        yield both


@pytest.fixture
def large(tmp_path, monkeypatch):
    cut_every(20_000, monkeypatch)
    path = tmp_path / "corpus.jsonl"
    path.write_bytes(b"".join(jsonl(rows(3000))))
    return path


def test_processes_make_the_plan_of_one(pool, large, tmp_path):
    with large.open("ab") as file:
        file.write(b'{"id": "d5", "text": ""}\n{"id": 7}\n')
    for on_error in ("fail", "skip"):
        assert planned(pool, large, on_error=on_error) == planned(ThisProcess(), large, on_error=on_error)
    other = tmp_path / "dump.xml.bz2"
    other.write_bytes(PACKED["bz2"](pages(rows(300))))
    assert planned(pool, other) == planned(ThisProcess(), other)


@pytest.mark.fault(
    "A process that reads the corpus dies while a build is planned.",
    "Another process reads its part again. After three deaths the build ends with an error.",
)
@pytest.mark.parametrize("deaths", [2, 3])
def test_a_process_that_dies_is_replaced(large, monkeypatch, deaths):
    begin, killed = processes._Worker.begin, []

    def begin_and_die(self, *arguments):
        begin(self, *arguments)
        if len(killed) < deaths:
            killed.append(self.process.pid)
            self.process.kill()

    monkeypatch.setattr(processes._Worker, "begin", begin_and_die)
    with Processes(2) as pool:
        if deaths == 2:
            assert planned(pool, large) == planned(ThisProcess(), large)
            assert not set(killed) & set(pool.pids)
        else:
            with pytest.raises(PiscoIndexError, match=r"lost 3 of the processes .* last one died of SIGKILL"):
                planned(pool, large)


PLANNING = """
import sys
from contextlib import nullcontext
from pisco_index.configs import CorpusConfig
from pisco_index.corpus import open_corpus
from pisco_index.corpus.parts import cutting
from pisco_index.pipeline.planning import planner
from pisco_index.pipeline.planning.processes import Processes

cutting.PART_BYTES = dict.fromkeys(cutting.PART_BYTES, 20_000)
corpus = open_corpus(sys.argv[1:], CorpusConfig())
with Processes(2) as pool:
    print(*pool.pids, flush=True)
    planner.reading_pool = lambda *_: nullcontext(pool)
    while True:
        planner.plan_corpus(corpus, shard_documents=9)
"""


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGKILL])
def test_processes_end_with_the_build(large, ending):
    environment = {**os.environ, "PYTHONPATH": str(Path(pisco_index.__file__).parents[1])}
    command = [sys.executable, "-c", PLANNING, str(large)]
    build = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment)
    pids = [int(pid) for pid in build.stdout.readline().split()]
    time.sleep(0.5)
    build.send_signal(ending)
    _, errors = build.communicate(timeout=60)
    deadline = time.monotonic() + 60
    while any(Path(f"/proc/{pid}").exists() for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
    assert errors.count(b"Traceback") == (ending == signal.SIGINT), errors
