"""Fixtures that write a file, open it, and read it in pieces as shards do."""

import json
from collections import Counter
from pathlib import Path

import pytest

from pisco_index.configs.corpus import CorpusConfig
from pisco_index.corpus import open_corpus, open_source
from pisco_index.errors import CorpusError


@pytest.fixture
def write(tmp_path):
    def write_file(name: str, data: bytes | str) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data.encode() if isinstance(data, str) else data)
        return path

    return write_file


@pytest.fixture
def sources():
    """Open a path with configuration keys and return its sources."""
    return lambda path, **config: open_corpus([path], CorpusConfig(**config)).sources


@pytest.fixture
def documents(sources):
    """Read all documents of a path. Each source is scanned first, as in a build."""

    def read(path, **config):
        found = []
        for source in sources(path, **config):
            list(source.scan(Counter()))
            found += source.read(0, None)
        return found

    return read


@pytest.fixture
def refusal(sources):
    """Return the message with which a path is refused when it is opened and scanned."""

    def message(path, **config) -> str:
        with pytest.raises(CorpusError) as caught:
            [list(source.scan(Counter())) for source in sources(path, **config)]
        text = str(caught.value)
        assert "\n" not in text, "a message is one paragraph"
        return text

    return message


@pytest.fixture
def read_in_shards():
    """Read a source in shards between cuts, in a given order, each one opened from a spec that went through JSON."""

    def read(source, cuts, order=None, reopen=True):
        positions = [record.position for record in source.scan(Counter())]
        assert positions == sorted(set(positions)), "positions rise strictly"
        starts = sorted({0, *(cut % len(positions) for cut in cuts)}) if positions else [0]
        bounds = [positions[start] if positions else 0 for start in starts]
        shards = list(zip(bounds, [*bounds[1:], None], strict=True))
        spec = json.loads(json.dumps(source.spec))
        pieces = {}
        for index in sorted(range(len(shards)), key=lambda shard: (order or range(len(shards)))[shard]):
            reader = open_source(spec) if reopen else source
            pieces[index] = list(reader.read(*shards[index]))
        return [document for index in sorted(pieces) for document in pieces[index]]

    return read
