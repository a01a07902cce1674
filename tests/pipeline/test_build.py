"""A build from beginning to end, in this process."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import lancedb
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from pisco_index import (
    BuildConfig,
    Compressor,
    Reader,
    ask,
    build,
    build_status,
    dry_run,
    new_tiny_checkpoint,
    open_checkpoint,
    recode,
)
from pisco_index.errors import (
    BuildIncompleteError,
    BuildInterruptedError,
    CheckpointError,
    CorpusError,
    FingerprintMismatchError,
    InputError,
    PlanMismatchError,
    StoreError,
    StoreLockedError,
)
from pisco_index.model.passages import PassageTokenizer
from pisco_index.pipeline import estimate as estimate_module
from pisco_index.pipeline.pools.crashes import CrashLog
from pisco_index.pipeline.watch.progress import BuildProgress
from pisco_index.pipeline.worker import ShardWorker
from pisco_index.store import MemorySample, Store, build_lock, text_hash
from pisco_index.store.codecs.prediction import normalised_error_db

from .conftest import fail_on

ENWIKI = Path(__file__).parents[3] / "shared" / "data" / "enwiki-sample.xml.bz2"
ORACLE = Path(__file__).parents[3] / "shared" / "oracle" / "ckpt"


def rows(uri):
    """All rows of a store, by id, as plain lancedb reads them."""
    table = lancedb.connect(str(uri)).open_table("memory").to_arrow()
    return {row["doc_id"]: row for row in table.to_pylist()}


def test_memory_in_the_store_is_what_the_compressor_computes(checkpoint, make_corpus, small, tmp_path):
    corpus = make_corpus()
    build([corpus], checkpoint, tmp_path / "store", small())
    opened = open_checkpoint(checkpoint)
    tokenizer = PassageTokenizer(opened.compressor_tokenizer, rate=8, max_length=64)
    compressor = Compressor.load(opened, dtype=torch.float32)
    records = [json.loads(line) for line in corpus.read_text().splitlines()]
    with Reader(tmp_path / "store") as reader:
        memory = reader.fetch([record["id"] for record in records])
        assert len(reader) == len(records)
    texts = [f"{record['title']}\n{record['text']}" for record in records]
    for tokenized, stored in zip(tokenizer.tokenize(texts), memory, strict=True):
        expected = compressor.compress(tokenized.passages).values
        assert stored.shape == expected.shape
        torch.testing.assert_close(stored, expected, rtol=0, atol=1e-5)


def test_each_passage_may_begin_with_the_title(checkpoint, make_corpus, small, tmp_path):
    corpus = make_corpus(9)
    title_once = small(compression={"max_length": 16, "repeat_title": False})
    build([corpus], checkpoint, tmp_path / "once", title_once)
    build([corpus], checkpoint, tmp_path / "each", small(compression={"max_length": 16, "repeat_title": True}))
    opened = open_checkpoint(checkpoint)
    tokenizer = PassageTokenizer(opened.compressor_tokenizer, rate=8, max_length=16)
    compressor = Compressor.load(opened, dtype=torch.float32)
    records = [json.loads(line) for line in corpus.read_text().splitlines()]
    texts = [f"{record['title']}\n{record['text']}" for record in records]
    tokenized = list(tokenizer.tokenize(texts, [f"{record['title']}\n" for record in records]))
    assert any(len(document.passages) > 1 for document in tokenized)
    with Reader(tmp_path / "each") as reader, Reader(tmp_path / "once") as other:
        memory = reader.fetch([record["id"] for record in records])
        assert "repeat_title" not in other.meta.fingerprint.components
    for document, stored in zip(tokenized, memory, strict=True):
        torch.testing.assert_close(stored, compressor.compress(document.passages).values, rtol=0, atol=1e-5)
    with pytest.raises(FingerprintMismatchError, match="repeat_title: True"):
        build([corpus], checkpoint, tmp_path / "each", title_once)


@pytest.mark.parametrize("stage", ["hidden", "embedding"])
@pytest.mark.parametrize("codec", ["bf16", "fp32"])
def test_stage_and_codec(checkpoint, make_corpus, small, tmp_path, stage, codec):
    config = small(store={"stage": stage, "codec": codec}, compression={"dtype": "bfloat16"})
    build([make_corpus(9)], checkpoint, tmp_path / "store", config)
    with Reader(tmp_path / "store") as reader:
        memory = reader.fetch(["doc-3", "doc-1"])
        embeddings = reader.connector.connect(memory)
    assert memory.stage == stage
    assert memory.dim == (64 if stage == "hidden" else 96)
    assert embeddings.dim == 96
    assert memory.doc_ids == ("doc-3", "doc-1")
    # The compressor computed in bf16, so bf16 loses nothing.
    torch.testing.assert_close(memory.values, memory.values.bfloat16().float(), rtol=0, atol=0)


def test_long_documents_are_chunked_or_truncated(checkpoint, tmp_path, small):
    corpus = tmp_path / "long.jsonl"
    corpus.write_text(json.dumps({"id": "long", "text": "the city and the river " * 50}) + "\n")
    for rule in ("chunk", "truncate"):
        build([corpus], checkpoint, tmp_path / rule, small(compression={"on_long": rule}))
    chunked, truncated = rows(tmp_path / "chunk")["long"], rows(tmp_path / "truncate")["long"]
    assert chunked["tokens_fed"] == chunked["tokens_total"] == truncated["tokens_total"]
    assert truncated["tokens_fed"] == 64
    assert truncated["n_mem"] == 64 // 8 + 1
    assert chunked["n_mem"] > truncated["n_mem"]


def test_a_second_run_has_nothing_to_do(checkpoint, make_corpus, small, tmp_path):
    corpus = make_corpus()
    first = build([corpus], checkpoint, tmp_path / "store", small())
    version = Reader(tmp_path / "store").version
    second = build([corpus], checkpoint, tmp_path / "store", small())
    assert (first.committed, first.done_before) == (first.shards, 0)
    assert (second.committed, second.done_before) == (0, first.shards)
    assert Reader(tmp_path / "store").version == version


def test_a_log_of_crashes_does_not_outlive_the_build(checkpoint, make_corpus, small, tmp_path):
    build([make_corpus()], checkpoint, tmp_path / "store", small())
    # As a process leaves it that is killed between its last commit and its end.
    CrashLog(str(tmp_path / "store")).note({1})
    (tmp_path / "store" / ".build.crashes.draft").write_text("{")
    build([make_corpus()], checkpoint, tmp_path / "store", small())
    assert not list((tmp_path / "store").glob(".build.crashes*"))


@pytest.mark.fault(
    "A shard fails, but none of its documents does.",
    "It is done in isolation. If that fails too, it is given up and reported, exit code 3; a later run retries it.",
)
def test_a_build_that_failed_half_way_resumes_to_the_same_store(checkpoint, make_corpus, small, tmp_path, monkeypatch):
    corpus = make_corpus()
    build([corpus], checkpoint, tmp_path / "whole", small())
    fail_on(monkeypatch, {1, 3})
    with pytest.raises(
        BuildIncompleteError, match=r"2 of 5 shards failed, even when .* shard 1: RuntimeError: no luck"
    ):
        build([corpus], checkpoint, tmp_path / "store", small())
    assert build_status(tmp_path / "store").shards_missing == (1, 3)
    monkeypatch.undo()
    report = build([corpus], checkpoint, tmp_path / "store", small())
    assert (report.done_before, report.committed) == (3, 2)
    assert rows(tmp_path / "store") == rows(tmp_path / "whole")
    assert build_status(tmp_path / "store").is_complete


@pytest.mark.parametrize("computes", ["the same", "otherwise"])
def test_a_build_goes_on_after_an_upgrade_that_computes_the_same(
    checkpoint, make_corpus, small, tmp_path, monkeypatch, computes
):
    corpus = make_corpus()
    with monkeypatch.context() as patch:
        fail_on(patch, {1, 3})
        with pytest.raises(BuildIncompleteError):
            build([corpus], checkpoint, tmp_path / "store", small())
    monkeypatch.setattr("pisco_index.pipeline.job.version", lambda package: "99.0")
    if computes == "the same":
        build([corpus], checkpoint, tmp_path / "store", small())
        assert build_status(tmp_path / "store").is_complete
    else:
        monkeypatch.setattr("pisco_index.model.identity.COMPRESSION_VERSION", "another")
        with pytest.raises(FingerprintMismatchError, match="compression"):
            build([corpus], checkpoint, tmp_path / "store", small())
        assert build_status(tmp_path / "store").shards_missing == (1, 3)


def command(*arguments):
    return [sys.executable, "-m", "pisco_index.cli", *map(str, arguments)]


def build_arguments(corpus, checkpoint, out):
    return ["build", corpus, "-k", checkpoint, "-o", out, "--shard-documents", "4", "--dtype", "float32"]


def committed_shards(uri):
    try:
        return build_status(uri).store.shards_done
    except StoreError:
        return 0


@pytest.mark.fault(
    "The build is killed (SIGKILL).",
    "Committed shards stay. The same command resumes to the same rows, and orphaned files are deleted.",
)
def test_a_killed_build_resumes_to_the_same_store(checkpoint, make_corpus, small, tmp_path):
    """It ends in an orderly way at the first command, is killed at the second, and is done by the third."""
    corpus = make_corpus(1000)
    arguments = build_arguments(corpus, checkpoint, tmp_path / "store")
    # Slow; and another number of threads rounds otherwise.
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}
    for number, shards in ((signal.SIGTERM, 32), (signal.SIGKILL, 96)):
        running = subprocess.Popen(command(*arguments), stderr=subprocess.PIPE, text=True, env=one_thread)
        while committed_shards(tmp_path / "store") < shards:
            assert running.poll() is None, running.stderr.read()
            time.sleep(0.1)
        running.send_signal(number)
        _, errors = running.communicate(timeout=60)
        assert not build_status(tmp_path / "store").is_complete
        if number == signal.SIGKILL:
            assert running.returncode == -signal.SIGKILL
        else:
            assert running.returncode == BuildInterruptedError.exit_code
            assert "Run the same command again to resume" in errors
    subprocess.run(command(*arguments), check=True, capture_output=True, env=one_thread)
    shutil.copy(corpus, tmp_path / "same.jsonl")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    whole = small(
        run={"shard_documents": 4, "commit_shards": 64}, compression={"max_length": 512}, store={"codec": "int8"}
    )
    build([tmp_path / "same.jsonl"], checkpoint, tmp_path / "whole", whole)
    torch.set_num_threads(threads)
    assert rows(tmp_path / "store") == rows(tmp_path / "whole")
    # What the killed process had written and not committed is gone.
    table = lancedb.connect(str(tmp_path / "store")).open_table("memory").to_lance()
    named = {file.path for fragment in table.get_fragments() for file in fragment.metadata.files}
    assert {path.name for path in (tmp_path / "store" / "memory.lance" / "data").iterdir()} == named


class TestRefusals:
    @pytest.mark.fault(
        "Checkpoint, settings or codec differ from the store's.",
        "The build is refused, naming what differs.",
    )
    def test_another_compression(self, checkpoint, make_corpus, small, tmp_path):
        corpus = make_corpus(9)
        build([corpus], checkpoint, tmp_path / "store", small())
        with pytest.raises(FingerprintMismatchError, match=r"this build has .*max_length: 64 \| 32"):
            build([corpus], checkpoint, tmp_path / "store", small(compression={"max_length": 32}))

    def test_another_checkpoint(self, checkpoint, make_corpus, small, tmp_path):
        corpus = make_corpus(9)
        build([corpus], checkpoint, tmp_path / "store", small())
        other = new_tiny_checkpoint(tmp_path / "other", rate=8, seed=1).path
        with pytest.raises(FingerprintMismatchError, match="compressor"):
            build([corpus], other, tmp_path / "store", small())

    @pytest.mark.fault(
        "Checkpoint, settings or codec differ from the store's.",
        "The build is refused, naming what differs.",
    )
    def test_another_codec(self, checkpoint, make_corpus, small, tmp_path):
        corpus = make_corpus(9)
        build([corpus], checkpoint, tmp_path / "store", small())
        with pytest.raises(StoreError, match="codec 'fp32', not 'bf16'"):
            build([corpus], checkpoint, tmp_path / "store", small(store={"codec": "bf16"}))

    @pytest.mark.fault(
        "The corpus changed before its build was finished.",
        "The build is refused, naming what changed.",
    )
    def test_a_corpus_that_changed_before_the_build_was_done(
        self, checkpoint, make_corpus, small, tmp_path, monkeypatch
    ):
        fail_on(monkeypatch, range(99))
        with pytest.raises(BuildIncompleteError):
            build([make_corpus(9)], checkpoint, tmp_path / "store", small())
        with pytest.raises(PlanMismatchError, match=r"corpus\.jsonl had .*\(--replan\)"):
            build([make_corpus(10)], checkpoint, tmp_path / "store", small())

    def test_a_folder_with_something_else(self, checkpoint, make_corpus, small, tmp_path):
        folder = tmp_path / "mine"
        folder.mkdir()
        (folder / "thesis.tex").write_text("do not lose me")
        with pytest.raises(StoreError, match=r"thesis\.tex"):
            build([make_corpus(9)], checkpoint, folder, small())
        assert [path.name for path in folder.iterdir()] == ["thesis.tex"]

    @pytest.mark.fault(
        "A record is broken.",
        "Planning is refused, naming file and line; no store is created.",
    )
    def test_a_bad_corpus_leaves_no_trace(self, checkpoint, small, tmp_path):
        corpus = tmp_path / "broken.jsonl"
        corpus.write_text('{"id": "a", "text": "fine"}\n{"id": "b", "text": \n')
        with pytest.raises(CorpusError, match=r"broken\.jsonl, line 2"):
            build([corpus], checkpoint, tmp_path / "store", small())
        assert not (tmp_path / "store").exists()

    @pytest.mark.fault(
        "A checkpoint does not load.",
        "The build ends before the store is created.",
    )
    def test_a_checkpoint_that_does_not_load_leaves_no_trace(self, checkpoint, make_corpus, small, tmp_path):
        broken = tmp_path / "broken"
        shutil.copytree(checkpoint, broken)
        weights = broken / "compressor" / "model.safetensors"
        whole = weights.read_bytes()
        tensors = load_file(weights)
        tensors.pop("model.norm.weight")
        save_file(tensors, weights, metadata={"format": "pt"})
        corpus = make_corpus(9)
        with pytest.raises(CheckpointError, match="norm"):
            build([corpus], broken, tmp_path / "store", small())
        assert not (tmp_path / "store").exists()
        weights.write_bytes(whole)
        build([corpus], broken, tmp_path / "store", small())

    @pytest.mark.fault(
        "A corpus file is written to, or shrinks, while it is read.",
        "Nothing is committed after that, and the build ends.",
    )
    def test_a_corpus_that_is_rewritten_while_it_is_read(self, checkpoint, make_corpus, small, tmp_path, monkeypatch):
        corpus = make_corpus(40)
        init = ShardWorker.__init__

        def rewrite_first(self, spec):
            corpus.write_text(corpus.read_text().replace("river", "RIVER"))
            init(self, spec)

        monkeypatch.setattr(ShardWorker, "__init__", rewrite_first)
        with pytest.raises(CorpusError, match="changed while the build was reading it"):
            build([corpus], checkpoint, tmp_path / "store", small(corpus={"passage_words": 10}))
        assert build_status(tmp_path / "store").store.documents == 0

    @pytest.mark.fault(
        "A second build of the same store starts.",
        "It is refused, naming process and host, exit code 75.",
    )
    def test_a_store_another_build_is_writing(self, checkpoint, make_corpus, small, tmp_path):
        corpus = make_corpus(9)
        build([corpus], checkpoint, tmp_path / "store", small())
        holder = f"""
