"""Fuzz tests of readers: their settings, and the reading that they share.

``PISCO_INDEX_FUZZ=100000`` sets the number of examples of each fuzz test (``make fuzz``). Without it, a test has few.
"""

import json
import os
from collections import Counter

import pytest
from hypothesis import HealthCheck, settings

from pisco_index.configs.corpus import CorpusConfig
from pisco_index.corpus import open_corpus, open_source
from pisco_index.errors import CorpusError


def fuzz(examples):
    """Settings of a fuzz test: the same few examples in each run, or many new ones. One folder may serve them all."""
    wanted = os.environ.get("PISCO_INDEX_FUZZ")
    return settings(
        max_examples=int(wanted or examples),
        derandomize=wanted is None,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


def read(path, cuts=(), **config):
    """Documents and rejected records of a file, read in slices; checks that scanning and reading agree."""
    sources = open_corpus([path], CorpusConfig(**config)).sources
    if not sources:
        # The file is empty but for a byte order mark.
        return [], []
    (source,) = sources
    found = []
    records = list(source.scan(Counter(), found.append))
    places = [item.position for item in (*records, *found) if item.position is not None]
    starts = sorted({0, *(sorted(places)[cut % len(places)] for cut in cuts if places)})
    reader = open_source(json.loads(json.dumps(source.spec)))
    documents, rejected = [], []
    for start, stop in zip(starts, [*starts[1:], None], strict=True):
        documents += reader.read(start, stop, rejected.append)
    assert [each.position for each in rejected] == [each.position for each in found]
    if source.spec["format"] != "mediawiki":
        first = "#0" if config.get("passage_words") else ""
        whole = [document.doc_id for document in documents if document.doc_id.endswith(first)]
        assert whole == [record.doc_id + first for record in records]
    for text in (*(d.text for d in documents), *(r.source + r.error for r in rejected)):
        text.encode()
    return documents, rejected


def check_any(path, cuts, **config):
    """Read any bytes; check that records that are rejected if errors are skipped are errors if they are not."""
    _, rejected = read(path, cuts, on_error="skip", **config)
    if not rejected:
        read(path, cuts, **config)
        return
    with pytest.raises(CorpusError) as caught:
        read(path, cuts, **config)
    assert "\n" not in str(caught.value)
    assert path.name in str(caught.value)
