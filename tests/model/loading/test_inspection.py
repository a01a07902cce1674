"""Model folders made to do harm: each is refused by name before transformers allocates or reads anything for it."""

import json
import os
import pickle
import shutil
import struct
import zipfile

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from pisco_index.model.loading.models import load_model

HUGE = 10**12


def edit_json(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def edit_weights(path, change):
    state = load_file(path)
    change(state)
    save_file(state, path, {"format": "pt"})


class Touches:
    """An object whose pickle creates the file ``touched`` when it is read."""

    def __reduce__(self):
        return os.system, ("touch touched",)


def write_pickle(path):
    with zipfile.ZipFile(path, "w") as made:
        made.writestr("archive/data.pkl", pickle.dumps(Touches(), protocol=2))
        made.writestr("archive/version", "3\n")


@pytest.fixture
def model(make_base, tmp_path):
    """A model folder that a test may change."""
    return shutil.copytree(make_base("qwen3"), tmp_path / "model")


@pytest.fixture
def refused_model(model, refused):
    """A function that checks that the folder is refused."""
    return lambda message: refused(message, load_model, AutoModelForCausalLM, str(model), torch.float32)


class TestPickles:
    def test_they_are_not_read(self, model, refused_model):
        (model / "model.safetensors").unlink()
        write_pickle(model / "pytorch_model.bin")
        refused_model(f"^{model}/pytorch_model.bin: refused, nothing of it was run")
        (model / "pytorch_model.bin").rename(model / "part.bin")
        index = {"metadata": {}, "weight_map": {"a": "part.bin"}}
        (model / "pytorch_model.bin.index.json").write_text(json.dumps(index))
        refused_model(f"^{model}/part.bin: refused, nothing of it was run")

    @pytest.mark.parametrize("file", ["adapter_model.bin", "part.bin"])
    def test_a_configuration_names_no_weights(self, model, refused_model, file):
        write_pickle(model / file)
        edit_json(model / "config.json", transformers_weights=file)
        refused_model(f"^{model}: .*transformers_weights")

    def test_adapters_are_not_merged(self, model, refused_model):
        write_pickle(model / "adapter_model.bin")
        adapter = {"peft_type": "LORA", "base_model_name_or_path": "/etc", "target_modules": ["q_proj"], "r": 1}
        (model / "adapter_config.json").write_text(json.dumps(adapter))
        refused_model(f"^{model}: .*adapter_config.json")


class TestWeights:
    def test_shards_lie_in_the_folder(self, model, refused_model):
        weights = model / "model.safetensors"
        state = load_file(weights)
        shutil.move(weights, model.parent / "part.safetensors")
        for shard in (
            "../part.safetensors",
            "/etc/passwd",
            "a/../../part.safetensors",
            "a\0b",
            "",
            "..",
            3,
            None,
            ["a"],
        ):
            index = {"metadata": {}, "weight_map": dict.fromkeys(state, shard)}
            (model / "model.safetensors.index.json").write_text(json.dumps(index))
            refused_model(rf"^{model}/model.safetensors.index.json: names .*, which is no file beside it")

    def test_an_index_names_files(self, model, refused_model):
        (model / "model.safetensors").unlink()
        for index in ("[]", "{}", '{"weight_map": []}', '{"weight_map": {}, "metadata": 1}', "[" * 10**5):
            (model / "model.safetensors.index.json").write_text(index)
            refused_model(f"^{model}")

    @pytest.mark.parametrize(
        "header",
        [
            {"w": {"dtype": "F32", "shape": [HUGE], "data_offsets": [0, 4 * HUGE]}},
            {"w": {"dtype": "F32", "shape": [HUGE, HUGE], "data_offsets": [0, 16]}},
            {"w": {"dtype": "F32", "shape": [2**32, 2**32], "data_offsets": [0, 0]}},
            {"w": {"dtype": "F32", "shape": [-4], "data_offsets": [0, 16]}},
            {"w": {"dtype": "F32", "shape": [4], "data_offsets": [16, 0]}},
            {"w": {"dtype": "F32", "shape": [4], "data_offsets": [16, 32]}},
            {
                "v": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]},
                "w": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]},
            },
            {"w": {"dtype": "pickle", "shape": [4], "data_offsets": [0, 16]}},
            b"[" * 50_000,
            2**63,
            10**9,
            0,
        ],
        ids=lambda header: str(header)[:60],
    )
    def test_a_header_that_lies(self, model, refused_model, header):
        if isinstance(header, int):
            content = struct.pack("<Q", header) + b"{}"
        else:
            text = header if isinstance(header, bytes) else json.dumps(header).encode()
            content = struct.pack("<Q", len(text)) + text + bytes(16)
        (model / "model.safetensors").write_bytes(content)
        refused_model(f"^{model}: cannot be loaded")

    @pytest.mark.parametrize("kind", [torch.int64, torch.int8, torch.complex64, torch.bool, torch.float8_e5m2])
    def test_weights_are_floating_point_numbers(self, model, refused_model, kind):
        name = "model.norm.weight"
        edit_weights(model / "model.safetensors", lambda state: state.update({name: torch.zeros(32).to(kind)}))
        refused_model(f"^{model}/model.safetensors: {name} holds")

    @pytest.mark.parametrize("value", ["nan", "inf"])
    def test_weights_are_finite(self, model, refused_model, value):
        name = "model.layers.1.mlp.up_proj.weight"
        edit_weights(model / "model.safetensors", lambda state: state[name][3].fill_(float(value)))
        refused_model(f"^{model}: {name} has values that are not finite")


