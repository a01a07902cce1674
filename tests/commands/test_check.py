"""The commands ``verify`` and ``repair``."""

import json
import re
import shutil


def test_verify_and_repair(folder, run, tmp_path):
    store = shutil.copytree(folder / "store", tmp_path / "store")
    shown = run("verify", store, "-k", folder / "checkpoint", "--sample", 3, "--corpus", folder / "corpus.jsonl")
    assert shown.exit_code == 0, shown.output
    assert f"{store}: sound. 12 documents, " in shown.stdout
    assert "1 of 1 shards done; 3 documents compressed again, largest relative error " in shown.stdout
    assert "MB/s" in shown.stdout
    assert f"{store}: nothing is damaged; " in run("repair", store).stdout

    (file,) = (store / "memory.lance" / "data").glob("*.lance")
    file.unlink()
    shown = run("verify", store)
    assert shown.exit_code == 3
    assert f"memory: data/{file.name}: is missing. Run `pisco-index repair` to drop it" in shown.stdout
    assert f"{store}: 1 problem. 0 documents" in shown.stdout
    as_json = run("verify", store, "--json")
    assert as_json.exit_code == 3
    (problem,) = json.loads(as_json.stdout)["problems"]
    assert (problem["table"], problem["file"], problem["doc_id"]) == ("memory", f"data/{file.name}", None)

    planned = run("repair", store, "--dry-run")
    assert f"damaged: memory/data/{file.name}" in planned.stdout
    assert "would drop 1 damaged file and 0 damaged rows." in planned.stdout
    assert json.loads(run("repair", store, "--dry-run", "--json").stdout)["files"] == [f"memory/data/{file.name}"]
    done = run("repair", store)
    assert done.exit_code == 0
    assert "dropped 1 damaged file" in done.stdout
    assert "Run its build command to write them again." in done.stdout
    assert run("verify", store).exit_code == 0
    assert run("verify", tmp_path / "none").exit_code == 2


def test_the_first_line_names_what_is_not_checked(folder, run, tmp_path):
    store = shutil.copytree(folder / "store", tmp_path / "store")
    (store / ".checksums").unlink()
    shown = run("verify", store)
    assert shown.exit_code == 0
    assert re.match(r"not checked: the checksums of (\d+) of \1 files are not recorded; ", shown.stdout)
    assert f"{store}: no problem found. 12 documents, " in shown.stdout
    assert re.search(r"; recorded the checksums of \d+ files\.$", run("repair", store).stdout)
    assert run("verify", store).stdout.startswith(f"{store}: sound. 12 documents, ")
