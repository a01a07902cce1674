import random

import pytest
import torch

from pisco_index import Compressor, Decoder, new_tiny_checkpoint, open_checkpoint
from pisco_index.errors import CheckpointError

WEIGHTS = (".pt", ".safetensors")


def files_of(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_seed_gives_one_checkpoint(tiny_folder, tmp_path):
    new_tiny_checkpoint(tmp_path / "same")
    new_tiny_checkpoint(tmp_path / "other", seed=1)
    assert files_of(tmp_path / "same") == files_of(tiny_folder)
    same, other = files_of(tmp_path / "same"), files_of(tmp_path / "other")
    assert {name for name in same if same[name] != other[name]} == {name for name in same if name.endswith(WEIGHTS)}


def test_it_is_small_and_complete(tiny_folder):
    assert sum(path.stat().st_size for path in tiny_folder.rglob("*") if path.is_file()) < 3_000_000
    Compressor.load(open_checkpoint(tiny_folder))
    Decoder.load(str(tiny_folder))


def test_it_does_not_name_the_place_where_it_was_made(tiny_folder):
    for path in tiny_folder.rglob("*.json"):
        assert "/tmp" not in path.read_text(), path


def test_the_random_state_of_the_caller_is_restored(tmp_path):
    torch.manual_seed(5)
    random.seed(5)
    before = torch.random.get_rng_state(), random.getstate()
    open_checkpoint(new_tiny_checkpoint(tmp_path / "tiny").path)
    assert torch.equal(torch.random.get_rng_state(), before[0])
    assert random.getstate() == before[1]


def test_a_folder_in_use_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="holds something"):
        new_tiny_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match="holds something"):
        new_tiny_checkpoint(tmp_path / "notes.txt")
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_the_rate_is_as_asked(tmp_path):
    assert new_tiny_checkpoint(tmp_path / "tiny", rate=4).rate == 4
