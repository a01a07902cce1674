"""Checkpoint folders of family pisco: complete and whole, or refused by the name of the file."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pisco_index import new_checkpoint, open_checkpoint
from pisco_index.configs import CompressionConfig
from pisco_index.errors import CheckpointError, ConfigError
from pisco_index.model.identity import identity_as_stored
from pisco_index.model.loading.files import digest_files

from ...released import save_shards
from ..conftest import sent


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


class TestLayout:
    def test_a_whole_checkpoint_loads(self, tiny_folder, load_everything):
        assert load_everything(tiny_folder).prompt_ids("Who?", [1])

    def test_a_missing_folder_is_named(self, tmp_path):
        with pytest.raises(CheckpointError, match="nothing: no such checkpoint folder"):
            open_checkpoint(tmp_path / "nothing")

    @pytest.mark.parametrize(
        "name",
        ["config.json", "connector.pt", "decoder_state.pt", "compressor", "compressor_tokenizer", "decoder_tokenizer"],
    )
    def test_a_missing_part_is_named(self, folder, name):
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        with pytest.raises(CheckpointError, match=f"^{folder}: .*missing {name}"):
            open_checkpoint(folder)

    def test_an_empty_folder_lacks_every_part(self, tmp_path):
        with pytest.raises(CheckpointError, match=r"missing config.json, .*decoder_tokenizer/.*Found: nothing"):
            open_checkpoint(tmp_path)


class TestConfig:
    def test_it_is_a_small_json_object(self, folder):
        deep, large = ["[" * 10**6, '{"a":' * 10**6], [" " * (17 << 20), "1" * 5000]
        for content in ("{", "[]", "3", '"PISCO"', "", "\xff", '"' + "x" * 100, *deep, *large):
            (folder / "config.json").write_bytes(content.encode("latin-1"))
            with pytest.raises(CheckpointError, match=rf"^{folder}/config.json: [^\n]*$"):
                open_checkpoint(folder)

    @pytest.mark.parametrize(
        "key", ["decoder_model_name", "compressor_model_name", "compr_rate", "compressor_mlp_hidden_dim"]
    )
    def test_a_missing_key_is_named(self, folder, key):
        drop_key(folder / "config.json", key)
        with pytest.raises(CheckpointError, match=rf"^{folder}/config.json: {key}: "):
            open_checkpoint(folder)

    @pytest.mark.parametrize(
        ("key", "value"),
        [
            *(("compr_rate", value) for value in ("many", 0, -16, None)),
            ("decoder_model_name", 7),
            ("lora_r_decoder", 10**12),
        ],
    )
    def test_a_wrong_value_is_named(self, folder, key, value):
        edit_json(folder / "config.json", **{key: value})
        with pytest.raises(CheckpointError, match=rf"^{folder}/config.json: {key}: "):
            open_checkpoint(folder)

    def test_another_family_is_named(self, folder):
        edit_json(folder / "config.json", model_type="COCOM")
        with pytest.raises(CheckpointError, match=rf"^{folder}/config.json: model_type is 'COCOM'"):
            open_checkpoint(folder)


# A change to a good checkpoint, the file that the message must name, and a pattern of the message.
DAMAGE = {
    "connector without a tensor": (
        lambda f: edit_tensors(f / "connector.pt", lambda s: s.pop("2.bias")),
        ("connector.pt", "2.bias"),
    ),
    "connector of another compressor": (
        lambda f: edit_tensors(f / "connector.pt", lambda s: s.update({"0.weight": torch.zeros(128, 63)})),
        ("connector.pt", "maps 63 to 128"),
    ),
    "connector of another width than the configuration": (
        lambda f: edit_json(f / "config.json", compressor_mlp_hidden_dim=10**12),
        ("connector.pt", "maps 64 to 128 .*compressor_mlp_hidden_dim are 64 and 1000000000000"),
    ),
    "connector of another decoder": (
        lambda f: edit_tensors(
            f / "connector.pt", lambda s: s.update({"2.weight": torch.zeros(95, 128), "2.bias": torch.zeros(95)})
        ),
        ("checkpoint", "gives 95 values, the decoder takes 96"),
    ),
    "connector cut short": (lambda f: cut(f / "connector.pt"), ("connector.pt", "damaged")),
    "decoder state cut short": (lambda f: cut(f / "decoder_state.pt"), ("decoder_state.pt", "damaged")),
    "decoder state with too few rows": (
        lambda f: edit_tensors(
            f / "decoder_state.pt",
            lambda s: s.update({"model.embed_tokens.modules_to_save.default.weight": torch.zeros(9, 96)}),
        ),
        ("decoder_state.pt", "9 embedding rows"),
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
    "compressor cut short": (
        lambda f: cut(f / "compressor" / "model.safetensors"),
        ("compressor/model.safetensors", "damaged or truncated"),
    ),
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
def test_damage_is_refused_by_the_name_of_the_file(folder, load_everything, case):
    damage, (file, message) = DAMAGE[case]
    damage(folder)
    with pytest.raises(CheckpointError, match=rf"(?s)^{folder.parent}.*{file}: .*({message})"):
        load_everything(folder)


class Creates:
    """An object whose pickle creates a file when it is read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.fault(
    "A checkpoint holds a pickle with code.",
    "It is refused, and nothing is run.",
)
@pytest.mark.parametrize("file", ["connector.pt", "decoder_state.pt"])
def test_pickles_are_refused(folder, tmp_path, load_everything, file):
    torch.save(torch.load(folder / file, weights_only=True) | {"more": Creates(tmp_path / "run")}, folder / file)
    with pytest.raises(CheckpointError, match=rf"{folder}/{file}: refused, nothing of it was run"):
        load_everything(folder)
    assert not (tmp_path / "run").exists()
    torch.load(folder / file, weights_only=False)
    assert (tmp_path / "run").exists()


