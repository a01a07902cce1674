"""The commands ``delete``, ``compact`` and ``recode``."""

import json
import shutil

from pisco_index import Reader


def test_documents_are_deleted_and_the_store_is_compacted(folder, run, tmp_path):
    store = shutil.copytree(folder / "store", tmp_path / "store")
    missing = run("delete", store, "d1", "d99")
    assert missing.exit_code == 2
    assert "'d99'" in missing.output
    (tmp_path / "ids").write_text("d2\n\nd98\n", "utf-8")
    shown = run("delete", store, "d1", "d99", "--ids", tmp_path / "ids", "--skip-missing")
    assert shown.exit_code == 0, shown.output
    assert "2 documents deleted, 2 not found: 'd99', 'd98'" in shown.stdout
    # Two of twelve are more than a twentieth.
    assert f"Make it anew: pisco-index index {store}" in shown.stdout
    run("index", store)
    assert "anew" not in run("delete", store, "d99", "--skip-missing").stdout
    assert json.loads(run("delete", store, "d5", "--json").stdout) == {"deleted": 1, "missing": [], "kept_out": 0}
    assert "stores them again. To prevent that: --keep-out" in run("delete", store, "d6").stdout
    kept = run("delete", store, "d7", "--keep-out")
    assert "1 document deleted, 1 kept out of later builds (undo: --let-in)" in kept.stdout
    assert "kept out  " in run("info", store).stdout
    assert "1 document kept out no longer" in run("delete", store, "d7", "--let-in").stdout
    assert "'d7'" in run("delete", store, "d7", "--let-in").output
    assert "exclude each other" in run("delete", store, "d7", "--let-in", "--keep-out").output
    without_ids = run("delete", store)
    assert without_ids.exit_code == 2
    assert "give ids, or --ids FILE" in without_ids.stderr
    (tmp_path / "ids").write_bytes(b"\xff\n")
    refused = run("delete", store, "--ids", tmp_path / "ids")
    assert refused.exit_code == 2
    assert "line 1: invalid UTF-8, byte 0xff" in refused.output

    shown = run("compact", store)
    assert shown.exit_code == 0, shown.output
    assert "fragments" in shown.stdout
    assert "--older-than 0 drops them" in shown.stdout
    compaction = json.loads(run("compact", store, "--older-than", 0, "--json").stdout)
    assert (compaction["fragments"], compaction["versions"]) == (1, 1)
    with Reader(store) as reader:
        assert set(reader.ids()) == {f"d{n}" for n in range(12)} - {"d1", "d2", "d5", "d6", "d7"}


def test_recode(folder, run, build, tmp_path):
    recode = ("recode", folder / "store", "--codec", "int4", "-o", tmp_path / "int4")
    shown = run(*recode)
    assert shown.exit_code == 0, shown.output
    assert "codec int4: " in shown.stdout
    assert "dB; no KL measured: no checkpoint is given (--checkpoint)" in shown.stdout
    assert "12 documents in 1 shard (0 before)" in shown.stdout
    again = json.loads(run(*recode, "--json").stdout)
    assert (again["done_before"], again["documents"], again["prediction"]) == (1, 12, None)
    assert "codec int4" in run("info", tmp_path / "int4").stdout
    resume = ("-o", tmp_path / "int4", "-c", "beir")
    assert "was begun with codec 'int4', not 'int8'" in build(*resume, "--codec", "int8").stderr
    assert json.loads(build(*resume, "--json").stdout)["committed"] == 0
    for codec, message in (("bf16", "keeps less than bf16"), ("zip", "zip")):
        refused = run("recode", folder / "store", "--codec", codec, "-o", tmp_path / codec)
        assert refused.exit_code == 2
        assert message in refused.stderr


def test_a_store_is_recoded_through_the_decoder(folder, run, tmp_path):
    checkpoint = folder / "checkpoint"
    source = folder / "store"
    for codec, fitted in (("int4", None), ("fisher3", True)):
        shown = run(
            *("recode", source, "--codec", codec, "-o", tmp_path / codec, "-k", checkpoint, "--device", "cpu", "--json")
        )
        assert shown.exit_code == 0, shown.output
        prediction = json.loads(shown.stdout)["prediction"]
        assert (prediction["kl_documents"], prediction["kl_missing"], prediction["fitted_to_decoder"]) == (
            12,
            "",
            fitted,
        )
        assert 0 < prediction["kl"] <= prediction["kl_worst"]
        info = run("info", tmp_path / codec)
        assert ("fitted to the decoder" in info.stdout) == bool(fitted)