class TestSizes:
    @pytest.mark.parametrize(
        "key",
        ["hidden_size", "vocab_size", "intermediate_size", "head_dim", "num_attention_heads", "num_key_value_heads"],
    )
    def test_sizes_that_the_weights_do_not_have(self, model, refused_model, key):
        for value in (HUGE, 2**24, 10**30, 0, -1, -HUGE, 1.5, "x", [], None, True):
            edit_json(model / "config.json", **{key: value})
            refused_model(f"^{model}")

    @pytest.mark.parametrize("key", ["num_hidden_layers", "num_labels", "num_experts", "max_window_layers"])
    def test_counts_that_no_model_has(self, model, refused_model, key):
        for value in (HUGE, 10**6, 10**30):
            edit_json(model / "config.json", **{key: value})
            refused_model(f"^{model}/config.json: no model configuration has {key}")

    @pytest.mark.parametrize("value", [9_999, 0, -1])
    def test_layers_that_the_weights_do_not_have(self, model, refused_model, value):
        edit_json(model / "config.json", num_hidden_layers=value, layer_types=None)
        refused_model(f"^{model}: (its config.json says {value} layers|no model configuration|cannot)")

    def test_tables_that_no_weight_bounds(self, make_base, model, refused_model):
        """GPT-2 has a mask with as many rows and columns as positions."""
        shutil.copytree(make_base("gpt2"), model, dirs_exist_ok=True)
        edit_json(model / "config.json", n_positions=10**8)
        refused_model(f"^{model}: its config.json asks for .* numbers, and its files hold")


class TestConfiguration:
    @pytest.mark.parametrize("method", ["fp8", "mxfp4", "bitsandbytes", "gptq", "torchao"])
    def test_it_asks_for_no_library(self, model, refused_model, method):
        edit_json(model / "config.json", quantization_config={"quant_method": method})
        refused_model(f"^{model}: cannot be loaded.*quantization_config")

    @pytest.mark.parametrize(
        "content",
        ["[" * 10**6, '{"a":' * 10**6, " " * (17 << 20), '{"a": NaN', "null", "[1]"],
        ids=["deep list", "deep object", "large", "cut off", "null", "list"],
    )
    def test_it_is_a_json_object(self, model, refused_model, content):
        (model / "config.json").write_text(content)
        refused_model(f"^{model}/config.json: ")