def edit_tokens(path, change):
    values = json.loads(path.read_text())
    change(values["model"]["vocab"])
    path.write_text(json.dumps(values))


def edit_merges(path, change):
    values = json.loads(path.read_text())
    values["model"]["merges"] = change(values["model"]["merges"])
    path.write_text(json.dumps(values))


def edit_added(path, token, **flags):
    values = json.loads(path.read_text())
    next(each for each in values["added_tokens"] if each["content"] == token).update(flags)
    path.write_text(json.dumps(values))


def swap(values, one, other):
    values[one], values[other] = values[other], values[one]


CHANGES = {
    "compressor": [
        lambda f: edit_weights(f / "compressor" / "model.safetensors", lambda s: s["model.norm.weight"].add_(1)),
    ],
    "compressor_config": [
        lambda f: edit_json(f / "compressor" / "config.json", rms_norm_eps=1e-3),
    ],
    "connector": [lambda f: edit_tensors(f / "connector.pt", lambda s: s["2.bias"].add_(1))],
    "compressor_tokenizer": [
        lambda f: edit_json(f / "compressor_tokenizer" / "tokenizer.json", normalizer={"type": "Lowercase"}),
        lambda f: edit_tokens(f / "compressor_tokenizer" / "tokenizer.json", lambda vocab: swap(vocab, "t", "e")),
        lambda f: edit_added(f / "compressor_tokenizer" / "tokenizer.json", "<|im_end|>", lstrip=True),
        lambda f: edit_added(f / "compressor_tokenizer" / "tokenizer.json", "<|im_end|>", single_word=True),
        lambda f: edit_merges(f / "compressor_tokenizer" / "tokenizer.json", lambda merges: merges[:-1]),
    ],
    "rate": [lambda f: edit_json(f / "config.json", compr_rate=8)],
}


def save_in_shards(folder, *, pickled=False, change=lambda state: state):
    state = change(load_file(folder / "model.safetensors"))
    (folder / "model.safetensors").unlink()
    save_shards(folder, state, 2, pickled=pickled)


def rewrite_tokenizer(path):
    values = json.loads(path.read_text())
    # Older versions write a merge as one string, and leave out what is false.
    values["model"]["merges"] = [" ".join(pair) for pair in values["model"]["merges"]]
    values["model"] = {key: value for key, value in values["model"].items() if value is not False}
    path.write_text(json.dumps(dict(reversed(values.items()))))


def write_older_config(path):
    values = json.loads(path.read_text())
    rope = values.pop("rope_parameters")
    values = {key: value for key, value in values.items() if key not in ("layer_types", "dtype", "attention_bias")}
    older = {"torch_dtype": "float32", "rope_theta": rope["rope_theta"], "rope_scaling": None, "use_cache": False}
    path.write_text(json.dumps(values | older | {"transformers_version": "4.51.0", "trained_by": "me"}))


def without_head(state):
    return {name.removeprefix("model."): each for name, each in state.items() if not name.startswith("lm_head")}


