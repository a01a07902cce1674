"""Loading with transformers: complete, on local files, and without running code from a folder."""

import json
import os
from contextlib import suppress

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

from pisco_index import new_checkpoint, open_checkpoint
from pisco_index.errors import CheckpointError
from pisco_index.model.loading.models import load_model

from ...released import save_shards

TOUCHED = "touched"
SCRIPT = f"""
open({TOUCHED!r}, "w")
from transformers import *
class Config(PretrainedConfig):
    model_type = "evil"
class Model(PreTrainedModel):
    config_class = Config
class Tokenizer(PreTrainedTokenizer):
    pass
"""


def edit_json(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


class TestCodeIsNotRun:
    @pytest.mark.parametrize("model", ["compressor", "base_decoder"])
    @pytest.mark.parametrize("model_type", ["evil", "qwen3"])
    def test_beside_a_model(self, folder, load_everything, refused, model, model_type):
        (folder / model / "code.py").write_text(SCRIPT)
        edit_json(
            folder / model / "config.json",
            model_type=model_type,
            auto_map={"AutoConfig": "code.Config", "AutoModel": "code.Model", "AutoModelForCausalLM": "code.Model"},
        )
        if model_type == "evil":
            refused(f"{folder / model}: ", load_everything, folder)
        else:
            load_everything(folder)

    @pytest.mark.parametrize("name", ["compressor_tokenizer", "decoder_tokenizer"])
    def test_beside_a_tokenizer(self, folder, load_everything, refused, name):
        (folder / name / "code.py").write_text(SCRIPT)
        edit_json(
            folder / name / "tokenizer_config.json",
            tokenizer_class="Tokenizer",
            auto_map={"AutoTokenizer": ["code.Tokenizer", "code.Tokenizer"]},
        )
        refused(f"{folder / name}: no tokenizer could be loaded", load_everything, folder)

    def test_beside_a_base_of_a_new_checkpoint(self, folder, refused, tmp_path):
        base = folder / "base_decoder"
        (base / "code.py").write_text(SCRIPT)
        edit_json(base / "config.json", model_type="evil", auto_map={"AutoConfig": "code.Config"})
        refused("base_decoder", new_checkpoint, tmp_path / "new", base, base)

    @pytest.mark.parametrize("model", ["compressor", "base_decoder"])
    def test_for_generation(self, folder, load_everything, model):
        (folder / model / "custom_generate").mkdir()
        (folder / model / "custom_generate" / "generate.py").write_text(f"open({TOUCHED!r}, 'w')\n")
        edit_json(folder / model / "generation_config.json", custom_generate=str(folder / model), auto_map={"a": "b.c"})
        load_everything(folder)

    @pytest.mark.parametrize("name", ["compressor_tokenizer", "decoder_tokenizer"])
    @pytest.mark.parametrize(
        "settings",
        [
            {"auto_map": {"AutoTokenizer": ["code.Tokenizer", "code.Tokenizer"]}},
            {"tokenizer_class": "code.Tokenizer"},
            {"tokenizer_class": "os.system", "auto_map": {"AutoTokenizer": "code.Tokenizer"}},
            {"tokenizer_file": "../code.py", "vocab_file": "/etc/passwd"},
            {"fast_tokenizer_files": ["../../tokenizer.1.0.json"]},
        ],
        ids=str,
    )
    def test_a_tokenizer_names_no_code_and_no_other_files(self, folder, name, settings):
        """Such settings are refused or ignored."""
        (folder / name / "code.py").write_text(SCRIPT)
        before = open_checkpoint(folder).compressor_tokenizer("a text")["input_ids"]
        edit_json(folder / name / "tokenizer_config.json", **settings)
        with suppress(CheckpointError):
            checkpoint = open_checkpoint(folder)
            assert checkpoint.compressor_tokenizer("a text")["input_ids"] == before
            assert checkpoint.decoder_tokenizer is not None


@pytest.mark.parametrize("shards", [1, 3])
def test_weights_in_bin_files_are_the_same(folder, load_everything, refused, shards):
    model = folder / "base_decoder"
    expected = open_checkpoint(folder).load_decoder(dtype=torch.float32).state_dict()
    state = load_file(model / "model.safetensors")
    (model / "model.safetensors").unlink()
    save_shards(model, state | {"position_ids": torch.arange(4)}, shards, pickled=True)
    found = open_checkpoint(folder).load_decoder(dtype=torch.float32).state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)
    last = sorted(model.glob("pytorch_model*.bin"))[-1]
    last.write_bytes(last.read_bytes()[:-2000])
    refused(f"{last}: ", load_everything, folder)


@pytest.mark.parametrize("kernel", ["flash_attention_2", "someone/their-kernel"])
@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation", "_attn_implementation_internal"])
def test_a_folder_does_not_choose_its_kernels(folder, load_everything, key, kernel):
    for model in ("compressor", "base_decoder"):
        edit_json(folder / model / "config.json", **{key: kernel})
    load_everything(folder)
    checkpoint = open_checkpoint(folder)
    assert checkpoint.load_compressor(dtype=torch.float32).config._attn_implementation == "sdpa"


@pytest.mark.parametrize("name", ["compressor_tokenizer", "decoder_tokenizer"])
def test_an_id_beyond_the_embeddings(folder, load_everything, refused, name):
    path = folder / name / "tokenizer.json"
    values = json.loads(path.read_text())
    values["model"]["vocab"]["zzzz"] = 4_000_000_000
    path.write_text(json.dumps(values))
    refused("embedding rows for a tokenizer of 4000000001 tokens", load_everything, folder)


def test_weights_left_random_are_an_error(tiny_folder):
    with pytest.raises(CheckpointError, match=r"compressor: 1 weights are missing.*score"):
        load_model(AutoModelForSequenceClassification, str(tiny_folder / "compressor"), torch.float32)


def test_pipes_are_not_read(folder, load_everything, refused):
    for name in ("compressor/more.safetensors", "compressor_tokenizer/vocab.json"):
        os.mkfifo(folder / name)
        refused(f"^{folder / name}: neither a file nor a folder", load_everything, folder)
        (folder / name).unlink()
