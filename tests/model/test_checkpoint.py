import json
import pickle
import shutil
import socket
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification

from pisco_index import Checkpoint, CheckpointError, Compressor, Decoder, new_checkpoint
from pisco_index.model.families.pisco import load_model


def edit_json(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def drop_key(path, key):
    path.write_text(json.dumps({name: value for name, value in json.loads(path.read_text()).items() if name != key}))


def edit_tensors(path, change):
    state = torch.load(path, weights_only=True)
    change(state)
    torch.save(state, path)


def edit_weights(path, change):
    state = load_file(path)
    change(state)
    save_file(state, path, {"format": "pt"})


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def load_everything(folder, **overrides):
    checkpoint = Checkpoint(folder, **overrides)
    assert checkpoint.identity
    assert checkpoint.describe()
    Compressor.load(checkpoint)
    return Decoder.load(checkpoint)


class TestLayout:
    def test_a_whole_checkpoint_loads(self, folder):
        load_everything(folder)

    def test_a_folder_that_is_not_there_is_named(self, tmp_path):
        with pytest.raises(CheckpointError, match="nothing: no such checkpoint folder"):
            Checkpoint(tmp_path / "nothing")

    @pytest.mark.parametrize(
        "name",
        ["config.json", "connector.pt", "decoder_state.pt", "compressor", "compressor_tokenizer", "decoder_tokenizer"],
    )
    def test_each_part_must_be_there(self, folder, name):
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        with pytest.raises(CheckpointError, match=f"^{folder}: .*missing {name}"):
            Checkpoint(folder)

    def test_an_empty_folder_lacks_everything(self, tmp_path):
        with pytest.raises(CheckpointError, match=r"missing config.json, .*decoder_tokenizer/.*Found: nothing"):
            Checkpoint(tmp_path)


class TestConfig:
    @pytest.mark.parametrize("content", ["{", "[]", "3", '"PISCO"', "", "\xff"])
    def test_it_is_a_json_object(self, folder, content):
        (folder / "config.json").write_bytes(content.encode("latin-1"))
        with pytest.raises(CheckpointError, match=rf"^{folder}/config.json: "):
            Checkpoint(folder)

    @pytest.mark.parametrize(
        "key", ["decoder_model_name", "compressor_model_name", "compr_rate", "compressor_mlp_hidden_dim"]
    )
    def test_each_key_must_be_there(self, folder, key):
        drop_key(folder / "config.json", key)
        with pytest.raises(CheckpointError, match=rf"^{folder}/config.json: {key}: "):
            Checkpoint(folder)

    @pytest.mark.parametrize(
        ("key", "value"),
        [
            ("compr_rate", "many"),
            ("compr_rate", 0),
            ("compr_rate", -16),
            ("decoder_model_name", 7),
            ("compr_rate", None),
        ],
    )
    def test_a_value_of_another_kind_is_named(self, folder, key, value):
        edit_json(folder / "config.json", **{key: value})
        with pytest.raises(CheckpointError, match=rf"^{folder}/config.json: {key}: "):
            Checkpoint(folder)

    def test_another_family_is_named(self, folder):
        edit_json(folder / "config.json", model_type="COCOM")
        with pytest.raises(CheckpointError, match=rf"^{folder}/config.json: model_type is 'COCOM'"):
            Checkpoint(folder)


# What is done to a good checkpoint, the file that the message must name, and what it must say.
DAMAGE = {
    "connector with a tensor too many": (
        lambda f: edit_tensors(f / "connector.pt", lambda s: s.update({"4.weight": torch.zeros(1)})),
        ("connector.pt", "4.weight"),
    ),
    "connector without a tensor": (
        lambda f: edit_tensors(f / "connector.pt", lambda s: s.pop("2.bias")),
        ("connector.pt", "2.bias"),
    ),
    "connector of another compressor": (
        lambda f: edit_tensors(f / "connector.pt", lambda s: s.update({"0.weight": torch.zeros(128, 63)})),
        ("connector.pt", "maps 63 to 128"),
    ),
    "connector of another decoder": (
        lambda f: edit_tensors(
            f / "connector.pt", lambda s: s.update({"2.weight": torch.zeros(95, 128), "2.bias": torch.zeros(95)})
        ),
        ("checkpoint", "gives 95 values, the decoder takes 96"),
    ),
    "connector with NaN": (
        lambda f: edit_tensors(f / "connector.pt", lambda s: s["0.bias"].fill_(float("nan"))),
        ("connector.pt", "0.bias has values that are not finite"),
    ),
    "connector that is a list": (
        lambda f: torch.save([torch.zeros(2)], f / "connector.pt"),
        ("connector.pt", "holds list"),
    ),
    "connector with a number": (
        lambda f: edit_tensors(f / "connector.pt", lambda s: s.update({"0.bias": 3})),
        ("connector.pt", "'0.bias' is no named tensor"),
    ),
    "connector cut short": (lambda f: cut(f / "connector.pt"), ("connector.pt", "damaged")),
    "connector of no bytes": (lambda f: (f / "connector.pt").write_bytes(b""), ("connector.pt", "damaged")),
    "connector of text": (lambda f: (f / "connector.pt").write_text("<html>"), ("connector.pt", "damaged")),
    "decoder state cut short": (lambda f: cut(f / "decoder_state.pt"), ("decoder_state.pt", "damaged")),
    "decoder state with a stranger": (
        lambda f: edit_tensors(f / "decoder_state.pt", lambda s: s.update({"stranger": torch.zeros(1)})),
        ("decoder_state.pt", "no place.*stranger"),
    ),
    "decoder state without embeddings": (
        lambda f: edit_tensors(
            f / "decoder_state.pt", lambda s: s.pop("model.embed_tokens.modules_to_save.default.weight")
        ),
        ("decoder_state.pt", "lacks model.embed_tokens"),
    ),
    "decoder state with short embeddings": (
        lambda f: edit_tensors(
            f / "decoder_state.pt",
            lambda s: s.update({"model.embed_tokens.modules_to_save.default.weight": torch.zeros(9, 96)}),
        ),
        ("decoder_state.pt", "9 embedding rows"),
    ),
    "LoRA A without B": (
        lambda f: edit_tensors(
            f / "decoder_state.pt", lambda s: s.pop("model.layers.0.mlp.up_proj.lora_B.default.weight")
        ),
        ("decoder_state.pt", "mlp.up_proj.lora_A.default.weight has no partner"),
    ),
    "LoRA B without A": (
        lambda f: edit_tensors(
            f / "decoder_state.pt", lambda s: s.pop("model.layers.0.mlp.up_proj.lora_A.default.weight")
        ),
        ("decoder_state.pt", "no place.*mlp.up_proj.lora_B"),
    ),
    "LoRA pair of another rank": (
        lambda f: edit_tensors(
            f / "decoder_state.pt",
            lambda s: s.update({"model.layers.0.mlp.up_proj.lora_A.default.weight": torch.zeros(5, 96)}),
        ),
        ("decoder_state.pt", r"mlp.up_proj is \(192, 96\)"),
    ),
    "LoRA pair of vectors": (
        lambda f: edit_tensors(
            f / "decoder_state.pt",
            lambda s: s.update({"model.layers.0.mlp.up_proj.lora_A.default.weight": torch.zeros(4)}),
        ),
        ("decoder_state.pt", r"\(4,\)"),
    ),
    "LoRA on no Linear": (
        lambda f: edit_tensors(
            f / "decoder_state.pt",
            lambda s: s.update(
                {f"model.norm.lora_{ab}.default.weight": torch.zeros(4, 4) for ab in "AB"},
            ),
        ),
        ("decoder_state.pt", "model.norm.*no Linear"),
    ),
    "compressor without a weight": (
        lambda f: edit_weights(f / "compressor" / "model.safetensors", lambda s: s.pop("model.norm.weight")),
        ("compressor", "1 weights are missing.*norm.weight"),
    ),
    "compressor with a weight of another shape": (
        lambda f: edit_weights(
            f / "compressor" / "model.safetensors", lambda s: s.update({"model.norm.weight": torch.ones(3)})
        ),
        ("compressor", "norm.weight"),
    ),
    "compressor cut short": (lambda f: cut(f / "compressor" / "model.safetensors"), ("compressor", "cannot be loaded")),
    "compressor without weights": (
        lambda f: (f / "compressor" / "model.safetensors").unlink(),
        ("compressor", "cannot be loaded"),
    ),
    "compressor's configuration of text": (
        lambda f: (f / "compressor" / "config.json").write_text("{"),
        ("compressor/config.json", "not valid JSON"),
    ),
    "compressor's configuration of a wrong kind": (
        lambda f: edit_json(f / "compressor" / "config.json", hidden_size="wide"),
        ("compressor", "configuration"),
    ),
    "compressor's configuration without an architecture": (
        lambda f: drop_key(f / "compressor" / "config.json", "model_type"),
        ("compressor", "configuration"),
    ),
    "compressor with too few rows": (
        lambda f: (
            edit_weights(
                f / "compressor" / "model.safetensors",
                lambda s: s.update({"model.embed_tokens.weight": s["model.embed_tokens.weight"][:90].clone()}),
            ),
            edit_json(f / "compressor" / "config.json", vocab_size=90, pad_token_id=0, eos_token_id=0),
        ),
        ("compressor", "90 embedding rows"),
    ),
    "compressor that asks for a quantizer": (
        lambda f: edit_json(f / "compressor" / "config.json", quantization_config={"quant_method": "awq", "bits": 4}),
        ("compressor", "cannot be loaded"),
    ),
    "tokenizer that is no JSON": (
        lambda f: (f / "compressor_tokenizer" / "tokenizer.json").write_text("{"),
        ("compressor_tokenizer", "no tokenizer"),
    ),
    "tokenizer without memory token": (
        lambda f: shutil.copytree(f / "base_decoder", f / "compressor_tokenizer", dirs_exist_ok=True),
        ("compressor_tokenizer", "lacks the added tokens <MEM>"),
    ),
    "decoder's tokenizer without its tokens": (
        lambda f: shutil.copytree(f / "base_decoder", f / "decoder_tokenizer", dirs_exist_ok=True),
        ("decoder_tokenizer", "lacks the added tokens <MEM>, <AE>"),
    ),
    "empty tokenizer folder": (
        lambda f: [path.unlink() for path in (f / "decoder_tokenizer").iterdir()],
        ("decoder_tokenizer", "no tokenizer"),
    ),
    "another base decoder": (
        lambda f: edit_json(f / "config.json", decoder_model_name="base_compressor"),
        ("decoder_state.pt", "Is it the base"),
    ),
    "base decoder cut short": (
        lambda f: cut(f / "base_decoder" / "model.safetensors"),
        ("base_decoder", "cannot be loaded"),
    ),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damage_is_refused_by_the_name_of_the_file(folder, case):
    damage, (file, message) = DAMAGE[case]
    damage(folder)
    with pytest.raises(CheckpointError, match=rf"(?s)^{folder.parent}.*{file}: .*({message})"):
        load_everything(folder)


class Creates:
    """An object whose pickle, when it is read, creates a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


class TestNothingIsExecuted:
    @pytest.fixture
    def marker(self, tmp_path):
        yield tmp_path / "executed"
        assert not (tmp_path / "executed").exists()

    @pytest.fixture
    def script(self, marker):
        return (
            f"open({str(marker)!r}, 'w')\n"
            "from transformers import *\n"
            "class Config(PretrainedConfig):\n    model_type = 'evil'\n"
            "class Model(PreTrainedModel):\n    config_class = Config\n"
            "class Tokenizer(PreTrainedTokenizer):\n    pass\n"
        )

    @pytest.mark.parametrize("file", ["connector.pt", "decoder_state.pt"])
    @pytest.mark.parametrize("form", ["pickle", "archive", "beside tensors"])
    def test_pickles_are_refused(self, folder, marker, file, form):
        if form == "pickle":
            (folder / file).write_bytes(pickle.dumps(Creates(marker)))
        elif form == "archive":
            torch.save(Creates(marker), folder / file)
        else:
            state = torch.load(folder / file, weights_only=True)
            torch.save(state | {"more": Creates(marker)}, folder / file)
        with pytest.raises(CheckpointError, match=rf"{folder}/{file}: refused, nothing of it was run"):
            load_everything(folder)

    def test_the_pickles_would_have_been_executed(self, tmp_path):
        """The two tests of refusal mean something."""
        pickle.loads(pickle.dumps(Creates(tmp_path / "created")))
        assert (tmp_path / "created").exists()

    @pytest.mark.parametrize("model", ["compressor", "base_decoder"])
    @pytest.mark.parametrize("model_type", ["evil", "qwen3"])
    def test_code_beside_a_model_is_not_run(self, folder, marker, script, model, model_type):
        (folder / model / "code.py").write_text(script)
        edit_json(
            folder / model / "config.json",
            model_type=model_type,
            auto_map={"AutoConfig": "code.Config", "AutoModel": "code.Model", "AutoModelForCausalLM": "code.Model"},
        )
        if model_type == "evil":
            with pytest.raises(CheckpointError, match=f"{folder / model}: "):
                load_everything(folder)
        else:
            load_everything(folder)

    @pytest.mark.parametrize("name", ["compressor_tokenizer", "decoder_tokenizer"])
    def test_code_beside_a_tokenizer_is_not_run(self, folder, marker, script, name):
        (folder / name / "code.py").write_text(script)
        edit_json(
            folder / name / "tokenizer_config.json",
            tokenizer_class="Tokenizer",
            auto_map={"AutoTokenizer": ["code.Tokenizer", "code.Tokenizer"]},
        )
        with pytest.raises(CheckpointError, match=f"{folder / name}: no tokenizer could be loaded"):
            load_everything(folder)

    def test_code_beside_a_base_is_not_run(self, folder, marker, script, tmp_path):
        (folder / "base_decoder" / "code.py").write_text(script)
        edit_json(folder / "base_decoder" / "config.json", model_type="evil", auto_map={"AutoConfig": "code.Config"})
        with pytest.raises(CheckpointError, match="base_decoder"):
            new_checkpoint(tmp_path / "new", folder / "base_decoder", folder / "base_decoder")

    @pytest.mark.parametrize("model", ["compressor", "base_decoder"])
    def test_pickled_weights_are_refused(self, folder, model):
        weights = folder / model / "model.safetensors"
        torch.save(load_file(weights), folder / model / "pytorch_model.bin")
        weights.unlink()
        with pytest.raises(CheckpointError, match=f"{folder / model}: cannot be loaded"):
            load_everything(folder)

    @pytest.mark.parametrize("kernel", ["flash_attention_2", "someone/their-kernel"])
    @pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation", "_attn_implementation_internal"])
    def test_a_folder_does_not_choose_its_kernels(self, folder, key, kernel):
        for model in ("compressor", "base_decoder"):
            edit_json(folder / model / "config.json", **{key: kernel})
        load_everything(folder)
        checkpoint = Checkpoint(folder)
        assert checkpoint.load_compressor(dtype=torch.float32).config._attn_implementation == "sdpa"


class TestBases:
    @pytest.fixture(autouse=True)
    def network(self, monkeypatch):
        """Attempts to reach the network: none."""
        attempts = []

        def refuse(*address, **_):
            attempts.append(address)
            raise OSError("no network here")

        monkeypatch.setattr(socket, "getaddrinfo", refuse)
        monkeypatch.setattr(socket.socket, "connect", refuse)
        yield
        assert attempts == []

    @pytest.mark.parametrize("name", ["/nowhere/base", "./base", "../base", "~/no-such-base"])
    def test_a_folder_that_is_not_there_is_named_with_the_option_that_names_another(self, folder, name):
        with pytest.raises(CheckpointError, match=rf"'{name}' is no model folder.*--decoder-base"):
            load_everything(folder, decoder_base=name)

    def test_a_hub_name_that_is_not_cached_is_not_downloaded(self, folder):
        with pytest.raises(CheckpointError, match=r"^someone/some-model: neither .*hf download someone/some-model"):
            load_everything(folder, decoder_base="someone/some-model")

    def test_a_hub_name_is_taken_from_the_cache(self, folder, tmp_path, monkeypatch):
        cached = tmp_path / "cache" / "models--someone--some-model"
        shutil.move(folder / "base_decoder", cached / "snapshots" / "abc")
        (cached / "refs").mkdir()
        (cached / "refs" / "main").write_text("abc")
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
        load_everything(folder, decoder_base="someone/some-model")
        new_checkpoint(tmp_path / "new", "someone/some-model", "someone/some-model", mlp_dim=8, lora_rank=1)
        assert Checkpoint(tmp_path / "new").decoder_base == "someone/some-model"

    @pytest.mark.parametrize("name", ["not a name: at all", "a/b/c"])
    def test_what_is_no_name_at_all_is_an_error(self, folder, name):
        with pytest.raises(CheckpointError, match=f"^{name}: neither"):
            load_everything(folder, decoder_base=name)

    def test_bases_are_found_inside_beside_or_below_the_working_folder(self, folder, tmp_path, monkeypatch):
        checkpoint = Checkpoint(folder)
        assert checkpoint.resolve("base_decoder", "decoder") == str(folder / "base_decoder")
        shutil.move(folder / "base_decoder", folder.parent / "base_decoder")
        assert checkpoint.resolve("base_decoder", "decoder") == str(folder.parent / "base_decoder")
        monkeypatch.chdir(folder)
        assert Checkpoint(".").resolve("base_decoder", "decoder") == str(folder.parent / "base_decoder")
        (tmp_path / "elsewhere").mkdir()
        shutil.move(folder.parent / "base_decoder", tmp_path / "elsewhere" / "base_decoder")
        monkeypatch.chdir(tmp_path / "elsewhere")
        assert checkpoint.resolve("base_decoder", "decoder") == str(tmp_path / "elsewhere" / "base_decoder")

    def test_a_checkpoint_moves_with_its_bases(self, folder, tmp_path):
        before = Checkpoint(folder).identity
        moved = Path(shutil.move(folder, tmp_path / "moved"))
        load_everything(moved)
        assert Checkpoint(moved).identity == before

    def test_another_base_can_be_named(self, folder, tmp_path):
        base = shutil.move(folder / "base_decoder", tmp_path / "mine")
        load_everything(folder, decoder_base=str(base))
        described = Checkpoint(folder, decoder_base=str(base), compressor_base="Qwen/Qwen3-0.6B").describe()
        assert (described["decoder"]["base"], described["compressor"]["base"]) == (str(base), "Qwen/Qwen3-0.6B")

    def test_weights_left_random_are_an_error(self, folder):
        with pytest.raises(CheckpointError, match=r"compressor: 1 weights are missing.*score"):
            load_model(AutoModelForSequenceClassification, str(folder / "compressor"), torch.float32)


CHANGES = {
    "compressor": [
        lambda f: edit_weights(f / "compressor" / "model.safetensors", lambda s: s["model.norm.weight"].add_(1)),
        lambda f: edit_json(f / "compressor" / "config.json", rms_norm_eps=1e-3),
    ],
    "connector": [lambda f: edit_tensors(f / "connector.pt", lambda s: s["2.bias"].add_(1))],
    "compressor_tokenizer": [
        lambda f: edit_json(f / "compressor_tokenizer" / "tokenizer.json", truncation=None, version="1.1"),
        lambda f: edit_json(f / "compressor_tokenizer" / "tokenizer_config.json", add_bos_token=True),
    ],
    "rate": [lambda f: edit_json(f / "config.json", compr_rate=8)],
}


@pytest.mark.parametrize(("part", "change"), [(part, change) for part, all_ in CHANGES.items() for change in all_])
def test_identity_changes_with_whatever_determines_memory(folder, part, change):
    before = Checkpoint(folder).identity
    change(folder)
    after = Checkpoint(folder).identity
    assert {name for name in before if before[name] != after[name]} == {part}


def test_identity_does_not_change_with_the_decoder(folder):
    before = Checkpoint(folder).identity
    edit_tensors(folder / "decoder_state.pt", lambda s: s["lm_head.modules_to_save.default.weight"].add_(1))
    edit_json(folder / "decoder_tokenizer" / "tokenizer_config.json", padding_side="right")
    assert Checkpoint(folder, decoder_base="another").identity == before


def test_a_description_gives_names_and_sizes(folder):
    description = Checkpoint(folder).describe()
    assert description["rate"] == 16
    assert description["compressor"]["architecture"] == "Qwen3ForCausalLM"
    assert description["compressor"]["parameters"] == sum(
        parameter.numel() for parameter in Checkpoint(folder).load_compressor(dtype=torch.bfloat16).parameters()
    )
    assert description["connector"] == {"widths": [64, 128, 96], "parameters": 64 * 128 + 128 + 128 * 96 + 96}
    assert (description["decoder"]["lora_rank"], description["decoder"]["lora_linears"]) == (4, 14)
    assert json.dumps(description)
