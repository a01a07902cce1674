"""Verify finds what is wrong with a store and says where; repair takes out just that, and a build refills it."""

import json
import shutil
from pathlib import Path

import lance
import numpy as np
import pyarrow as pa
import pytest

from pisco_index import BuildConfig, build, delete, new_tiny_checkpoint, repair, verify
from pisco_index import compact as compact_store
from pisco_index.errors import (
    BuildIncompleteError,
    CheckpointError,
    ConfigError,
    CorruptStoreError,
    StoreError,
    StoreLockedError,
)
from pisco_index.pipeline import integrity
from pisco_index.pipeline.integrity import VerifyReport
from pisco_index.pipeline.upkeep import sample_check
from pisco_index.store import Problem, Store, build_lock, codec_by_name, decode, encode

from .conftest import fail_on

DOCUMENTS, SHARD = 24, 8


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("corpus") / "corpus.jsonl"
    texts = [f"Document {n} is about " + "the history of the city and its river " * (n % 5) for n in range(DOCUMENTS)]
    lines = [json.dumps({"id": f"doc-{n}", "title": f"Title {n}", "text": text}) for n, text in enumerate(texts)]
    path.write_text("\n".join(lines))
    return path


@pytest.fixture(scope="module")
def config() -> BuildConfig:
    sections = {
        "run": {"shard_documents": SHARD, "commit_shards": 1},
        "compression": {"dtype": "float32", "max_length": 32},
        "store": {"codec": "fp32", "keep": ["title", "text"]},
    }
    return BuildConfig.parse(sections, "test")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, corpus, checkpoint, config) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed") / "store"
    build([corpus], checkpoint, folder, config)
    return folder


@pytest.fixture
def store(undisturbed, tmp_path) -> Path:
    """A copy to damage."""
    return shutil.copytree(undisturbed, tmp_path / "store")


def table(store: Path, name: str = "memory") -> lance.LanceDataset:
    return lance.dataset(store / f"{name}.lance")


def file_of(store: Path, doc_id: str) -> Path:
    """The data file that a document's row lies in."""
    dataset = table(store)
    for fragment in dataset.get_fragments():
        if doc_id in fragment.to_table(columns=["doc_id"]).column(0).to_pylist():
            return store / "memory.lance" / "data" / fragment.metadata.files[0].path
    raise LookupError(doc_id)


def row_of(store: Path, doc_id: str) -> pa.Table:
    return table(store).to_table(filter=f"doc_id = '{doc_id}'")


def replace_row(store: Path, doc_id: str, /, **values: object) -> None:
    """Put a row with other values in a document's place."""
    row = row_of(store, doc_id)
    for name, value in values.items():
        place = row.schema.get_field_index(name)
        row = row.set_column(place, row.schema.field(name), pa.array([value], row.schema.field(name).type))
    dataset = table(store)
    dataset.delete(f"doc_id = '{doc_id}'")
    lance.write_dataset(row, dataset.uri, mode="append")


def rows(store: Path) -> list[dict]:
    return sorted(table(store).to_table().to_pylist(), key=lambda row: row["doc_id"])


def only(problems: tuple[Problem, ...], text: str) -> Problem:
    """The problem whose words these are."""
    (found,) = [problem for problem in problems if text in problem.what]
    return found


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def flip_payload(store: Path, doc_id: str) -> None:
    payload = row_of(store, doc_id)["payload"][0].as_py()
    path = file_of(store, doc_id)
    content = bytearray(path.read_bytes())
    content[content.index(payload) + 30] ^= 1
    path.write_bytes(content)


def test_a_whole_store_is_sound(undisturbed, checkpoint, corpus):
    told = []
    report = verify(
        undisturbed,
        checkpoint=checkpoint,
        corpus=[corpus],
        sample=DOCUMENTS + 10,
        progress=lambda done, total: told.append((done, total)),
    )
    assert report.is_sound, report.problems
    assert (report.documents, report.failed_documents, report.shards_done, report.shards_planned) == (24, 0, 3, 3)
    assert report.payload_bytes == sum(len(row["payload"]) for row in rows(undisturbed))
    assert report.sampled == DOCUMENTS
    assert 0 <= report.largest_error < 1e-4
    assert report.notes == ()
    assert told == [(8, 24), (16, 24), (24, 24)]
    assert json.loads(json.dumps(report.to_dict()))["is_sound"]


