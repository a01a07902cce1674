"""A corpus that is read in parts, or by several processes, gives the plan of one reading from beginning to end."""

import bz2
import gzip
import json
import os
import random
import signal
from contextlib import nullcontext

import pytest
import zstandard

from pisco_index.configs import CorpusConfig
from pisco_index.corpus import open_corpus
from pisco_index.corpus.parts import cutting
from pisco_index.errors import CorpusError, PiscoIndexError
from pisco_index.pipeline.planning import planner, processes
from pisco_index.pipeline.planning.planner import plan_corpus
from pisco_index.pipeline.planning.processes import Processes, ThisProcess
from pisco_index.pipeline.planning.survey import survey_part

WORDS = "time person year way day thing man world life hand part child eye woman place work week case point".split()


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
        if pool is not None:
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
    return [b"id\ttext\n", *(f'{doc_id}\t"{text}\nand ""more""\n\n{doc_id}\tno row"\n'.encode() for doc_id, text in records)]


def late_quotes(records):
    return [b'%s, "so"\t"%s" they said\n' % (b"x" * (n == 1), n) if n > 70 else b"" for n in range(1)] + [
        f'{doc_id}\t{text}, {text}\n'.encode() if n < 70 else f'{doc_id}\t"{text}" was said\n'.encode()
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


@pytest.fixture(params=[97, 400])
def small_parts(request, monkeypatch):
    monkeypatch.setattr(cutting, "PART_BYTES", dict.fromkeys(cutting.PART_BYTES, request.param))


@pytest.mark.parametrize("packed", PACKED)
@pytest.mark.parametrize("written", WRITTEN)
def test_parts_make_the_plan_of_the_whole(tmp_path, small_parts, monkeypatch, written, packed):
    path = tmp_path / "corpus"
    path.write_bytes(PACKED[packed](written(rows(120))))
    config = {"quoting": "csv"} if written is quoted else {}
    whole = outcome([path], None, monkeypatch, **config)
    assert isinstance(whole, bytes), whole
    assert outcome([path], Parts(), monkeypatch, **config) == whole