import sys
from pisco_index.store import build_lock, text_hash
with build_lock({str(tmp_path / "store")!r}):
    print("held", flush=True)
    sys.stdin.read()
"""
        with subprocess.Popen(
            [sys.executable, "-c", holder], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as other:
            assert other.stdout.readline() == "held\n"
            with pytest.raises(StoreLockedError, match=f"{other.pid}"):
                build([corpus], checkpoint, tmp_path / "store", small())
            other.communicate("")
        build([corpus], checkpoint, tmp_path / "store", small())

    @pytest.mark.fault(
        "A corpus file is written to, or shrinks, while it is read.",
        "Nothing is committed after that, and the build ends.",
    )
    def test_a_corpus_that_shrinks_while_it_is_read(self, checkpoint, make_corpus, small, tmp_path, monkeypatch):
        corpus = make_corpus(40)
        init = ShardWorker.__init__

        def shrink_first(self, spec):
            lines = corpus.read_text().splitlines(keepends=True)
            corpus.write_text("".join(lines[:20]))
            init(self, spec)

        monkeypatch.setattr(ShardWorker, "__init__", shrink_first)
        with pytest.raises(InputError):
            build([corpus], checkpoint, tmp_path / "store", small())

    @pytest.mark.fault(
        "The disk is full.",
        "The build ends; after making room the same command resumes.",
    )
    def test_a_full_disk(self, checkpoint, make_corpus, small, tmp_path):
        disk = tmp_path / "disk"
        disk.mkdir()
        mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], capture_output=True)
        if mounted.returncode:
            pytest.skip("no right to mount a small file system")
        try:
            corpus = make_corpus(600)
            with pytest.raises(StoreError, match="disk is full"):
                build([corpus], checkpoint, disk / "store", small(run={"shard_documents": 40}))
            done = build_status(disk / "store").store.shards_done
            subprocess.run(["mount", "-o", "remount,size=64m", disk], check=True)
            report = build([corpus], checkpoint, disk / "store", small(run={"shard_documents": 40}))
            assert report.done_before == done
            assert build_status(disk / "store").store.documents == 600
        finally:
            subprocess.run(["umount", disk], check=True)


def test_a_lock_is_free_after_its_build(checkpoint, make_corpus, small, tmp_path):
    build([make_corpus(9)], checkpoint, tmp_path / "store", small())
    with build_lock(tmp_path / "store"):
        pass


def test_a_dry_run_estimates_and_writes_nothing(checkpoint, make_corpus, small, tmp_path):
    corpus = make_corpus(200)
    estimate = dry_run([corpus], checkpoint, tmp_path / "store", small())
    assert not (tmp_path / "store").exists()
    build([corpus], checkpoint, tmp_path / "store", small())
    store = build_status(tmp_path / "store").store
    assert estimate.records == estimate.documents == store.documents == 200
    assert estimate.tokens == pytest.approx(store.tokens_total, rel=0.15)
    assert estimate.memory_tokens == pytest.approx(store.n_mem, rel=0.15)
    assert estimate.store_bytes == pytest.approx(store.table_bytes, rel=0.15)
    assert estimate.passages >= estimate.documents
    slowest, fastest = estimate.passages_per_s_range
    assert 0 < slowest <= estimate.passages_per_s <= fastest
    least, most = estimate.seconds_range
    assert estimate.passages / estimate.passages_per_s < estimate.seconds < most
    assert 0 < least < estimate.seconds


def test_a_dry_run_times_several_whole_batches(checkpoint, make_corpus, small, tmp_path, monkeypatch):
    compress, computed = Compressor.compress, []

    def count(self, passages, **options):
        told = []
        memory = compress(self, passages, on_batch=lambda _, tokens: told.append(tokens), **options)
        computed.append(sum(told))
        return memory

    monkeypatch.setattr(Compressor, "compress", count)
    dry_run([make_corpus(20)], checkpoint, tmp_path / "store", small(run={"token_budget": 5000}))
    once, *timed = computed
    assert once < 5000
    assert timed
    assert min(timed) >= 4 * 5000


def test_an_estimate_shares_the_work_among_the_workers(checkpoint, make_corpus, small, tmp_path, monkeypatch):
    # So slow that computing takes all of the time.
    monkeypatch.setattr(estimate_module, "_tokens_per_s", lambda *_: [0.01, 0.02, 0.03])
    corpus = make_corpus(50)
    found = [
        dry_run([corpus], checkpoint, tmp_path / "store", small(run={"workers": workers, "shard_documents": 1000}))
        for workers in (1, 4)
    ]
    assert [each.workers for each in found] == [1, 4]
    assert found[0].seconds == pytest.approx(4 * found[1].seconds, rel=0.01)
    assert found[0].passages_per_s == pytest.approx(found[1].passages_per_s)
    assert found[0].seconds_range[1] > 3 * found[0].seconds_range[0]


def test_an_estimate_goes_by_tokens_wherever_the_long_documents_are(checkpoint, small, tmp_path, monkeypatch):
    monkeypatch.setattr(estimate_module, "_tokens_per_s", lambda *_: [0.01])
    monkeypatch.setattr(estimate_module, "PROBE_TOKENS", 1000)
    seconds = []
    for name, lengths in (("first", [3000] * 10 + [20] * 300), ("last", [20] * 300 + [3000] * 10)):
        corpus = tmp_path / f"{name}.jsonl"
        corpus.write_text("".join(json.dumps({"id": str(n), "text": "a" * k}) + "\n" for n, k in enumerate(lengths)))
        seconds.append(dry_run([corpus], checkpoint, tmp_path / "store", small()).seconds)
    store = build([corpus], checkpoint, tmp_path / "store", small()).uri
    tokens = sum(row["tokens_fed"] + row["n_mem"] for row in rows(store).values())
    assert seconds == [pytest.approx(100 * tokens, rel=0.1)] * 2


def test_a_dry_run_of_a_resumed_build_counts_what_is_left(checkpoint, make_corpus, small, tmp_path, monkeypatch):
    corpus, store = make_corpus(40), tmp_path / "store"
    with monkeypatch.context() as patched:
        fail_on(patched, {2})
        with pytest.raises(BuildIncompleteError):
            build([corpus], checkpoint, store, small())
    assert dry_run([corpus], checkpoint, store, small()).documents == 8


def test_a_dry_run_counts_a_record_that_shards_share(checkpoint, small, tmp_path, monkeypatch):
    corpus, store = tmp_path / "corpus.jsonl", tmp_path / "store"
    corpus.write_text(json.dumps({"id": "book", "text": " ".join(f"word{n:05}" for n in range(3000))}) + "\n")
    config = small(corpus={"passage_words": 100}, run={"shard_documents": 8, "commit_shards": 1})
    whole = dry_run([corpus], checkpoint, store, config)
    assert (whole.records, whole.shards, whole.documents) == (1, 4, 30)
    with monkeypatch.context() as patched:
        fail_on(patched, {1, 2, 3})
        with pytest.raises(BuildIncompleteError):
            build([corpus], checkpoint, store, config)
    rest = dry_run([corpus], checkpoint, store, config)
    assert (rest.records, rest.shards) == (1, 3)
    assert rest.documents == pytest.approx(30 - Store.open(store).count, abs=2)


def test_a_dry_run_of_pages_without_prose_has_nothing_to_time(checkpoint, small, tmp_path):
    page = (
        "<page><title>{0}</title><ns>0</ns><id>{0}</id><revision><id>1</id><text>{{{{a|b}}}}</text></revision></page>"
    )
    dump = tmp_path / "dump.xml"
    dump.write_text(f"<mediawiki>{''.join(page.format(n) for n in range(1, 5))}</mediawiki>")
    estimate = dry_run([dump], checkpoint, tmp_path / "store", small())
    assert (estimate.records, estimate.passages, estimate.seconds) == (4, 0, 0)


def test_a_template_says_what_is_compressed(checkpoint, make_corpus, small, tmp_path):
    corpus = make_corpus(3)
    build([corpus], checkpoint, tmp_path / "both", small())
    build([corpus], checkpoint, tmp_path / "text", small(compression={"template": "{text}"}))
    record = json.loads(corpus.read_text().splitlines()[2])
    both, text = rows(tmp_path / "both")["doc-2"], rows(tmp_path / "text")["doc-2"]
    assert both["tokens_total"] > text["tokens_total"]
    assert both["text_hash"] == text_hash(f"{record['title']}\n{record['text']}")
    assert text["text_hash"] == text_hash(record["text"])
    with pytest.raises(FingerprintMismatchError, match="template"):
        build([corpus], checkpoint, tmp_path / "text", small(compression={"template": "{title}\n{text}"}))


def test_text_is_kept_on_request(checkpoint, make_corpus, small, tmp_path):
    build([make_corpus(3)], checkpoint, tmp_path / "store", small(store={"keep": ["title", "text"]}))
    row = rows(tmp_path / "store")["doc-2"]
    assert row["title"] == "Title 2"
    assert row["text"].startswith("Document 2 is about")


def test_shards_without_documents_are_done_too(checkpoint, small, tmp_path):
    dump = tmp_path / "dump.xml"
    page = "<page><title>{0}</title><ns>0</ns><id>{0}</id><revision><id>1</id><text>{1}</text></revision></page>"
    pages = [page.format(n, "{{template only}}" if n < 6 else "Some prose.") for n in range(1, 9)]
    dump.write_text(
        '<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.10/"><siteinfo><namespaces><namespace key="0"/>'
        "</namespaces></siteinfo>" + "".join(pages) + "</mediawiki>"
    )
    config = small(run={"shard_documents": 2})
    build([dump], checkpoint, tmp_path / "store", config)
    assert sorted(rows(tmp_path / "store")) == ["6#0", "7#0", "8#0"]
    assert build_status(tmp_path / "store").is_complete
    assert build([dump], checkpoint, tmp_path / "store", config).committed == 0


@pytest.mark.skipif(not ENWIKI.is_file(), reason="the real dump (../shared/data) is not here")
@pytest.mark.usefixtures("plain_compressor")
def test_a_real_wikipedia_dump(tmp_path, small):
    build([ENWIKI], ORACLE, tmp_path / "store", small(run={"shard_documents": 2000, "commit_shards": 16}))
    status = build_status(tmp_path / "store")
    assert status.records == 106
    assert status.dropped["redirect"] == 100
    assert status.store.documents > 4000
    assert status.store.tokens_fed == status.store.tokens_total
    with Reader(tmp_path / "store") as reader:
        ids = list(reader.ids())
        memory = reader.fetch(ids[:50])
    assert memory.doc_ids == tuple(ids[:50])
    assert np.isfinite(memory.values.numpy()).all()


class TestCodecs:
    """Builds that fit a codec to their corpus first."""

    @pytest.mark.parametrize("codec", ["bf16z", "int8", "int4", "klt3", "klt2"])
    def test_a_build_in_every_codec_answers(self, checkpoint, make_corpus, small, tmp_path, codec):
        corpus = make_corpus(60)
        build([corpus], checkpoint, tmp_path / "exact", small())
        report = build([corpus], checkpoint, tmp_path / "store", small(store={"codec": codec}))
        assert report.committed == report.shards
        ids = [f"doc-{n}" for n in range(60)]
        with Reader(tmp_path / "exact") as exact, Reader(tmp_path / "store") as reader:
            expected, found = exact.fetch(ids), reader.fetch(ids)
            folded, connected = reader.embeddings(ids), reader.connector.connect(found)
        error = normalised_error_db(expected.values.numpy(), found.values.numpy())
        assert error < {"bf16z": -40, "int8": -40, "int4": -19, "klt3": -13, "klt2": -9}[codec]
        scale = float(connected.values.abs().max())
        torch.testing.assert_close(folded.values, connected.values, rtol=0, atol=4e-6 * scale)
        assert (folded.stage, folded.lengths, folded.doc_ids) == ("embedding", connected.lengths, connected.doc_ids)
        answer = ask(tmp_path / "store", checkpoint, "What is it about?", ids[:2], dtype="float32", max_new_tokens=4)
        assert answer.memory_tokens == sum(found.lengths[:2])

    def test_three_documents_are_enough(self, checkpoint, make_corpus, tmp_path):
        """With the default codec, and with the one that has most to fit."""
        for config in (BuildConfig(), BuildConfig.parse({"store": {"codec": "klt2"}}, "test")):
            folder = tmp_path / config.store.codec
            assert build([make_corpus(3)], checkpoint, folder, config).committed == 1
            with Reader(folder) as reader:
                assert bool(reader.fetch(["doc-0", "doc-2"]).values.isfinite().all())
        assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["int8", "klt2"]

    def test_a_resumed_build_keeps_its_calibration(self, checkpoint, make_corpus, small, tmp_path, monkeypatch):
        corpus, config = make_corpus(), small(store={"codec": "int4"})
        build([corpus], checkpoint, tmp_path / "whole", config)
        sample = ShardWorker.sample
        fail_on(monkeypatch, {1, 3})
        with pytest.raises(BuildIncompleteError):
            build([corpus], checkpoint, tmp_path / "store", config)
        monkeypatch.undo()
        monkeypatch.setattr(ShardWorker, "sample", lambda *_: pytest.fail("it is in the store"))
        build([corpus], checkpoint, tmp_path / "store", config)
        assert sample is not ShardWorker.sample
        assert rows(tmp_path / "store") == rows(tmp_path / "whole")
        assert len([name for name in Store.open(tmp_path / "store").asset_names() if "calibration/" in name]) == 1

    def test_the_sample_is_spread_over_the_plan(self, checkpoint, make_corpus, small, tmp_path, monkeypatch):
        asked, sample = [], ShardWorker.sample

        def record(self, shard, vectors):
            found = sample(self, shard, vectors)
            asked.append((shard.number, vectors, len(found.values)))
            return found

        monkeypatch.setattr(ShardWorker, "sample", record)
        monkeypatch.setattr("pisco_index.store.codecs.quantised.CHANNEL_VECTORS", 64)
        config = small(store={"codec": "int8"}, run={"shard_documents": 2})
        build([make_corpus(300)], checkpoint, tmp_path / "store", config)
        numbers = [number for number, _, _ in asked]
        assert sum(found for _, _, found in asked) >= 64
        assert max(numbers) - min(numbers) > 30
        assert all(vectors <= 4 for _, vectors, _ in asked)

    def test_of_a_long_document_the_sample_has_the_beginning(self, checkpoint, small, tmp_path, monkeypatch):
        sizes, sample = [], ShardWorker.sample

        def record(self, shard, vectors):
            sizes.append(len(sample(self, shard, vectors).values))
            return sample(self, shard, vectors)

        monkeypatch.setattr(ShardWorker, "sample", record)
        monkeypatch.setattr("pisco_index.store.codecs.quantised.CHANNEL_VECTORS", 64)
        (tmp_path / "long.jsonl").write_text(json.dumps({"id": "a", "text": "the river " * 3000}) + "\n")
        build([tmp_path / "long.jsonl"], checkpoint, tmp_path / "store", small(store={"codec": "int8"}))
        (stored,) = Store.open(tmp_path / "store").table.to_table(columns=["n_mem"]).column(0).to_pylist()
        assert 64 <= sizes[0] < 128 < stored

    def test_the_prediction_is_told_before_the_workers_begin(self, checkpoint, make_corpus, small, tmp_path):
        class Recorder(BuildProgress):
            def __init__(self):
                self.told = []

            def calibrated(self, prediction):
                self.told.append(prediction)

            def started(self, *_):
                self.told.append("started")

        recorder, config = Recorder(), small(store={"codec": "int4"})
        estimated = dry_run([make_corpus()], checkpoint, tmp_path / "store", config)
        build([make_corpus()], checkpoint, tmp_path / "store", config, progress=recorder)
        prediction, then = recorder.told
        assert then == "started"
        assert prediction.codec == estimated.codec.codec == "int4"
        assert prediction.error_db == pytest.approx(-20.2, abs=1.5)
        # The corpus is small, so both saw all of it.
        assert prediction.bits_per_value == pytest.approx(estimated.codec.bits_per_value)
        assert 0 < prediction.kl <= prediction.kl_worst
        assert prediction.kl_documents == estimated.codec.kl_documents == 40
        assert estimated.codec.kl == pytest.approx(prediction.kl, rel=0.5)

    def test_no_divergence_is_measured_without_a_decoder(self, checkpoint, make_corpus, small, tmp_path):
        class Recorder(BuildProgress):
            def calibrated(self, prediction):
                self.told = prediction

        folder, recorder = Path(shutil.copytree(checkpoint, tmp_path / "checkpoint")), Recorder()
        shutil.rmtree(folder / "base_decoder")
        build([make_corpus()], folder, tmp_path / "store", small(store={"codec": "fisher3"}), progress=recorder)
        assert (recorder.told.kl, recorder.told.fitted_to_decoder) == (None, False)
        assert "is not found" in recorder.told.kl_missing
        assert not Store.open(tmp_path / "store").own_calibration().is_sensitive
        with pytest.raises(CheckpointError, match="base_decoder"):
            build([make_corpus()], folder, tmp_path / "other", small(store={"codec": "int8", "measure_kl": True}))
        assert not Store.exists(tmp_path / "other")

    def test_a_codec_is_fitted_to_the_decoder(self, checkpoint, make_corpus, small, tmp_path):
        """The same plan gives the same sample, and that the same calibration."""
        for name in ("one", "two"):
            build([make_corpus()], checkpoint, tmp_path / name, small(store={"codec": "fisher3"}))
        one, two = (Store.open(tmp_path / name).own_calibration() for name in ("one", "two"))
        assert one.is_sensitive
        assert one.reference == two.reference
        build([make_corpus()], checkpoint, tmp_path / "not", small(store={"codec": "fisher3", "measure_kl": False}))
        assert not Store.open(tmp_path / "not").own_calibration().is_sensitive

    def test_a_recoded_store_is_built_on(self, checkpoint, make_corpus, small, tmp_path, monkeypatch):
        corpus = make_corpus()
        fail_on(monkeypatch, {1, 3})
        with pytest.raises(BuildIncompleteError):
            build([corpus], checkpoint, tmp_path / "store", small())
        monkeypatch.undo()
        recode(tmp_path / "store", "int8", tmp_path / "int8")
        report = build([corpus], checkpoint, tmp_path / "int8", small(store={"codec": "int8"}))
        assert (report.done_before, report.committed) == (3, 2)
        assert len(Reader(tmp_path / "int8")) == 40
        assert build_status(tmp_path / "int8").is_complete

    def test_documents_in_another_codec_are_counted(self, checkpoint, make_corpus, small, tmp_path, monkeypatch):
        compute = ShardWorker._memory

        def overflow(self, shard, tokens):
            memory, seconds = compute(self, shard, tokens)
            values = memory.values.clone()
            values[0] = float("inf") if shard.number == 2 else values[0]
            return replace(memory, values=values), seconds

        sample = MemorySample(np.ones((4, 64), np.float32).cumsum(0), [4], ["a text"])
        monkeypatch.setattr(ShardWorker, "sample", lambda *_: sample)
        monkeypatch.setattr(ShardWorker, "_memory", overflow)
        config = small(store={"codec": "int8", "stage": "hidden"})
        report = build([make_corpus()], checkpoint, tmp_path / "store", config)
        assert report.fallbacks["bf16"] >= 1
        assert build_status(tmp_path / "store").store.fallbacks == dict(report.fallbacks)