@pytest.mark.parametrize("stage", ["hidden", "embedding"])
def test_a_sample_in_bfloat16_is_within_rounding(tmp_path, corpus, checkpoint, stage):
    config = BuildConfig.parse({"store": {"stage": stage}, "run": {"shard_documents": 8}}, "test")
    build([corpus], checkpoint, tmp_path / "store", config)
    report = verify(tmp_path / "store", checkpoint=checkpoint, corpus=[corpus], sample=5, seed=1)
    assert report.is_sound, report.problems
    assert report.sampled == 5
    assert report.largest_error < 0.05


@pytest.fixture(params=["bf16z", "int8", "int4", "klt2", "fisher2"])
def coded(request, tmp_path, corpus, checkpoint, config) -> Path:
    """A store in another codec, each passage of which begins with its title."""
    sections = {"compression": {"repeat_title": True}, "store": {"codec": request.param}}
    values = {key: {**values, **sections.get(key, {})} for key, values in config.model_dump().items()}
    build([corpus], checkpoint, tmp_path / "coded", BuildConfig.parse(values, "test"))
    return tmp_path / "coded"


def test_a_sample_differs_by_what_its_codec_loses(coded, corpus, checkpoint):
    report = verify(coded, checkpoint=checkpoint, corpus=[corpus], sample=DOCUMENTS)
    assert report.is_sound, report.problems
    assert report.sampled == DOCUMENTS
    assert not repair(coded, dry_run=True).rows


@pytest.mark.parametrize("coded", ["int8"], indirect=True)
@pytest.mark.parametrize("change", ["lost", "damaged"])
def test_a_calibration_that_is_not_there_whole(coded, change):
    assets = table(coded, "assets")
    value = assets.to_table(filter="starts_with(name, 'calibration/')")
    (name,) = value["name"].to_pylist()
    assets.delete(f"name = '{name}'")
    if change == "damaged":
        data = bytearray(value["value"][0].as_py())
        data[-2] ^= 1
        lance.write_dataset(pa.table([[name], [bytes(data)]], schema=value.schema), assets.uri, mode="append")
    report = verify(coded)
    problem = only(report.problems, "fails its checksum" if change == "damaged" else "no calibration is there")
    assert (problem.table, report.problem_count, report.documents) == ("assets", 1, DOCUMENTS)
    with pytest.raises(CorruptStoreError, match="cannot be repaired"):
        repair(coded)


@pytest.mark.parametrize("coded", ["int8"], indirect=True)
def test_memory_with_what_is_no_number_is_compared_in_the_rest(coded):
    store = Store.open(coded)
    fresh = np.random.default_rng(0).normal(size=(3, store.meta.dim)).astype(np.float32)
    fresh[1, 2] = np.inf
    payload = encode("doc", fresh, codec_by_name("int8"), store.own_calibration())
    error, tolerance = sample_check._compare(store, "doc", payload, fresh, 0.05)
    assert error < 0.01 < tolerance
    fresh[1, 2] = 0
    assert sample_check._compare(store, "doc", payload, fresh, 0.05)[0] == np.inf


@pytest.mark.parametrize("coded", ["int8"], indirect=True)
def test_a_payload_that_was_fitted_to_another_store(coded):
    width = decode(rows(coded)[0]["payload"], calibrations=Store.open(coded).calibration).shape[1]
    calibration = codec_by_name("int8").calibrate(np.random.default_rng(0).normal(size=(64, width)))
    payload = encode("doc-3", np.ones((4, width), np.float32), codec_by_name("int8"), calibration)
    replace_row(coded, "doc-3", payload=payload, n_mem=4)
    problem = only(verify(coded).problems, "which is not among the store's assets")
    assert (problem.table, problem.doc_id) == ("memory", "doc-3")
    assert repair(coded, dry_run=True).rows == 1


