"""The command ``build``."""

import json
import re

import pytest

from pisco_index import Reader


def test_a_build_is_watched(build, tmp_path):
    options = ("-o", tmp_path / "store", "-c", "beir", "--events", tmp_path / "events", "--metrics-port", 0)
    shown = build(*options)
    assert shown.exit_code == 0, shown.output
    assert re.search(r"^metrics: http://127\.0\.0\.1:\d+/metrics$", shown.stderr, re.MULTILINE)
    events = [json.loads(line) for line in (tmp_path / "events").read_text().splitlines()]
    assert (events[0]["event"], events[-1]["event"], events[-1]["how"]) == ("began", "ended", "done")
    again = build(*options, "--json")
    assert again.exit_code == 0
    assert json.loads(again.stdout)["committed"] == 0
    runs = [json.loads(line)["run"] for line in (tmp_path / "events").read_text().splitlines()]
    assert len(set(runs)) == 2


def test_a_store_is_updated(folder, run, tmp_path, monkeypatch):
    monkeypatch.setattr("pisco_index.pipeline.estimate.PROBE_SECONDS", 0.1)
    lines = [{"_id": f"d{n}", "text": "the river and the city " * (n + 1)} for n in range(12)]
    corpus, store = tmp_path / "corpus.jsonl", tmp_path / "store"

    def build(*options):
        corpus.write_text("".join(json.dumps(line) + "\n" for line in lines))
        return run("build", corpus, "-k", folder / "checkpoint", "-o", store, "-c", "beir", *options)

    assert build().exit_code == 0
    nothing = build("--dry-run").stdout
    assert not re.search("speed|time|codec", nothing)
    lines[3] |= {"text": "other"}
    lines[0] = {"_id": "new", "text": "new"}
    assert "1 new, 1 changed, 10 same, 1 gone" in build("--dry-run").stdout
    shown = build()
    assert shown.exit_code == 0, shown.output
    assert "documents: 1 new, 1 changed, 10 same, 1 gone, 0 pruned; 1 document not in the corpus" in shown.stdout
    assert "last update" in run("info", store).stdout
    assert re.search(r"deletes +d0\n", build("--dry-run", "--prune").stdout)
    assert json.loads(build("--dry-run", "--prune", "--json").stdout)["pruned"] == ["d0"]
    pruned = json.loads(build("--prune", "--json").stdout)
    assert pruned["changes"] == {"new": 0, "changed": 0, "same": 12, "gone": 0, "pruned": 1}


def test_a_store_keeps_its_settings(folder, run, tmp_path):
    corpus, store = tmp_path / "corpus.jsonl", tmp_path / "store"

    def build(count, *options):
        lines = [{"id": f"d{n}", "title": "City", "name": f"River {n}", "text": "water"} for n in range(count)]
        corpus.write_text("".join(json.dumps(line) + "\n" for line in lines))
        return run("build", corpus, "-k", folder / "checkpoint", "-o", store, *options)

    assert build(46, "--title-field", "name", "--max-length", "64").exit_code == 0
    updated = build(47)
    assert "1 new, 0 changed, 46 same" in updated.stdout
    assert "settings of the store, where none were given: corpus.title_field 'name', compression.max_length 64" in (
        " ".join(updated.stderr.split())
    )
    refused = build(48, "--title-field", "title")
    assert refused.exit_code == 2
    assert "title_field 'name', not 'title'" in refused.stderr
    assert "1 new, 47 changed" in build(48, "--title-field", "title", "--recompress").stdout


def test_dry_run(build, tmp_path, monkeypatch):
    monkeypatch.setattr("pisco_index.pipeline.estimate.PROBE_SECONDS", 0.1)
    shown = build("-o", tmp_path / "store", "--dry-run")
    assert shown.exit_code == 0, shown.output
    assert "12 in 1 shard" in shown.stdout
    assert re.search(r"speed +[\d.,]+ passages/s on cpu \([\d.,]+ to [\d.,]+ in the trials\)", shown.stdout)
    assert re.search(r"time +0:\d\d:\d\d to 0:\d\d:\d\d for the whole build with 1 worker", shown.stdout)
    measured = r"KL \S+ nats, worst document \S+, measured on 12 documents through the checkpoint's decoder"
    assert re.search(rf"codec +int8: [\d.]+ bits per value, normalised error -4\d\.\d dB, {measured}", shown.stdout)
    unmeasured = build("-o", tmp_path / "store", "--dry-run", "--no-measure-kl")
    assert "dB; no KL measured: turned off by --no-measure-kl" in unmeasured.stdout
    assert json.loads(build("-o", tmp_path / "store", "--dry-run", "--json").stdout)["documents"] == 12
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    ("options", "kept"),
    [((), ["title"]), (("--keep", "nothing"), []), (("--keep", "title", "--keep", "text"), ["title", "text"])],
)
def test_keep(build, tmp_path, options, kept):
    build("-o", tmp_path / "store", *options)
    assert list(Reader(tmp_path / "store").meta.optional_columns) == kept


def test_the_command_line_overrides_the_file(build, run, tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("compression: {max_length: 16, on_long: truncate}\n")
    build("-o", tmp_path / "store", "-c", path, "--max-length", 24)
    components = json.loads(run("info", tmp_path / "store", "--json").stdout)["fingerprint_components"]
    assert (components["max_length"], components["on_long"]) == ("24", "truncate")


@pytest.mark.parametrize(
    ("text", "meant"),
    [("compression:\n  max_lenght: 128\n", "max_length"), ("run:\n  dtype: float32\n", "compression.dtype")],
)
def test_an_unknown_key_names_the_nearest(build, tmp_path, text, meant):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    shown = build("-o", tmp_path / "store", "-c", path)
    assert shown.exit_code == 2
    assert f"did you mean {meant}?" in shown.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("-c", "wikpedia"), "neither a file nor a preset"),
        (("-c", "wikipedia"), "mediawiki"),
        (("-c", "{}/store/assets.lance"), "neither"),
        (("--max-length", "0"), "--max-length"),
        (("--overlap", "512"), "overlap 512 must be less than max_length 512"),
        (("--text-field", "body"), "body"),
        (("--device", "cuda:9"), "cuda:9"),
        (("--device", "mps"), "is not a device"),
        (("--events", "{}/no/events"), "cannot be written"),
        (("--metrics-port", "1", "--metrics-host", "x"), "cannot be served"),
        (("-k", "{}/nothing"), "no such checkpoint folder"),
        (("{}/nothing.jsonl",), "nothing.jsonl"),
    ],
)
def test_bad_input(build, folder, tmp_path, options, message):
    shown = build("-o", tmp_path / "store", *(option.format(folder) for option in options))
    assert shown.exit_code == 2, shown.output
    assert message in shown.stderr
    assert "Traceback" not in shown.stderr
    assert not (tmp_path / "store").exists()
