"""Random faults, in short: ``make torture-short`` has one seed in a single process and one on a Ray cluster.

The long form is ``make torture``.
"""

import json
import os
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("torture.py")


SLOW = pytest.mark.skipif("PISCO_INDEX_TORTURE" not in os.environ, reason="takes minutes: make torture-short")


@pytest.mark.fault(
    "All kinds of faults at random, by the hundred.",
    "Each document is stored once, and nothing but poison is quarantined.",
)
@SLOW
@pytest.mark.parametrize("seed", [pytest.param(0, id="on-ray"), pytest.param(1, id="here")])
@pytest.mark.timeout(1500)
def test_builds_under_random_faults_lose_and_double_nothing(tmp_path, seed):
    words = ["--seeds", seed, "--injected", "4", "--folder", tmp_path / "runs", "--json", tmp_path / "result.json"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    finished = subprocess.run(
        [sys.executable, str(SCRIPT), *map(str, words)], capture_output=True, text=True, check=False, env=environment
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    result = json.loads((tmp_path / "result.json").read_text())
    kinds = {kind.split()[0] for kind in result["by kind"]}
    assert {"poison", "write", "commit"} < kinds
    assert {"worker", "all", "driver", "child", "node", "second"} & kinds
    for run in result["runs"]:
        assert sum(run["faults"].values()) >= 20
        assert not any(run[what] for what in ("lost", "doubled", "other memory", "wrongly quarantined"))


def test_every_fault_has_its_row_and_a_test_that_exists():
    spec = spec_from_file_location("torture", SCRIPT)
    torture = module_from_spec(spec)
    spec.loader.exec_module(torture)
    poison = {*torture.RAISING, *torture.DEADLY["ray"], *torture.DEADLY["here"]}
    kinds = {f"poison {fault}" for fault in poison} | {kind for place in torture.INJECTED.values() for kind in place}
    kinds |= {f"{moment} {fault}" for moment, rates in torture.RATES.items() for fault in rates}
    rows = [row_kinds for _, row_kinds, _, _ in torture.TABLE]
    assert kinds <= set().union(*rows)
    assert sum(map(len, rows)) == len(set().union(*rows))
    for _, _, _, test in torture.TABLE:
        file, _, name = test.partition("::")
        assert f"def {name.split('::')[-1]}(" in (SCRIPT.parent / file).read_text()
