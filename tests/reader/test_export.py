"""An export holds what a reader fetches, in files that the formats' own clients read."""

import json
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import xxhash
from safetensors.torch import load_file

from pisco_index import Reader, export
from pisco_index.errors import ConfigError, InputError, MissingDocumentsError, StoreError
from pisco_index.reader.export_formats import FORMATS

DOCUMENT = Path(__file__).parents[2] / "docs" / "export.md"
DTYPES = [(name, dtype) for name, kind in FORMATS.items() for dtype in kind.dtypes]


def manifest_of(folder: Path) -> dict:
    return json.loads((folder / "manifest.json").read_text())


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def read_columnar(table: pa.Table) -> dict[str, torch.Tensor]:
    names, lengths, memory = (table.column(name).to_pylist() for name in ("doc_id", "n_mem", "memory"))
    assert lengths == list(map(len, memory))
    return {name: torch.tensor(np.array(vectors)) for name, vectors in zip(names, memory, strict=True)}


def read_flat(values: torch.Tensor, offsets: torch.Tensor, ids: Path) -> dict[str, torch.Tensor]:
    names = json.loads(ids.read_text("utf-8"))
    parts = values.split(torch.diff(offsets).tolist())
    return dict(zip(names, parts, strict=True))


def read(folder: Path) -> dict[str, torch.Tensor]:
    """An export by the clients of its format, in the order of its parts."""
    found: dict[str, torch.Tensor] = {}
    for part in manifest_of(folder)["parts"]:
        first, *others = (folder / file["name"] for file in part["files"])
        if first.suffix == ".parquet":
            found |= read_columnar(pq.read_table(first))
        elif first.suffix == ".arrow":
            found |= read_columnar(pa.ipc.open_file(first).read_all())
        elif first.suffix == ".npy":
            offsets, ids = others
            found |= read_flat(torch.from_numpy(np.load(first)), torch.from_numpy(np.load(offsets)), ids)
        else:
            tensors = load_file(first)
            found |= read_flat(tensors["values"], tensors["offsets"], others[0])
    return found


def expected(store: Path, stage: str, dtype: str, ids=None) -> dict[str, torch.Tensor]:
    with Reader(store) as reader:
        memory = reader.fetch(list(reader.ids()) if ids is None else ids)
        memory = reader.connector.connect(memory) if stage == "embedding" else memory
    return {doc_id: values.to(getattr(torch, dtype)) for doc_id, values in zip(memory.doc_ids, memory, strict=True)}


def assert_same(found: dict[str, torch.Tensor], true: dict[str, torch.Tensor]) -> None:
    assert list(found) == list(true)
    for doc_id, values in true.items():
        assert found[doc_id].shape == values.shape
        assert torch.equal(found[doc_id].to(values.dtype), values), doc_id


@pytest.mark.parametrize(("kind", "dtype"), DTYPES)
@pytest.mark.parametrize("stage", ["hidden", "embedding"])
def test_an_export_is_what_a_reader_fetches(store_of, tmp_path, kind, dtype, stage):
    store = store_of("hidden")
    with Reader(store) as reader:
        meta, version = reader.meta, reader.version
    report = export(store, tmp_path / "out", format=kind, dtype=dtype, stage=stage, part_documents=7)
    assert_same(read(tmp_path / "out"), expected(store, stage, dtype))
    assert (report.documents, report.parts, report.parts_before, report.dtype) == (20, 3, 0, dtype)
    manifest = manifest_of(tmp_path / "out")
    assert manifest["complete"]
    assert manifest["store"]["fingerprint"] == meta.fingerprint.digest
    assert manifest["store"]["version"] == version
    assert (manifest["stage"], manifest["dtype"], manifest["dim"]) == (stage, dtype, report.dim)
    assert [part["documents"] for part in manifest["parts"]] == [7, 7, 6]
    files = [file for part in manifest["parts"] for file in part["files"]]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(
        ["manifest.json", *(file["name"] for file in files)]
    )
    for file in files:
        content = (tmp_path / "out" / file["name"]).read_bytes()
        assert (len(content), xxhash.xxh3_64_hexdigest(content)) == (file["size"], file["xxh3_64"])
    assert report.size == sum(file["size"] for file in files)
    assert report.memory_tokens == sum(part["memory_tokens"] for part in manifest["parts"])
    assert json.loads(json.dumps(report.to_dict()))["documents"] == 20


