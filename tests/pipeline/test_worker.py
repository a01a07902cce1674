import threading
from contextlib import ExitStack

from pisco_index import Reader, build
from pisco_index.model.compressor import Compressor, Launched
from pisco_index.pipeline.planning.plan import Shard
from pisco_index.pipeline.worker import ShardWorker, _Steps
from pisco_index.store.codecs.quantised import Int8


def test_a_shard_is_launched_while_the_one_before_is_finished(checkpoint, make_corpus, small, tmp_path, monkeypatch):
    launch, finish = Compressor.launch, Launched.finish
    second, overlapped, count = threading.Event(), [], iter(range(100))

    def launch_and_tell(self, *arguments, **options):
        if next(count) == 1:
            second.set()
        return launch(self, *arguments, **options)

    def finish_after_that(self):
        overlapped.append(second.wait(20))
        return finish(self)

    monkeypatch.setattr(Compressor, "launch", launch_and_tell)
    monkeypatch.setattr(Launched, "finish", finish_after_that)
    build([make_corpus()], checkpoint, tmp_path / "store", small(store={"codec": "bf16"}))
    assert all(overlapped)
    assert len(Reader(tmp_path / "store")) == 40


def test_a_pulse_tells_how_far_the_first_of_several_shards_is():
    first, second = (Shard(number, (), 10, 100) for number in (1, 2))
    steps = _Steps()
    assert steps.pulse().doing == "waiting"
    with ExitStack() as computing, steps.doing("compressing", second):
        with steps.doing("compressing", first), steps.doing("reading", first):
            steps.computed(second, 3.0, 300, 0.25)
            steps.computed(first, 5.0, 500, 0.5)
            pulse = steps.pulse()
            assert (pulse.doing, pulse.shard, pulse.part, pulse.documents, pulse.tokens) == (
                "compressing",
                2,
                0.25,
                8,
                800,
            )
        computing.enter_context(steps.doing("writing", first))
        assert steps.pulse().doing == "compressing"
    assert steps.pulse().doing == "waiting"
    # One that was given up meanwhile does not come back.
    steps.computed(first, 1.0, 100, 1.0)
    assert steps.pulse().doing == "waiting"


def test_no_more_is_tokenized_than_a_sample_needs(checkpoint, make_corpus, small, tmp_path, monkeypatch):
    sample, tokenize, in_sample, counts = ShardWorker.sample, ShardWorker._tokenize, [], []

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
    monkeypatch.setattr(ShardWorker, "_tokenize", tokenize_and_count)
    build([make_corpus()], checkpoint, tmp_path / "store", small(store={"codec": "int8"}))
    # Five shards of eight documents: three vectors each, of documents from the first to the last.
    assert counts[0] == ["doc-0", "doc-4", "doc-7"]
    assert {len(ids) for ids in counts} <= {1, 2, 3}
