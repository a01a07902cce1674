import threading

from pisco_index import Reader, build
from pisco_index.model.compressor import Compressor, Launched
from pisco_index.pipeline.worker import ShardWorker


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


def test_a_pulse_tells_how_far_the_first_of_several_shards_is(checkpoint, make_corpus, small, tmp_path, monkeypatch):
    finish, pulses, workers = Launched.finish, [], []
    start = ShardWorker.__init__

    def start_and_keep(self, spec):
        start(self, spec)
        workers.append(self)

    def finish_and_look(self):
        pulses.append(workers[0].pulse())
        return finish(self)

    monkeypatch.setattr(ShardWorker, "__init__", start_and_keep)
    monkeypatch.setattr(Launched, "finish", finish_and_look)
    build([make_corpus()], checkpoint, tmp_path / "store", small(store={"codec": "bf16"}))
    # On a CPU all of a shard is computed when it has been launched.
    assert {pulse.doing for pulse in pulses} == {"compressing"}
    assert 1.0 in {pulse.part for pulse in pulses}
    assert all(0.0 <= pulse.part <= 1.0 for pulse in pulses)
    last = workers[0].pulse()
    assert (last.doing, last.shard, last.part, last.documents) == ("waiting", None, None, 40)