class TestProblems:
    """What verify says of each thing that can be wrong."""

    def test_a_flipped_bit_of_a_payload(self, store):
        path = file_of(store, "doc-11")
        flip_payload(store, "doc-11")
        (problem,) = verify(store).problems
        place = (problem.table, problem.file, problem.row, problem.doc_id, problem.shard)
        assert place == ("memory", f"data/{path.name}", 3, "doc-11", 1)
        assert str(problem) == (
            f"memory: data/{path.name}, row 3, document 'doc-11', shard 1: a payload fails its checksum. "
            "Run `pisco-index repair` to drop it; the next build of the corpus writes it again."
        )

    def test_another_documents_payload(self, store):
        replace_row(store, "doc-3", payload=row_of(store, "doc-8")["payload"][0].as_py())
        assert only(verify(store).problems, "belongs to another document").doc_id == "doc-3"

    def test_a_changed_id(self, store):
        replace_row(store, "doc-3", doc_id="doc-3x")
        assert only(verify(store).problems, "belongs to another document").doc_id == "doc-3x"

    @pytest.mark.parametrize(
        ("values", "what"),
        [
            ({"doc_id": ""}, "is not between 1 and 512 bytes long"),
            ({"n_mem": 99}, "payload has 3 memory tokens; the column n_mem says 99"),
            ({"error": "no"}, "both memory and an error, or neither"),
            ({"payload": None}, "both memory and an error, or neither"),
            ({"payload": None, "error": "no"}, "the column n_mem says otherwise"),
            ({"tokens_fed": -1}, "token counts is negative"),
            ({"tokens_fed": 4000}, "token counts do not fit together"),
            ({"tokens_fed": 0}, "token counts do not fit together"),
            ({"title": "other"}, "title, text and text_hash do not fit"),
            ({"text": "other"}, "title, text and text_hash do not fit"),
            ({"text_hash": bytes(16)}, "title, text and text_hash do not fit"),
        ],
        ids=str,
    )
    def test_a_column(self, store, values, what):
        assert row_of(store, "doc-1")["n_mem"][0].as_py() == 3
        replace_row(store, "doc-1", **values)
        assert only(verify(store).problems, what).doc_id == values.get("doc_id", "doc-1")

    def test_vectors_of_another_width(self, store):
        payload = encode("doc-1", np.zeros((3, 5), np.float32), codec_by_name("fp32"))
        replace_row(store, "doc-1", payload=payload)
        assert only(verify(store).problems, "5 wide; those of the store are").doc_id == "doc-1"

    def test_an_id_in_two_rows(self, store):
        lance.write_dataset(row_of(store, "doc-20"), table(store).uri, mode="append")
        problems = verify(store).problems
        twice = [problem for problem in problems if problem.what == "the id is in 2 rows."]
        assert [(problem.doc_id, problem.shard) for problem in twice] == [("doc-20", 2)] * 2
        assert len({problem.file for problem in twice}) == 2
        assert only(problems, "has 9 rows; the plan has 8 records").shard == 2

    def test_an_id_that_flips_to_another_documents(self, store):
        replace_row(store, "doc-3", doc_id="doc-4")
        problems = verify(store).problems
        assert only(problems, "belongs to another document").doc_id == "doc-4"
        assert not [problem for problem in problems if "the id is in" in problem.what]
        assert repair(store, dry_run=True).rows == 1

    def test_rows_of_another_plan(self, store):
        replace_row(store, "doc-1", shard=77)
        problems = verify(store).problems
        assert only(problems, "its shard is in no plan").shard == 77
        assert only(problems, "has 7 rows").shard == 0

    def test_a_missing_file(self, store):
        path = file_of(store, "doc-1")
        path.unlink()
        assert only(verify(store).problems, "is missing").file == f"data/{path.name}"

    def test_a_short_file(self, store):
        path = file_of(store, "doc-1")
        content = path.read_bytes()
        path.write_bytes(content[:-10])
        what = f"has {len(content) - 10:,} bytes and not {len(content):,}"
        assert only(verify(store).problems, what).file == f"data/{path.name}"

    def test_a_damaged_list_of_deleted_rows(self, store):
        replace_row(store, "doc-1", title="Title 1")
        (path,) = (store / "memory.lance" / "_deletions").iterdir()
        path.write_bytes(path.read_bytes()[:100])
        assert "_deletions/" in only(verify(store).problems, "cannot be read").what

    def test_a_file_that_nobody_refers_to_is_only_noted(self, store):
        shutil.copy(file_of(store, "doc-1"), store / "memory.lance" / "data" / "left.lance")
        report = verify(store)
        assert report.is_sound
        (note,) = report.notes
        assert note.startswith("memory: 1 data files, ")

    def test_an_unfinished_build_is_only_noted(self, store):
        table(store).delete("shard = 1")
        report = verify(store)
        assert report.is_sound
        assert report.notes == ("1 of 3 shards are not done; the same build does them",)

    @pytest.mark.parametrize("name", ["plan.json", "config.json", "connector.safetensors", "meta"])
    @pytest.mark.parametrize("change", ["missing", "damaged", "twice"])
    def test_an_asset(self, store, name, change):
        assets = table(store, "assets")
        value = assets.to_table(filter=f"name = '{name}'")
        if change != "twice":
            assets.delete(f"name = '{name}'")
            damaged = bytearray(value["value"][0].as_py())
            damaged[-2] ^= 0x80
            value = pa.table([[name], [bytes(damaged)]], schema=value.schema)
        if change != "missing":
            lance.write_dataset(value, assets.uri, mode="append")
        problems = verify(store).problems
        assert {problem.table for problem in problems} == {"assets"}
        with pytest.raises(CorruptStoreError, match="cannot be repaired"):
            repair(store)

    def test_a_configuration_that_is_not_the_fingerprints(self, store, config):
        assets = table(store, "assets")
        other = config.model_copy(update={"compression": config.compression.model_copy(update={"max_length": 99})})
        schema = assets.schema
        assets.delete("name = 'config.json'")
        value = pa.table([["config.json"], [other.model_dump_json().encode()]], schema=schema)
        lance.write_dataset(value, assets.uri, mode="append")
        assert "max_length" in only(verify(store).problems, "config.json differ in").what

    @pytest.mark.parametrize("name", ["empty-shard/5", "empty-shard/x", "empty-shard/2"])
    def test_a_shard_noted_as_empty(self, store, name):
        table(store).delete("shard = 2")
        assets = table(store, "assets")
        lance.write_dataset(pa.table([[name], [b""]], schema=assets.schema), assets.uri, mode="append")
        what = {
            "5": "the plan does not have it",
            "x": "does not end with a shard's number",
            "2": "noted as empty and has 0 rows; the plan has 8 records",
        }
        only(verify(store).problems, what[name[-1]])

    @pytest.mark.parametrize("name", ["memory", "rejected", "assets"])
    def test_a_table_that_does_not_open(self, store, name):
        shutil.rmtree(store / f"{name}.lance" / "_versions")
        problems = [problem for problem in verify(store).problems if problem.table == name]
        assert "cannot open table" in problems[0].what
        with pytest.raises(CorruptStoreError, match="cannot be repaired"):
            repair(store)

    def test_other_columns(self, store):
        table(store).drop_columns(["tokens_fed"])
        only(verify(store).problems, "has the columns")

    def test_records_of_another_plan(self, store):
        rejected = table(store, "rejected")
        rows = pa.table([[9], ["c:1"], [None], ["no id"]], schema=rejected.schema)
        lance.write_dataset(rows, rejected.uri, mode="append")
        only(verify(store).problems, "holds records of shard 9")
        assert len(repair(store).files) == 1
        assert verify(store).is_sound

    @pytest.mark.fault(
        "Checkpoint, settings or codec differ from the store's.",
        "The build is refused, naming what differs.",
    )
    def test_another_checkpoint(self, store, corpus, tmp_path):
        other = new_tiny_checkpoint(tmp_path / "other", rate=4).path
        report = verify(store, checkpoint=other, corpus=[corpus], sample=3)
        assert "rate" in only(report.problems, "differ in rate").what
        # Memory of another checkpoint differs everywhere.
        assert report.sampled == 0

    def test_another_corpus(self, store, checkpoint, corpus, tmp_path):
        lines = corpus.read_text().splitlines()
        lines[3] = lines[3].replace("Document 3", "Dokument 3")
        (tmp_path / "other.jsonl").write_text("\n".join(lines[:-1]))
        problems = verify(store, checkpoint=checkpoint, corpus=[tmp_path / "other.jsonl"], sample=99).problems
        assert only(problems, "is not in the given corpus").doc_id == "doc-23"
        assert only(problems, "its text in the corpus is not the one").doc_id == "doc-3"

    def test_memory_of_something_else(self, store, checkpoint, corpus):
        memory = decode(row_of(store, "doc-5")["payload"][0].as_py())
        replace_row(store, "doc-5", payload=encode("doc-5", memory * 1.1, codec_by_name("fp32")))
        assert verify(store).is_sound
        report = verify(store, checkpoint=checkpoint, corpus=[corpus], sample=99)
        assert only(report.problems, "its memory, compressed again, has a relative error of 0.1").doc_id == "doc-5"
        assert report.largest_error == pytest.approx(0.1, rel=0.01)

    def test_no_store(self, tmp_path):
        for check in (verify, repair):
            with pytest.raises(StoreError, match="there is no store"):
                check(tmp_path)
        assert not list(tmp_path.iterdir())

    def test_a_store_that_was_never_completed(self, store):
        shutil.rmtree(store / "assets.lance")
        table(store).delete("true")
        with pytest.raises(StoreError, match="never completed"):
            verify(store)

    def test_a_sample_needs_a_corpus_and_a_checkpoint(self, store, corpus, checkpoint, tmp_path):
        for given in ({"corpus": [corpus]}, {"checkpoint": checkpoint}, {}):
            with pytest.raises(ConfigError, match="Give --corpus and --checkpoint"):
                verify(store, sample=1, **given)
        with pytest.raises(CheckpointError):
            verify(store, checkpoint=tmp_path)

    def test_more_problems_than_are_listed(self, store, monkeypatch):
        monkeypatch.setattr("pisco_index.store.upkeep.findings.LISTED", 5)
        table(store).update({"tokens_fed": "-1"})
        report = verify(store)
        assert (len(report.problems), report.problem_count) == (5, 24)


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 4
    path.write_bytes(content)


