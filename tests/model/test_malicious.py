"""Checkpoints made to do harm: each is refused with an error that names the file, runs nothing and takes no memory."""

import io
import json
import os
import pickle
import resource
import shutil
import struct
import tarfile
import zipfile
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pisco_index import Checkpoint, CheckpointError, Compressor, Decoder
from pisco_index.model.prompt import prompt_text

HUGE = 10**12
TOUCHED = "touched"


class Touches:
    """What a pickle of it runs when it is read."""

    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


@pytest.fixture(autouse=True)
def nothing_is_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    yield
    assert not (tmp_path / TOUCHED).exists()


@pytest.fixture(autouse=True)
def little_memory_is_taken():
    """As much address space as is in use now, and 4 GiB: what asks for more ends with a MemoryError."""
    if not Path("/proc/self/statm").exists():
        yield
        return
    in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (in_use + (4 << 30), before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def edit_json(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def load_everything(folder, **overrides):
    checkpoint = Checkpoint(folder, **overrides)
    assert checkpoint.identity
    assert checkpoint.describe()
    Compressor.load(checkpoint)
    return Decoder.load(checkpoint)


def load_model(folder, model):
    """Only the model, which takes a tenth of the time."""
    checkpoint = Checkpoint(folder)
    if model == "compressor":
        checkpoint.load_compressor(dtype=torch.float32)
    else:
        checkpoint.load_decoder_base(dtype=torch.float32)


def refused(folder, message, load=load_everything, *further):
    with pytest.raises(CheckpointError, match=message) as error:
        load(folder, *further)
    assert "\n" not in str(error.value)
    assert str(folder.parent) in str(error.value)
    assert "Allocator" not in str(error.value)
    assert not isinstance(error.value.__cause__, MemoryError)


def archive(pickled, *records):
    """A file as torch.save writes it, of a pickle and the bytes of storages."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as made:
        made.writestr("archive/data.pkl", pickled)
        made.writestr("archive/version", "3\n")
        for number, record in enumerate(records):
            made.writestr(f"archive/data/{number}", record)
    return file.getvalue()


class Call:
    def __init__(self, function, *arguments):
        self.called = function, arguments

    def __reduce__(self):
        return self.called


def pickled(values):
    """A pickle that refers to storages as torch's do: tuples of (type, length) stand for them."""

    class Pickler(pickle._Pickler):
        def persistent_id(self, value):
            if isinstance(value, tuple) and len(value) == 2 and value[0] is torch.FloatStorage:
                return ("storage", value[0], "0", "cpu", value[1])
            return None

    file = io.BytesIO()
    Pickler(file, protocol=2).dump(values)
    return file.getvalue()


def tensor(held, shape, steps):
    storage = (torch.FloatStorage, held)
    return Call(torch._utils._rebuild_tensor_v2, storage, 0, shape, steps, False, OrderedDict())


def tarred(content):
    """The oldest of torch's formats."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as made:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            made.addfile(entry, io.BytesIO(content))
    return file.getvalue()


def legacy(values):
    file = io.BytesIO()
    torch.save(values, file, _use_new_zipfile_serialization=False)
    return file.getvalue()


def deflated(size):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as made:
        made.writestr("archive/data.pkl", pickled({"0.bias": tensor(size // 4, (size // 4,), (1,))}))
        made.writestr("archive/version", "3\n")
        made.writestr("archive/data/0", bytes(size))
    return file.getvalue()


# What stands in place of a file of tensors; Touches("touched") is relative to the working folder.
PICKLES = {
    "a bare pickle": lambda: pickle.dumps(Touches(TOUCHED)),
    "a pickle of the oldest protocol": lambda: pickle.dumps(Touches(TOUCHED), protocol=0),
    "an archive": lambda: archive(pickle.dumps(Touches(TOUCHED), protocol=2)),
    "an archive of a newer protocol": lambda: archive(pickle.dumps(Touches(TOUCHED), protocol=5)),
    "deep inside": lambda: archive(pickle.dumps({"a": [{"b": ({"c": Touches(TOUCHED)},)}]}, protocol=2)),
    "as a key": lambda: archive(pickle.dumps({Touches(TOUCHED): 1}, protocol=2)),
    "an instance that is told its state": lambda: archive(b"\x80\x02cos\nsystem\n)\x81}X\x01\0\0\0a" + b"K\1sb."),
    "the legacy format": lambda: legacy({"0.weight": Touches(TOUCHED)}),
    "the legacy format, of tensors": lambda: legacy({"0.weight": torch.zeros(2)}),
    "a tar": lambda: tarred(pickle.dumps(Touches(TOUCHED), protocol=2)),
    "a TorchScript archive": lambda: archive(b"", b"").replace(b"data.pkl", b"code.pkl"),
    "two pickles in one archive": lambda: archive(pickle.dumps({}, protocol=2)) + archive(b"x"),
    "an array of bytes of any length": lambda: archive(pickle.dumps({"0.bias": Call(bytearray, HUGE)}, protocol=2)),
    "a tensor that is made": lambda: archive(pickle.dumps({"0.bias": Call(torch.Tensor, HUGE)}, protocol=2)),
    "a storage longer than its bytes": lambda: archive(pickled({"0.bias": tensor(HUGE, (HUGE,), (1,))}), bytes(16)),
    "a tensor longer than its storage": lambda: archive(pickled({"0.bias": tensor(4, (HUGE,), (1,))}), bytes(16)),
    "one number that fills a tensor": lambda: archive(pickled({"0.bias": tensor(4, (HUGE,), (0,))}), bytes(16)),
    "a storage of negative length": lambda: archive(pickled({"0.bias": tensor(-4, (4,), (1,))}), bytes(16)),
    "a tensor on no device": lambda: archive(
        pickled({"0.bias": Call(torch._utils._rebuild_meta_tensor_no_storage, torch.float32, (HUGE,), (1,), False)})
    ),
    "a bomb": lambda: deflated(64 << 20),
}


@pytest.mark.parametrize("file", ["connector.pt", "decoder_state.pt"])
@pytest.mark.parametrize("kind", PICKLES)
def test_a_file_of_tensors_is_nothing_else(folder, file, kind):
    (folder / file).write_bytes(PICKLES[kind]())
    refused(folder, f"^{folder / file}: .*(refused, nothing of it was run|damaged|more than the file holds)")


def test_the_pickles_would_run(tmp_path):
    """What the tests above say is not run, is run by those who trust it."""
    torch.load(io.BytesIO(archive(pickle.dumps(Touches(tmp_path / TOUCHED), protocol=2))), weights_only=False)
    (tmp_path / TOUCHED).unlink()


@pytest.mark.parametrize(
    "values",
    [
        torch.zeros(128, dtype=torch.complex64),
        torch.zeros(128, dtype=torch.int64),
        torch.zeros(128, dtype=torch.bool),
        torch.zeros(128).to(torch.float8_e4m3fn),
        torch.full((128,), float("nan")),
        torch.full((128,), float("-inf")),
    ],
    ids=lambda values: f"{values.dtype} {values.flatten()[0]}",
)
def test_numbers_are_floating_and_finite(folder, values):
    path = folder / "connector.pt"
    torch.save(torch.load(path, weights_only=True) | {"0.bias": values}, path)
    refused(folder, f"^{path}: (0.bias (holds|has values that are not finite)|refused)")


@pytest.mark.parametrize("model", ["compressor", "base_decoder"])
class TestWeights:
    @pytest.mark.parametrize("name", ["pytorch_model.bin", "pytorch_model.bin.index.json"])
    def test_pickles_are_not_read(self, folder, model, name):
        (folder / model / "model.safetensors").unlink()
        (folder / model / "pytorch_model.bin").write_bytes(archive(pickle.dumps(Touches(TOUCHED), protocol=2)))
        if name.endswith("json"):
            (folder / model / "pytorch_model.bin").rename(folder / model / "part.bin")
            (folder / model / name).write_text(json.dumps({"metadata": {}, "weight_map": {"a": "part.bin"}}))
        refused(folder, f"^{folder / model}: cannot be loaded", load_model, model)

    @pytest.mark.parametrize("file", ["adapter_model.bin", "part.bin"])
    def test_a_configuration_names_no_weights(self, folder, model, file):
        (folder / model / file).write_bytes(archive(pickle.dumps(Touches(TOUCHED), protocol=2)))
        edit_json(folder / model / "config.json", transformers_weights=file)
        refused(folder, f"^{folder / model}: .*transformers_weights", load_model, model)

    def test_adapters_are_not_laid_over_a_model(self, folder, model):
        (folder / model / "adapter_model.bin").write_bytes(archive(pickle.dumps(Touches(TOUCHED), protocol=2)))
        adapter = {"peft_type": "LORA", "base_model_name_or_path": "/etc", "target_modules": ["q_proj"], "r": 1}
        (folder / model / "adapter_config.json").write_text(json.dumps(adapter))
        refused(folder, f"^{folder / model}: .*adapter_config.json", load_model, model)

    @pytest.mark.parametrize("method", ["fp8", "mxfp4", "bitsandbytes", "gptq", "torchao"])
    def test_a_configuration_asks_for_no_library(self, folder, model, method):
        edit_json(folder / model / "config.json", quantization_config={"quant_method": method})
        refused(folder, f"^{folder / model}: cannot be loaded.*quantization_config", load_model, model)

    @pytest.mark.parametrize(
        "shard", ["../part.safetensors", "/etc/passwd", "sub/../../part.safetensors", "a\0b", "", "..", 3, None, ["a"]]
    )
    def test_shards_lie_in_the_folder(self, folder, model, shard):
        weights = folder / model / "model.safetensors"
        state = load_file(weights)
        shutil.move(weights, folder / "part.safetensors")
        index = {"metadata": {}, "weight_map": dict.fromkeys(state, shard)}
        (folder / model / "model.safetensors.index.json").write_text(json.dumps(index))
        refused(
            folder,
            rf"^{folder / model}/model.safetensors.index.json: names .*, which is no file beside it",
            load_model,
            model,
        )

    @pytest.mark.parametrize(
        "index", ["[]", "{}", '{"weight_map": []}', '{"weight_map": {}, "metadata": 1}', "[" * 10**5]
    )
    def test_an_index_is_one(self, folder, model, index):
        (folder / model / "model.safetensors").unlink()
        (folder / model / "model.safetensors.index.json").write_text(index)
        refused(folder, f"^{folder / model}", load_model, model)

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
        ids=str,
    )
    def test_a_header_that_lies(self, folder, model, header):
        if isinstance(header, int):
            content = struct.pack("<Q", header) + b"{}"
        else:
            text = header if isinstance(header, bytes) else json.dumps(header).encode()
            content = struct.pack("<Q", len(text)) + text + bytes(16)
        (folder / model / "model.safetensors").write_bytes(content)
        refused(folder, f"^{folder / model}: cannot be loaded", load_model, model)

    @pytest.mark.parametrize("kind", [torch.int64, torch.int8, torch.complex64, torch.bool, torch.float8_e5m2])
    def test_weights_are_floating_numbers(self, folder, model, kind):
        path = folder / model / "model.safetensors"
        state = load_file(path)
        state["model.norm.weight"] = torch.zeros(state["model.norm.weight"].shape).to(kind)
        save_file(state, path, {"format": "pt"})
        refused(folder, f"^{path}: model.norm.weight holds", load_model, model)

    @pytest.mark.parametrize("value", ["nan", "inf"])
    def test_weights_are_finite(self, folder, model, value):
        path = folder / model / "model.safetensors"
        state = load_file(path)
        state["model.layers.1.mlp.up_proj.weight"][3, 2] = float(value)
        save_file(state, path, {"format": "pt"})
        refused(
            folder,
            f"^{folder / model}: .*layers.1.mlp.up_proj.weight has values that are not finite",
            load_model,
            model,
        )

    @pytest.mark.parametrize(
        "key",
        ["hidden_size", "vocab_size", "intermediate_size", "head_dim", "num_attention_heads", "num_key_value_heads"],
    )
    @pytest.mark.parametrize("value", [HUGE, 2**24, 10**30, 0, -1, -HUGE, 1.5, "x", [], None, True])
    def test_sizes_that_the_weights_have_not(self, folder, model, key, value):
        edit_json(folder / model / "config.json", **{key: value})
        refused(folder, f"^{folder / model}", load_model, model)

    @pytest.mark.parametrize("key", ["num_hidden_layers", "num_labels", "num_experts", "max_window_layers"])
    @pytest.mark.parametrize("value", [HUGE, 10**6, 10**30])
    def test_counts_that_no_model_has(self, folder, model, key, value):
        edit_json(folder / model / "config.json", **{key: value})
        refused(folder, f"^{folder / model}/config.json: no model configuration has {key}", load_model, model)

    @pytest.mark.parametrize("value", [9_999, 0, -1])
    def test_layers_that_the_weights_have_not(self, folder, model, value):
        edit_json(folder / model / "config.json", num_hidden_layers=value, layer_types=None)
        refused(folder, f"^{folder / model}: (its config.json says {value} layers|no model configuration|cannot)")

    def test_tables_that_no_weight_bounds(self, folder, model, make_base):
        """GPT-2 keeps a mask of as many rows and columns as it has positions."""
        shutil.rmtree(folder / model)
        shutil.copytree(make_base("gpt2"), folder / model)
        edit_json(folder / model / "config.json", n_positions=10**8)
        refused(
            folder, f"^{folder / model}: its config.json asks for .* numbers, and its files hold", load_model, model
        )

    @pytest.mark.parametrize("content", ["[" * 10**6, '{"a":' * 10**6, " " * (17 << 20), '{"a": NaN', "null", "[1]"])
    def test_settings_that_are_none(self, folder, model, content):
        (folder / model / "config.json").write_text(content)
        refused(folder, f"^{folder / model}/config.json: ", load_model, model)


class TestConfig:
    @pytest.mark.parametrize("content", ["[" * 10**6, '{"a":' * 10**6, " " * (17 << 20), '"' + "x" * 100, "1" * 5000])
    def test_it_is_small_and_flat(self, folder, content):
        (folder / "config.json").write_text(content)
        refused(folder, f"^{folder}/config.json: ")

    @pytest.mark.parametrize(
        ("key", "value"), [("lora_r_decoder", HUGE), ("compressor_mlp_hidden_dim", HUGE), ("compr_rate", -1)]
    )
    def test_sizes(self, folder, key, value):
        edit_json(folder / "config.json", **{key: value})
        refused(folder, key)


class TestPlaces:
    """A checkpoint reads what lies in it, and a base decoder that is a folder of its own."""

    @pytest.mark.parametrize(
        "name",
        ["../other", "base_decoder/../../other", "../../../../../../etc", "..", "~/../other", "./../other"],
    )
    def test_the_way_up_is_closed_to_it(self, folder, name):
        shutil.move(folder / "base_decoder", folder.parent / "other")
        edit_json(folder / "config.json", decoder_model_name=name)
        refused(folder, rf"^{folder}/config.json: decoder_model_name '.*' leads out of the checkpoint's folder")

    def test_the_way_up_is_open_to_its_user(self, folder):
        shutil.move(folder / "base_decoder", folder.parent / "other")
        load_everything(folder, decoder_base="../checkpoint/../other")

    @pytest.mark.parametrize("name", ["/etc", "/etc/passwd", "/dev", "a\0b", "x" * 5000, "~nobody-at-all/x", "", "\n"])
    def test_a_name_that_is_no_model(self, folder, name):
        edit_json(folder / "config.json", decoder_model_name=name)
        with pytest.raises(CheckpointError):
            load_everything(folder)

    @pytest.mark.parametrize(
        "name",
        [
            "config.json",
            "connector.pt",
            "decoder_state.pt",
            "compressor",
            "compressor/config.json",
            "compressor/model.safetensors",
            "compressor_tokenizer/tokenizer.json",
            "decoder_tokenizer/chat_template.jinja",
            "base_decoder",
            "base_decoder/model.safetensors",
        ],
    )
    def test_links_do_not_lead_out(self, folder, name):
        outside = folder.parent / "outside"
        shutil.move(folder / name, outside)
        (folder / name).symlink_to(outside)
        refused(folder, "leads out of|a link out of")

    def test_links_within_it_lead_on(self, folder):
        shutil.move(folder / "connector.pt", folder / "compressor" / "connector.pt")
        (folder / "connector.pt").symlink_to("compressor/connector.pt")
        load_everything(folder)

    def test_a_link_to_the_whole_of_it_leads_on(self, folder):
        (folder.parent / "latest").symlink_to(folder)
        load_everything(folder.parent / "latest")

    def test_the_cache_of_the_hub_is_made_of_links(self, folder):
        blobs = folder.parent / "models--a--b" / "blobs"
        blobs.mkdir(parents=True)
        snapshot = Path(shutil.move(folder, blobs.parent / "snapshots" / "0123"))
        for number, path in enumerate(sorted(path for path in snapshot.rglob("*") if path.is_file())):
            blob = Path(shutil.move(path, blobs / str(number)))
            path.symlink_to(os.path.relpath(blob, path.parent))
        load_everything(snapshot)

    @pytest.mark.parametrize("name", ["compressor/more.safetensors", "compressor_tokenizer/vocab.json"])
    def test_devices_and_pipes_are_not_read(self, folder, name):
        os.mkfifo(folder / name)
        refused(folder, f"^{folder / name}: neither a file nor a folder")


class TestTokenizers:
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
    def test_code_and_other_files_are_left_alone(self, folder, name, settings):
        """Refused, or passed over."""
        (folder / name / "code.py").write_text(f"open({TOUCHED!r}, 'w')\nclass Tokenizer: pass\n")
        before = Checkpoint(folder).compressor_tokenizer("a text")["input_ids"]
        edit_json(folder / name / "tokenizer_config.json", **settings)
        with suppress(CheckpointError):
            checkpoint = Checkpoint(folder)
            assert checkpoint.compressor_tokenizer("a text")["input_ids"] == before
            assert checkpoint.decoder_tokenizer is not None

    @pytest.mark.parametrize("model", ["compressor", "base_decoder"])
    def test_code_for_generation_is_not_run(self, folder, model):
        (folder / model / "custom_generate").mkdir()
        (folder / model / "custom_generate" / "generate.py").write_text(f"open({TOUCHED!r}, 'w')\n")
        edit_json(folder / model / "generation_config.json", custom_generate=str(folder / model), auto_map={"a": "b.c"})
        load_everything(folder)

    @pytest.mark.parametrize("name", ["compressor_tokenizer", "decoder_tokenizer"])
    def test_an_id_beyond_the_embeddings(self, folder, name):
        path = folder / name / "tokenizer.json"
        values = json.loads(path.read_text())
        values["model"]["vocab"]["zzzz"] = 4_000_000_000
        path.write_text(json.dumps(values))
        refused(folder, "embedding rows for a tokenizer of 4000000001 tokens")


TEMPLATES = {
    "classes": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "globals": "{{ raise_exception.__globals__['os'].system('touch touched') }}",
    "code of a function": "{{ namespace.__init__.__globals__.os.system('touch touched') }}",
    "by format": "{{ '{0.__class__.__init__.__globals__}'.format(messages) }}{{ (messages|first)['x'].y }}",
    "a file": "{% include '/etc/passwd' %}",
    "an import": "{% import 'os' as os %}{{ os.system('touch touched') }}",
    "a change of what it is given": "{{ messages.append(1) }}",
    "a range without end": "{% for i in range(1000000000000) %}x{% endfor %}",
    "no template": "{% for %}",
    "a text of any length": "{{ 'x' * 1000000000000 }}",
    "a division by zero": "{{ 1 / 0 }}",
    "no end of macros": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "no end of brackets": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
}


@pytest.mark.parametrize("case", TEMPLATES)
def test_a_chat_template_stays_in_its_sandbox(folder, case):
    (folder / "decoder_tokenizer" / "chat_template.jinja").write_text(TEMPLATES[case])
    tokenizer = Checkpoint(folder).decoder_tokenizer
    with pytest.raises(CheckpointError, match=f"^{folder}/decoder_tokenizer: the chat template fails") as error:
        prompt_text(tokenizer, "Who?", [1])
    assert "\n" not in str(error.value)


def test_a_chat_template_finds_nothing_by_filters(folder):
    template = "{{ ''|attr('__class__')|attr('__mro__') }}{{ ''|map(attribute='__class__')|list }}{{ self._x }}"
    (folder / "decoder_tokenizer" / "chat_template.jinja").write_text(template)
    assert prompt_text(Checkpoint(folder).decoder_tokenizer, "Who?", [1]) == "[]"


def test_a_chat_template_that_is_a_choice_without_a_default(folder):
    tokenizer = Checkpoint(folder).decoder_tokenizer
    tokenizer.chat_template = {"a": "x", "b": "y"}
    with pytest.raises(CheckpointError, match="the chat template fails"):
        prompt_text(tokenizer, "Who?", [1])


def test_a_checkpoint_that_is_well_is_not_hurt(folder):
    decoder = load_everything(folder)
    assert decoder.prompt_ids("Who?", [1])
