"""Folders whose files hold two sets of weights: refused by the names of both, unless both are the same."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from pisco_index import open_checkpoint
from pisco_index.model.loading.models import load_model
from pisco_index.model.loading.weight_files import weight_files

from ...released import save_shards


@pytest.fixture
def model(make_base, tmp_path):
    """A model folder that a test may change."""
    return shutil.copytree(make_base("llama"), tmp_path / "model")


def load(folder):
    return load_model(AutoModelForCausalLM, str(folder), torch.float32)


def state_of(folder):
    return load_file(folder / "model.safetensors")


def halved(state):
    return {name: each * 0.5 for name, each in state.items()}


def half_of(state):
    return {name: state[name] for name in sorted(state)[: len(state) // 2]}


STALE = {
    "an old file beside shards": (
        lambda f, s: (save_shards(f, s, 2), save_file(halved(s), f / "model.safetensors")),
        r"model\.safetensors and model\.safetensors\.index\.json",
    ),
    "an old pickle": (
        lambda f, s: torch.save(halved(s), f / "pytorch_model.bin"),
        r"model\.safetensors and pytorch_model\.bin",
    ),
    "old pickles in shards": (
        lambda f, s: save_shards(f, halved(s), 2, pickled=True),
        r"model\.safetensors and pytorch_model\.bin\.index\.json",
    ),
    "a smaller pickle": (
        lambda f, s: torch.save(half_of(s), f / "pytorch_model.bin"),
        r"model\.safetensors and pytorch_model\.bin",
    ),
    "a pickle beside weights of another name": (
        lambda f, s: (
            (f / "model.safetensors").rename(f / "weights.safetensors"),
            torch.save(halved(s), f / "pytorch_model.bin"),
        ),
        r"pytorch_model\.bin and weights\.safetensors",
    ),
    "one tensor": (
        lambda f, s: torch.save(s | {"model.norm.weight": s["model.norm.weight"] + 1}, f / "pytorch_model.bin"),
        r"model\.safetensors and pytorch_model\.bin .*of model\.norm\.weight",
    ),
    "shards that the index does not name": (
        lambda f, s: (
            (f / "model.safetensors").unlink(),
            save_shards(f, s, 2),
            save_file(halved(half_of(s)), f / "model-00003-of-00003.safetensors"),
        ),
        r"model\.safetensors\.index\.json and model-00003-of-00003\.safetensors",
    ),
    "an index without its shards": (
        lambda f, _: (f / "model.safetensors.index.json").write_text(
            json.dumps({"weight_map": {"a": "model-00001-of-00002.safetensors"}})
        ),
        r"model\.safetensors\.index\.json: names model-00001.*not there\. model\.safetensors beside it",
    ),
    "an adapter": (
        lambda f, s: save_file(half_of(s), f / "adapter_model.safetensors"),
        r"adapter_model\.safetensors: weights of an adapter",
    ),
}


@pytest.mark.parametrize("case", STALE)
def test_two_sets_of_weights_are_refused(model, refused, case):
    change, message = STALE[case]
    change(model, state_of(model))
    refused(message, load, model)


def test_shards_without_an_index(model, refused):
    (model / "model.safetensors").rename(model / "model-00001-of-00001.safetensors")
    refused(r"cannot be loaded.*model-00001-of-00001\.safetensors, a shard, and no index", load, model)


HARMLESS = {
    "a pickle": lambda f, s: torch.save(s | {"ids": torch.arange(3)}, f / "pytorch_model.bin"),
    "a pickle in half precision": lambda f, s: torch.save(
        {name: each.half() for name, each in s.items()}, f / "pytorch_model.bin"
    ),
    "shards": lambda f, s: save_shards(f, s, 2),
    "an index of pickles that were not downloaded": lambda f, _: (f / "pytorch_model.bin.index.json").write_text(
        json.dumps({"weight_map": {"a": "pytorch_model-00001-of-00002.bin"}})
    ),
    "weights of another layout": lambda f, s: save_file(
        {f"layers.{name}": each for name, each in s.items()}, f / "consolidated.safetensors"
    ),
    "arguments": lambda f, _: (f / "training_args.bin").write_bytes(b"no weights"),
}


@pytest.mark.parametrize("case", HARMLESS)
def test_files_with_the_same_weights_are_fine(model, case):
    HARMLESS[case](model, state_of(model))
    assert weight_files(model, "model") == [model / "model.safetensors"]
    load(model)


@pytest.mark.parametrize("name", ["connector", "decoder_state"])
def test_two_files_of_a_part(folder, refused, name):
    state = {key: each.clone() for key, each in torch.load(folder / f"{name}.pt", weights_only=True).items()}
    save_file(state, folder / f"{name}.safetensors")
    open_checkpoint(folder)
    save_file(halved(state), folder / f"{name}.safetensors")
    refused(rf"{name}\.pt and {name}\.safetensors beside it hold different weights", open_checkpoint, folder)
