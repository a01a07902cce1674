"""The worker: shards overlap, and a sample costs no more than it needs."""

import threading

from pisco_index import Reader, build
from pisco_index.model.compressor import Compressor
from pisco_index.model.forward.pending import PendingMemory
from pisco_index.pipeline.decoder_reader import DecoderReader
from pisco_index.pipeline.reading.shard import ShardReader
from pisco_index.pipeline.worker import ShardWorker
from pisco_index.store.codecs.quantised import Int8


def test_a_shard_is_launched_while_the_one_before_is_finished(checkpoint, make_corpus, small, tmp_path, monkeypatch):
    launch, finish = Compressor.launch, PendingMemory.finish
    second, overlapped, count = threading.Event(), [], iter(range(100))

    def launch_and_tell(self, *arguments, **options):
        if next(count) == 1:
            second.set()
        return launch(self, *arguments, **options)

    def finish_after_that(self):
        overlapped.append(second.wait(20))
        return finish(self)

    monkeypatch.setattr(Compressor, "launch", launch_and_tell)
    monkeypatch.setattr(PendingMemory, "finish", finish_after_that)
    build([make_corpus()], checkpoint, tmp_path / "store", small(store={"codec": "bf16"}))
    assert all(overlapped)
    assert len(Reader(tmp_path / "store")) == 40


def test_no_more_is_tokenized_than_a_sample_needs(checkpoint, make_corpus, small, tmp_path, monkeypatch):
    sample, tokenize, in_sample, counts = ShardWorker.sample, ShardReader.tokenize, [], []

    def sample_and_tell(self, *arguments):
        in_sample.append(True)
        try:
            return sample(self, *arguments)
        finally:
            in_sample.pop()

    def tokenize_and_count(self, documents):
        if in_sample:
            counts.append([document.doc_id for document in documents])
        return tokenize(self, documents)

    monkeypatch.setattr(Int8, "sample_vectors", lambda *_: 15)
    monkeypatch.setattr(ShardWorker, "sample", sample_and_tell)
    monkeypatch.setattr(ShardReader, "tokenize", tokenize_and_count)
    build([make_corpus()], checkpoint, tmp_path / "store", small(store={"codec": "int8"}))
    # Five shards of eight documents: three vectors each, of documents from the first to the last.
    assert counts[0] == ["doc-0", "doc-4", "doc-7"]
    assert {len(ids) for ids in counts} <= {1, 2, 3}


def test_no_decoder_is_loaded_while_shards_are_done(checkpoint, make_corpus, small, tmp_path, monkeypatch):
    """Even if another worker of a cluster measures the divergence, as this one seems not to."""
    write, loaded = ShardWorker._write, []

    def fail(*_):
        raise RuntimeError("elsewhere")

    def write_and_look(self, *arguments):
        loaded.append(self._decoder._loaded)
        return write(self, *arguments)

    monkeypatch.setattr(DecoderReader, "divergence", fail)
    monkeypatch.setattr(ShardWorker, "_write", write_and_look)
    build([make_corpus()], checkpoint, tmp_path / "store", small(store={"codec": "fisher2"}))
    assert loaded == [None] * 5