def manifests(store: Path) -> list[Path]:
    """The manifests of ``memory``, the newest first."""
    return sorted((store / "memory.lance" / "_versions").glob("*.manifest"))


class TestChecksums:
    """Damage that contradicts nothing in the store is found by the checksums of its files."""

    @pytest.mark.fault(
        "Any byte of a store's tables is changed.",
        "`verify` finds it.",
    )
    @pytest.mark.parametrize("content", [b"Title 9", b"tokens_fed"], ids=["a title", "a column's name"])
    def test_a_value_that_nothing_else_protects(
        self, store, undisturbed, corpus, checkpoint, config, content, monkeypatch
    ):
        monkeypatch.setattr(integrity, "keeps_input_text", lambda *_: False)
        path = file_of(store, "doc-9")
        flip(path, path.read_bytes().index(content))
        assert only(verify(store).problems, "fails its checksum").file == f"data/{path.name}"
        assert repair(store).files == (f"memory/data/{path.name}",)
        assert sound(store).documents == 2 * SHARD
        build([corpus], checkpoint, store, config)
        require_same_rows(store, undisturbed)

    @pytest.mark.parametrize("kind", ["old manifest", "transaction", "hint"])
    def test_files_that_no_document_needs(self, store, kind):
        # The version before has a row that the newest one lacks, so it is kept.
        delete(store, ["doc-3"])
        before = rows(store)
        path = {
            "old manifest": manifests(store)[-1],
            "transaction": sorted((store / "memory.lance" / "_transactions").iterdir())[0],
            "hint": store / "memory.lance" / "_versions" / "latest_version_hint.json",
        }[kind]
        flip(path, 5)
        (problem,) = verify(store).problems
        assert (problem.table, problem.file) == ("memory", f"{path.parent.name}/{path.name}")
        assert "No document needs it" in problem.remedy
        assert repair(store).files == (f"memory/{problem.file}",)
        assert sound(store).documents == DOCUMENTS - 1
        assert rows(store) == before

    @pytest.mark.parametrize("change", ["flipped", "gone"])
    def test_the_newest_manifest(self, store, change):
        newest = manifests(store)[0]
        if change == "gone":
            newest.unlink()
        else:
            # In the time at which it was written.
            flip(newest, newest.read_bytes().index(b"lance") - 1)
        found = [each for each in verify(store).problems if each.file == f"_versions/{newest.name}"]
        assert ["is missing." if change == "gone" else "fails its checksum."] == [each.what for each in found]
        with pytest.raises(CorruptStoreError, match="cannot be repaired"):
            repair(store)

    def test_a_damaged_record(self, store):
        flip(store / ".checksums", 0)
        assert only(verify(store).problems, "the record of the files' checksums").table == "store"
        assert repair(store).recorded
        assert sound(store).unchecked == ()

    def test_a_store_without_a_record(self, store):
        """As a former version of this package made it."""
        (store / ".checksums").unlink()
        (unchecked,) = sound(store).unchecked
        assert unchecked.endswith(f"`pisco-index repair {store}` records them")
        assert "tokens_total, tokens_fed, text_hash, error, title, text" in unchecked
        done = repair(store)
        assert (done.problem_count, done.rows, done.files) == (0, 0, ())
        assert f"the checksums of {done.recorded} of {done.recorded} files are not recorded" in unchecked
        assert sound(store).unchecked == ()

    def test_a_column_that_cannot_be_read_in_a_store_without_a_record(self, store, monkeypatch):
        (store / ".checksums").unlink()
        monkeypatch.setattr(integrity, "keeps_input_text", lambda *_: False)
        path = file_of(store, "doc-9")
        flip(path, path.read_bytes().index(b"Title 9") - 9)
        assert not verify(store).is_sound


