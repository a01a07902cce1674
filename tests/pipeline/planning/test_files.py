"""A plan is resumed over the corpus that it was made from, and a file that changes meanwhile is noticed."""

from dataclasses import replace

import pytest

from pisco_index.configs import CorpusConfig
from pisco_index.corpus import open_corpus
from pisco_index.errors import CorpusError, PlanMismatchError
from pisco_index.pipeline.planning.files import CorpusWatch, resume_plan

from .conftest import documents, ids_by_shard, plan, write


class TestResume:
    def resume(self, found, *paths, config=None):
        config = config or CorpusConfig()
        return resume_plan(found, open_corpus(paths, config))

    def test_the_same_corpus_elsewhere(self, tmp_path):
        path = write(tmp_path / "a" / "corpus.jsonl", documents(9))
        found = plan(path)
        moved = tmp_path / "b" / "corpus.jsonl"
        moved.parent.mkdir()
        path.rename(moved)
        resumed = self.resume(found, moved)
        assert resumed.shards == found.shards
        assert len(ids_by_shard(resumed)) == 3

    @pytest.mark.fault(
        "The corpus changed before its build was finished.",
        "The build is refused, naming what changed.",
    )
    def test_other_content_of_the_same_size(self, tmp_path):
        path = write(tmp_path / "corpus.jsonl", documents(9))
        found = plan(path)
        path.write_text(path.read_text().replace("some", "same"))
        with pytest.raises(PlanMismatchError, match=r"corpus\.jsonl has other content"):
            self.resume(found, path)

    def test_another_size(self, tmp_path):
        path = write(tmp_path / "corpus.jsonl", documents(9))
        found = plan(path)
        size = path.stat().st_size
        write(path, documents(10))
        with pytest.raises(PlanMismatchError, match=rf"had {size} bytes and has {path.stat().st_size}"):
            self.resume(found, path)

    def test_files_that_came_and_went(self, tmp_path):
        folder = tmp_path / "in"
        write(folder / "a.jsonl", documents(2))
        write(folder / "b.jsonl", documents(2, start=2))
        found = plan(folder)
        (folder / "b.jsonl").rename(folder / "c.jsonl")
        with pytest.raises(PlanMismatchError, match=r"b\.jsonl is missing; in/c\.jsonl is new"):
            self.resume(found, folder)

    def test_files_in_another_order(self, tmp_path):
        paths = [write(tmp_path / f"{n}.jsonl", documents(2, start=n * 2)) for n in range(2)]
        found = plan(*paths)
        with pytest.raises(PlanMismatchError, match="another order"):
            self.resume(found, *reversed(paths))

    def test_other_reading_options(self, tmp_path):
        path = write(tmp_path / "corpus.jsonl", documents(2))
        with pytest.raises(
            PlanMismatchError, match=r"corpus\.jsonl was read with passage_words None and is to be read with 50"
        ):
            self.resume(plan(path), path, config=CorpusConfig(passage_words=50))


def test_another_wording_of_an_unrecognised_files_error_is_no_change(tmp_path):
    (tmp_path / "a.bin").write_bytes(b"%PDF-1.4 no corpus")
    write(tmp_path / "corpus.jsonl", documents(2))
    config = CorpusConfig(on_error="skip")
    corpus = open_corpus([tmp_path], config)
    found = plan(tmp_path, config=config)
    old = replace(found, sources=({**found.sources[0], "error": "worded otherwise"}, *found.sources[1:]))
    assert resume_plan(old, corpus).shards == found.shards


def test_naming_what_was_recognised_is_no_change(tmp_path):
    path = write(tmp_path / "corpus.jsonl", documents(2))
    named = CorpusConfig(format="jsonl", id_field="id", text_field="text")
    assert resume_plan(plan(path), open_corpus([path], named)).shards == plan(path).shards


class TestWatch:
    def watch(self, path):
        return CorpusWatch(open_corpus([path], CorpusConfig()).sources)

    def test_a_file_that_is_written_to(self, tmp_path):
        path = write(tmp_path / "corpus.jsonl", documents(3))
        found, watch = plan(path), self.watch(path)
        watch.require_unchanged(found.files)
        path.write_text(path.read_text().replace("some", "SOME"))
        with pytest.raises(CorpusError, match=r"corpus\.jsonl: the file changed while the build was reading it"):
            watch.require_unchanged(found.files)

    def test_a_file_that_is_only_touched(self, tmp_path):
        path = write(tmp_path / "corpus.jsonl", documents(3))
        found, watch = plan(path), self.watch(path)
        path.touch()
        watch.require_unchanged(found.files)

    def test_a_file_that_is_gone(self, tmp_path):
        path = write(tmp_path / "corpus.jsonl", documents(3))
        watch = self.watch(path)
        path.unlink()
        with pytest.raises(CorpusError, match="cannot be read"):
            watch.require_unchanged()