def test_a_store_behind_the_connector_gives_that_stage_only(store_of, tmp_path):
    store = store_of("embedding")
    with pytest.raises(ConfigError, match="cannot be computed"):
        export(store, tmp_path / "out", stage="hidden")
    assert not (tmp_path / "out").exists()
    for stage in (None, "embedding"):
        assert export(store, tmp_path / f"out-{stage}", stage=stage).stage == "embedding"
        assert_same(read(tmp_path / f"out-{stage}"), expected(store, "embedding", "float32"))


def test_some_documents_in_their_own_order(hidden_store, tmp_path):
    ids = ["doc-13", "doc-2", "doc-19", "doc-0"]
    export(hidden_store, tmp_path / "out", ids=ids, part_documents=3)
    with Reader(hidden_store) as reader:
        stage = reader.meta.stage
    assert_same(read(tmp_path / "out"), expected(hidden_store, stage, "float32", ids))


def test_the_default_types_and_parts(hidden_store, tmp_path):
    assert export(hidden_store, tmp_path / "a", format="safetensors").dtype == "bfloat16"
    report = export(hidden_store, tmp_path / "b", format="npy")
    assert (report.dtype, report.parts) == ("float32", 1)
    memory = manifest_of(tmp_path / "b")
    with Reader(hidden_store) as reader:
        tokens = reader.memory_tokens()
    assert memory["part_documents"] == int((1 << 30) / (tokens / 20 * report.dim * 4))


@pytest.mark.fault(
    "Recoding or an export is stopped.",
    "The same command resumes it.",
)
@pytest.mark.parametrize("kind", list(FORMATS))
def test_a_stopped_export_goes_on(hidden_store, tmp_path, kind):
    whole = tmp_path / "whole"
    export(hidden_store, whole, format=kind, part_documents=6)

    def stop(done, total):
        if done > 12:
            raise KeyboardInterrupt

    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        export(hidden_store, out, format=kind, part_documents=6, progress=stop)
    assert not manifest_of(out)["complete"]
    before = {path.name: path.stat().st_mtime_ns for path in out.glob("part-0000[01].*")}
    report = export(hidden_store, out, format=kind)
    assert (report.parts, report.parts_before) == (4, 2)
    assert before == {name: (out / name).stat().st_mtime_ns for name in before}
    assert contents(out) == contents(whole)
    # A part that was lost is written again, and a finished export is not touched.
    for path in out.glob("part-00001.*"):
        path.unlink()
    assert export(hidden_store, out, format=kind).parts_before == 3
    assert export(hidden_store, out, format=kind).parts_before == 4
    assert contents(out) == contents(whole)