def compact(store: Path) -> None:
    table(store).optimize.compact_files()
    assert len(table(store).get_fragments()) == 1


def lose_file(store: Path) -> None:
    file_of(store, "doc-9").unlink()


def damage_deleted_rows(store: Path) -> None:
    replace_row(store, "doc-9", title="Title 9")
    (path,) = (store / "memory.lance" / "_deletions").iterdir()
    path.write_bytes(path.read_bytes()[:100])


def double_row(store: Path) -> None:
    lance.write_dataset(row_of(store, "doc-9"), table(store).uri, mode="append")


def lose_row(store: Path) -> None:
    table(store).delete("doc_id = 'doc-9'")


def change_shard(store: Path) -> None:
    replace_row(store, "doc-9", shard=40)


def compact_and_flip(store: Path) -> None:
    compact(store)
    flip_payload(store, "doc-9")


def zero_all(store: Path) -> None:
    for path in [file_of(store, doc_id) for doc_id in ("doc-0", "doc-9", "doc-20")]:
        path.write_bytes(bytes(path.stat().st_size))


def without_shards(rows: list[dict]) -> list[dict]:
    """What a store holds, whichever shards wrote it."""
    return [{name: value for name, value in row.items() if name != "shard"} for row in rows]


def require_same_rows(store: Path, other: Path) -> None:
    """Check that two stores hold the same documents, with memory equal up to the rounding of a batch."""
    found, expected = without_shards(rows(store)), without_shards(rows(other))
    without_memory = [[{**row, "payload": None} for row in each] for each in (found, expected)]
    assert without_memory[0] == without_memory[1]
    for row, wanted in zip(found, expected, strict=True):
        memories = [decode(each["payload"], each["doc_id"]) for each in (row, wanted)]
        np.testing.assert_allclose(*memories, rtol=1e-4, atol=1e-5)