SAVED_AGAIN = {
    "in shards": lambda f: save_in_shards(f / "compressor"),
    "as pickles": lambda f: save_in_shards(f / "compressor", pickled=True),
    "in another dtype": lambda f: save_in_shards(
        f / "compressor", change=lambda s: {k: v.float() for k, v in s.items()}
    ),
    "without a head": lambda f: save_in_shards(f / "compressor", change=without_head),
    "with metadata": lambda f: save_file(
        load_file(f / "compressor" / "model.safetensors"), f / "compressor" / "model.safetensors", {"step": "9"}
    ),
    "by an older transformers": lambda f: write_older_config(f / "compressor" / "config.json"),
    "a tokenizer by an older version": lambda f: rewrite_tokenizer(f / "compressor_tokenizer" / "tokenizer.json"),
    "settings of a tokenizer": lambda f: edit_json(
        f / "compressor_tokenizer" / "tokenizer_config.json", padding_side="right", model_max_length=77
    ),
    "other files": lambda f: [(f / "compressor" / name).write_text("{}") for name in ("README.md", "trainer.json")],
}


class TestIdentity:
    @pytest.mark.parametrize("case", SAVED_AGAIN)
    def test_it_is_the_same_after_saving_again(self, folder, case):
        before = open_checkpoint(folder).identity
        SAVED_AGAIN[case](folder)
        after = open_checkpoint(folder)
        assert identity_as_stored(after, before) == before
        after.load_compressor(dtype=torch.float32)

    def test_an_older_store_has_digests_of_files(self, folder):
        """Stores of versions that hashed files are updated with the checkpoint that they were built with."""
        checkpoint = open_checkpoint(folder)
        stored = dict(checkpoint.file_identity)
        assert stored.keys() == {"compressor", "connector", "compressor_tokenizer", "rate"}
        weights, names = folder / "compressor", ("config.json", "model.safetensors")
        assert stored["compressor"] == digest_files([weights / name for name in names])
        assert identity_as_stored(checkpoint, stored) == stored
        edit_weights(weights / "model.safetensors", lambda s: s["model.norm.weight"].add_(1))
        changed = identity_as_stored(open_checkpoint(folder), stored)
        assert {name for name in stored if changed[name] != stored[name]} == {"compressor"}

    @pytest.mark.parametrize(("part", "change"), [(part, change) for part, all_ in CHANGES.items() for change in all_])
    def test_it_changes_with_everything_that_determines_memory(self, folder, part, change):
        before = open_checkpoint(folder).identity
        change(folder)
        after = open_checkpoint(folder).identity
        assert {name for name in before if before[name] != after[name]} == {part}

    def test_it_does_not_change_with_the_decoder(self, folder):
        before = open_checkpoint(folder).identity
        edit_tensors(folder / "decoder_state.pt", lambda s: s["lm_head.modules_to_save.default.weight"].add_(1))
        edit_json(folder / "decoder_tokenizer" / "tokenizer_config.json", padding_side="right")
        assert open_checkpoint(folder, decoder_base="another").identity == before


def test_memory_is_stored_before_a_connector_that_widens(tiny, make_base, tmp_path):
    assert (tiny.default_stage, tiny.memory_dim("hidden"), tiny.memory_dim("embedding")) == ("hidden", 64, 96)
    narrow = new_checkpoint(tmp_path / "out", make_base("qwen3", 48), make_base("qwen3", 32), mlp_dim=8, lora_rank=1)
    assert (narrow.default_stage, narrow.memory_dim("embedding")) == ("embedding", 32)


def test_passages_are_cut_as_configured(tiny):
    compression = CompressionConfig(max_length=7, on_long="truncate")
    (document,) = sent(tiny.passage_tokenizer(compression)).tokenize(["a long day in a small town " * 9])
    assert (len(document.passages), document.tokens_fed, document.n_mem) == (1, 7, 1)


def test_a_maximum_length_without_room_for_text_is_an_error(make_base, tmp_path):
    with_eos = make_base("mistral")
    checkpoint = new_checkpoint(tmp_path / "out", with_eos, with_eos, mlp_dim=8, lora_rank=1)
    with pytest.raises(ConfigError, match="compression: max_length 1 leaves no room for the 1 closing tokens"):
        checkpoint.passage_tokenizer(CompressionConfig(max_length=1))


def test_a_description_gives_names_and_sizes(tiny):
    description = tiny.describe()
    assert description["rate"] == 16
    assert description["compressor"]["architecture"] == "Qwen3ForCausalLM"
    assert description["compressor"]["parameters"] == sum(
        parameter.numel() for parameter in tiny.load_compressor(dtype=torch.bfloat16).parameters()
    )
    assert description["connector"] == {"widths": [64, 128, 96], "parameters": 64 * 128 + 128 + 128 * 96 + 96}
    assert (description["decoder"]["lora_rank"], description["decoder"]["lora_linears"]) == (4, 14)
    assert json.dumps(description)