@pytest.mark.fault(
    "Recoding or an export is stopped.",
    "The same command resumes it.",
)
def test_a_death_between_the_manifest_and_the_files(hidden_store, tmp_path, monkeypatch):
    export(hidden_store, tmp_path / "whole", part_documents=12)
    replace = Path.replace

    def die(self, target):
        if self.name.startswith(".part-00001"):
            raise KeyboardInterrupt
        return replace(self, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", die)
        with pytest.raises(KeyboardInterrupt):
            export(hidden_store, tmp_path / "out", part_documents=12)
    assert export(hidden_store, tmp_path / "out").parts_before == 1
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


class TestRefusals:
    """What is refused is left as it was."""

    def test_a_folder_with_something_else(self, hidden_store, tmp_path):
        (tmp_path / "mine.txt").write_text("mine")
        with pytest.raises(InputError, match=r"holds 'mine\.txt'\. Name a new or empty folder"):
            export(hidden_store, tmp_path)
        assert contents(tmp_path) == {"mine.txt": b"mine"}

    def test_a_file_in_place_of_a_folder(self, hidden_store, tmp_path):
        (tmp_path / "file").write_text("mine")
        with pytest.raises(InputError, match="is a file"):
            export(hidden_store, tmp_path / "file")
        with pytest.raises(InputError, match="cannot be created"):
            export(hidden_store, tmp_path / "file" / "out")

    def test_another_export(self, hidden_store, tmp_path):
        export(hidden_store, tmp_path / "out", part_documents=5)
        before = contents(tmp_path / "out")
        with pytest.raises(InputError, match="holds another export: format 'parquet', not 'npy', dtype"):
            export(hidden_store, tmp_path / "out", format="npy", dtype="float16")
        with pytest.raises(InputError, match="ids None, not"):
            export(hidden_store, tmp_path / "out", ids=["doc-1"])
        with pytest.raises(InputError, match="part_documents 5, not 6"):
            export(hidden_store, tmp_path / "out", part_documents=6)
        assert contents(tmp_path / "out") == before

    def test_another_store_or_version(self, hidden_store, tmp_path):
        export(hidden_store, tmp_path / "out")
        path = tmp_path / "out" / "manifest.json"
        values = json.loads(path.read_text())
        path.write_text(json.dumps(values | {"store": values["store"] | {"version": 999}}))
        with pytest.raises(StoreError, match="999"):
            export(hidden_store, tmp_path / "out")
        path.write_text(json.dumps(values | {"store": values["store"] | {"created_at": "2020-01-01T00:00:00+00:00"}}))
        with pytest.raises(InputError, match="holds another export: store"):
            export(hidden_store, tmp_path / "out")
        path.write_text(json.dumps(values | {"store": values["store"] | {"fingerprint": "00"}}))
        with pytest.raises(InputError, match="holds another export: store"):
            export(hidden_store, tmp_path / "out")

    @pytest.mark.parametrize("content", ["", "[]", "{}", '{"manifest_version": 9}', '{"manifest_version": 1, "a": 2}'])
    def test_a_manifest_of_something_else(self, hidden_store, tmp_path, content):
        (tmp_path / "manifest.json").write_text(content)
        with pytest.raises(InputError, match="this is no manifest of an export of this version"):
            export(hidden_store, tmp_path)
        assert contents(tmp_path) == {"manifest.json": content.encode()}

    def test_a_strange_file_with_the_name_of_a_part(self, hidden_store, tmp_path):
        def stop(done, total):
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            export(hidden_store, tmp_path / "out", progress=stop)
        (tmp_path / "out" / "part-00000.parquet").write_text("mine")
        with pytest.raises(InputError, match="this file exists already and is not part of the export"):
            export(hidden_store, tmp_path / "out")
        assert (tmp_path / "out" / "part-00000.parquet").read_text() == "mine"

    def test_types_that_a_format_does_not_hold(self, hidden_store, tmp_path):
        with pytest.raises(ConfigError, match="npy files do not hold bfloat16; they hold float32, float16"):
            export(hidden_store, tmp_path / "out", format="npy", dtype="bfloat16")
        with pytest.raises(ConfigError, match="at least one document, not 0"):
            export(hidden_store, tmp_path / "out", part_documents=0)
        assert not (tmp_path / "out").exists()

    def test_ids_that_are_not_there_or_twice(self, hidden_store, tmp_path):
        with pytest.raises(MissingDocumentsError, match="does not hold 2 of the ids given: 'x', 'y'") as caught:
            export(hidden_store, tmp_path / "out", ids=["doc-1", "x", "doc-2", "y"])
        assert caught.value.doc_ids == ("x", "y")
        with pytest.raises(InputError, match="'doc-1' is given twice"):
            export(hidden_store, tmp_path / "out", ids=["doc-1", "doc-2", "doc-1"])
        assert not (tmp_path / "out").exists()

    def test_numbers_beyond_float16(self, hidden_store, tmp_path, monkeypatch):
        fetch = Reader._memory

        def large(self, rows):
            memory = fetch(self, rows)
            memory.values[0, 0] = 70_000
            return memory

        monkeypatch.setattr(Reader, "_memory", large)
        with pytest.raises(InputError, match="too large for float16"):
            export(hidden_store, tmp_path / "out", dtype="float16")
        assert not list((tmp_path / "out").glob("part*"))


def test_the_documented_readers_read_every_format(hidden_store, tmp_path):
    """docs/export.md has a function for each format, of the formats' own clients alone."""
    (code,) = re.findall(r"```python\n(import .*?)```", DOCUMENT.read_text("utf-8"), re.DOTALL)
    names: dict = {}
    exec(compile(code, str(DOCUMENT), "exec"), names)
    with Reader(hidden_store) as reader:
        stage = reader.meta.stage
    for name, kind in FORMATS.items():
        export(hidden_store, tmp_path / name, format=name, part_documents=8)
        found = names["read_export"](tmp_path / name)
        true = expected(hidden_store, stage, "bfloat16" if "bfloat16" in kind.dtypes else "float32")
        if name != "safetensors":
            found = {doc_id: torch.tensor(values) for doc_id, values in found.items()}
        assert_same(found, true)