@pytest.mark.fault(
    "A damaged store is repaired and built again.",
    "It equals the original, row by row.",
)
@pytest.mark.parametrize(
    ("damage", "rows_dropped", "files"),
    [
        (lambda store: flip_payload(store, "doc-9"), 1, 0),
        (lose_file, 0, 1),
        (damage_deleted_rows, 0, 1),
        (double_row, 2, 0),
        (lose_row, 0, 0),
        (change_shard, 1, 0),
        (compact_and_flip, 1, 0),
        (zero_all, 0, 3),
    ],
    ids=["flip", "lost file", "deleted rows", "doubled row", "lost row", "other shard", "compacted", "all files"],
)
def test_a_repaired_store_is_refilled_to_what_it_was(
    store, undisturbed, corpus, checkpoint, config, damage, rows_dropped, files
):
    damage(store)
    before = contents(store)
    planned = repair(store, dry_run=True)
    assert contents(store) == before
    assert planned.bytes_freed is None
    done = repair(store)
    assert (done.rows, len(done.files)) == (rows_dropped, files)
    assert (planned.rows, planned.files) == (done.rows, done.files)
    assert done.problem_count
    report = verify(store)
    assert report.is_sound, report.problems
    assert not [note for note in report.notes if "no version refers to" in note]
    build([corpus], checkpoint, store, config)
    require_same_rows(store, undisturbed)
    assert verify(store).is_sound
    again = repair(store)
    assert (again.problem_count, again.rows, again.files) == (0, 0, ())


def test_a_repair_of_a_sound_store_drops_nothing_but_what_nobody_refers_to(store, undisturbed):
    left = store / "memory.lance" / "data" / "left.lance"
    shutil.copy(file_of(store, "doc-1"), left)
    size = left.stat().st_size
    report = repair(store)
    assert (report.problem_count, report.files, report.rows) == (0, (), 0)
    assert report.bytes_freed >= size
    assert not left.exists()
    assert rows(store) == rows(undisturbed)


def test_a_repair_waits_for_no_build(store):
    with build_lock(store), pytest.raises(StoreLockedError):
        repair(store)


@pytest.mark.usefixtures("plain_compressor")
def test_a_shard_cut_in_two_of_which_a_part_is_lost(tmp_path, corpus, checkpoint, config):
    """Where records are cut into passages the plan does not know how many rows a shard has."""
    sections = config.model_dump() | {"corpus": {"passage_words": 10}}
    cut = BuildConfig.parse(sections, "test")
    whole, store = tmp_path / "whole", tmp_path / "store"
    build([corpus], checkpoint, whole, cut)
    shutil.copytree(whole, store)
    dataset = table(store)
    dataset.optimize.compact_files()
    middle = dataset.to_table(filter="shard = 1")
    dataset.delete("shard >= 1")
    for part in (middle[:3], middle[3:]):
        lance.write_dataset(part, dataset.uri, mode="append")
    last = table(whole).to_table(filter="shard = 2")
    lance.write_dataset(last, dataset.uri, mode="append")
    assert verify(store).is_sound
    file_of(store, middle["doc_id"][0].as_py()).unlink()
    report = repair(store)
    assert (len(report.files), report.rows) == (1, 0)
    build([corpus], checkpoint, store, cut)
    assert without_shards(rows(store)) == without_shards(rows(whole))


def write(path: Path, documents: dict[str, str]) -> None:
    path.write_text(
        "\n".join(json.dumps({"id": doc_id, "title": "", "text": text}) for doc_id, text in documents.items())
    )


def sound(store: Path) -> VerifyReport:
    report = verify(store)
    assert report.is_sound, report.problems
    return report


@pytest.mark.usefixtures("plain_compressor")
class TestChangedStores:
    """Stores that were updated, pruned, deleted from, compacted."""

    @pytest.fixture
    def documents(self) -> dict[str, str]:
        return {f"doc-{n}": f"Document {n}" + " and the river" * (n % 5) for n in range(DOCUMENTS)}

    @pytest.fixture
    def run(self, tmp_path, checkpoint, config):
        def run(documents: dict[str, str], store: str = "store", **options) -> Path:
            path = tmp_path / "changing.jsonl"
            write(path, documents)
            # Most documents may change here.
            build([path], checkpoint, tmp_path / store, config, recompress=True, **options)
            return tmp_path / store

        return run

    def test_each_state_is_sound(self, run, documents, checkpoint, tmp_path):
        store = run(documents)
        assert sound(store).shards_planned == 3
        documents |= {f"doc-{n}": f"changed {n}" for n in range(8)} | {"new": "new"}
        report = sound(run(documents))
        assert (report.documents, report.shards_done, report.shards_planned) == (25, 2, 2)
        del documents["doc-9"], documents["new"]
        report = sound(run(documents, prune=True))
        assert (report.documents, report.shards_planned) == (23, 0)
        documents["doc-10"] = "changed once more"
        run(documents)
        # All of a former plan's shard, and all of the one in force.
        delete(store, ["doc-10", *(f"doc-{n}" for n in range(16, 24))])
        assert sound(store).documents == 14
        compact_store(store, older_than_hours=0)
        assert sound(store).documents == 14
        run(documents)
        report = verify(store, checkpoint=checkpoint, corpus=[tmp_path / "changing.jsonl"], sample=99, device="cpu")
        assert report.is_sound, report.problems
        assert (report.documents, report.sampled) == (23, 23)
        assert repair(store).problem_count == 0

    def test_the_plan_of_an_update_knows_its_rows(self, run, documents):
        store = run(documents)
        documents |= {f"doc-{n}": f"changed {n}" for n in range(4)}
        run(documents)
        table(store).delete("doc_id = 'doc-2'")
        assert only(verify(store).problems, "has 3 rows; the plan has 4 records").shard == 3
        repair(store)
        run(documents)
        assert without_shards(rows(store)) == without_shards(rows(run(documents, "fresh")))

    @pytest.mark.fault(
        "A damaged store is repaired and built again.",
        "It equals the original, row by row.",
    )
    @pytest.mark.parametrize("doc_id", ["doc-1", "doc-9"], ids=["updated", "former"])
    @pytest.mark.parametrize(
        "damage",
        [flip_payload, lambda store, doc_id: file_of(store, doc_id).unlink(), replace_row],
        ids=["flip", "lost file", "token count"],
    )
    def test_an_updated_store_is_refilled(self, run, documents, doc_id, damage):
        store = run(documents)
        documents |= {f"doc-{n}": f"changed {n}" for n in range(4)}
        run(documents)
        damage(store, doc_id, **({"tokens_fed": -1} if damage is replace_row else {}))
        assert not verify(store).is_sound
        repair(store)
        sound(store)
        # Whatever the corpus is by then.
        documents["doc-20"] = "changed meanwhile"
        run(documents)
        sound(store)
        assert without_shards(rows(store)) == without_shards(rows(run(documents, "fresh")))

    @pytest.mark.fault(
        "A damaged store is repaired and built again.",
        "It equals the original, row by row.",
    )
    @pytest.mark.parametrize(
        "damage",
        [flip_payload, lambda store, doc_id: file_of(store, doc_id).unlink()],
        ids=["flip", "lost file"],
    )
    @pytest.mark.parametrize("is_update", [False, True], ids=["first build", "update"])
    def test_an_unfinished_build_is_refilled_and_finished(
        self, run, documents, damage, is_update, tmp_path, monkeypatch
    ):
        store = tmp_path / "store"
        if is_update:
            run(documents)
            documents |= {doc_id: f"{text} again" for doc_id, text in documents.items()}
        with monkeypatch.context() as patch:
            fail_on(patch, {5 if is_update else 2})
            with pytest.raises(BuildIncompleteError):
                run(documents)
        assert sound(store).shards_done == 2
        damage(store, "doc-9")
        repair(store)
        sound(store)
        run(documents)
        assert sound(store).documents == DOCUMENTS
        assert without_shards(rows(store)) == without_shards(rows(run(documents, "fresh")))

    def test_a_store_that_changes_under_a_repair(self, run, documents, monkeypatch):
        store = run(documents)
        flip_payload(store, "doc-9")
        check = integrity._check

        def check_and_change(*arguments):
            found = check(*arguments)
            table(store).delete("doc_id = 'doc-20'")
            return found

        monkeypatch.setattr(integrity, "_check", check_and_change)
        before = rows(store)
        with pytest.raises(StoreError, match="changed while it was checked"):
            repair(store)
        assert rows(store) == [row for row in before if row["doc_id"] != "doc-20"]
