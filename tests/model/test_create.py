import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig

from pisco_index import Compressor, Decoder, new_checkpoint, open_checkpoint
from pisco_index.errors import CheckpointError
from pisco_index.model.create import save_checkpoint
from pisco_index.model.loading.tensors import load_tensors

ORACLE = Path(__file__).parents[3] / "shared" / "oracle" / "ckpt"


def contents(folder):
    """Digest of every file of a folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def tensors(folder):
    """Every tensor of a checkpoint, by file and name."""
    found = {name: load_tensors(folder / name) for name in ("connector.pt", "decoder_state.pt")}
    return found | {str(p.relative_to(folder)): load_file(p) for p in sorted(folder.rglob("*.safetensors"))}


def assert_same_tensors(found, expected):
    assert found.keys() == expected.keys()
    for file, named in expected.items():
        assert found[file].keys() == named.keys()
        for name, tensor in named.items():
            assert found[file][name].dtype == tensor.dtype, name
            assert torch.equal(found[file][name], tensor), name


def copy_of(checkpoint, out):
    """The checkpoint, loaded and saved again."""
    save_checkpoint(
        out,
        checkpoint.config,
        compressor=checkpoint.load_causal_compressor(dtype=checkpoint.compressor_config.dtype),
        connector=checkpoint.connector,
        decoder_state=checkpoint.load_decoder_state(),
        compressor_tokenizer=checkpoint.compressor_tokenizer,
        decoder_tokenizer=checkpoint.decoder_tokenizer,
    )
    return open_checkpoint(out, decoder_base=checkpoint.find_decoder_base())


def assert_computes_the_same(found, expected):
    passages = [[1, 2, 3, found.memory_token_id]]
    memories = [Compressor.load(c, dtype=torch.float32).compress(passages) for c in (found, expected)]
    assert torch.equal(memories[0].values, memories[1].values)
    decoders = [Decoder.load(c, dtype=torch.float32) for c in (found, expected)]
    prompts = [d.prompt_ids("who?", [1]) for d in decoders]
    assert prompts[0] == prompts[1]
    logits = [d.logits(prompts[0], memories[0]) for d in decoders]
    assert torch.equal(logits[0], logits[1])


class TestRoundTrip:
    def test_any_architecture_comes_back(self, made, tmp_path):
        again = copy_of(made, tmp_path / "again")
        assert contents(again.path).keys() == contents(made.path).keys()
        assert_same_tensors(tensors(again.path), tensors(made.path))
        assert again.config == made.config
        assert again.identity == made.identity
        assert_computes_the_same(again, made)

    @pytest.mark.skipif(not ORACLE.is_dir(), reason="the reference's checkpoint (../shared/oracle) is not here")
    def test_the_references_checkpoint_comes_back(self, tmp_path):
        reference = open_checkpoint(ORACLE)
        again = copy_of(reference, tmp_path / "again")
        found, expected = tensors(again.path), tensors(reference.path)
        # Values are kept; the connector is written in fp32, as it is read.
        found["connector.pt"] = {
            name: tensor.to(expected["connector.pt"][name].dtype) for name, tensor in found["connector.pt"].items()
        }
        assert_same_tensors(found, expected)
        assert {p.name for p in again.path.iterdir()} == {p.name for p in reference.path.iterdir()}
        assert json.loads((again.path / "config.json").read_text()).items() >= (
            json.loads((reference.path / "config.json").read_text()).items()
        )
        assert again.identity["connector"] == reference.identity["connector"]
        assert_computes_the_same(again, reference)

    def test_unknown_keys_of_a_configuration_are_kept(self, folder, tmp_path):
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"trained_on": "something"}))
        copy_of(open_checkpoint(folder), tmp_path / "again")
        assert json.loads((tmp_path / "again" / "config.json").read_text())["trained_on"] == "something"

    def test_nothing_is_overwritten(self, made, tmp_path):
        (tmp_path / "notes.txt").write_text("mine")
        with pytest.raises(CheckpointError, match="holds something"):
            copy_of(made, tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


class TestTransformers4Readers:
    """transformers 4 does not know ``rope_parameters``: rotary base and scaling need their old keys too."""

    @pytest.mark.parametrize("architecture", ["llama3", "qwen3"], indirect=True)
    def test_positions_are_written_in_both_spellings(self, made):
        path = made.path / "compressor" / "config.json"
        written = json.loads(path.read_text())
        rope = written["rope_parameters"]
        assert written["rope_theta"] == rope["rope_theta"]
        scaled = {key: value for key, value in rope.items() if key != "rope_theta"}
        assert written.get("rope_scaling", {"rope_type": "default"}) == scaled
        assert AutoConfig.from_pretrained(path.parent).rope_parameters == rope


class TestNewCheckpoint:
    def test_the_compressors_weights_are_the_bases(self, make_base, made, architecture):
        base = load_file(make_base(architecture, 32) / "model.safetensors")
        copied = load_file(made.path / "compressor" / "model.safetensors")
        assert copied.keys() == base.keys()
        for name, tensor in base.items():
            rows = min(len(tensor), len(copied[name]))
            assert torch.equal(copied[name][:rows], tensor[:rows]), name

    def test_tables_have_a_row_for_each_token(self, made):
        compressor = made.load_compressor(dtype=torch.float32)
        assert len(compressor.get_input_embeddings().weight) == len(made.compressor_tokenizer)
        decoder = Decoder.load(made, dtype=torch.float32)
        tables = (decoder.model.get_input_embeddings(), decoder.model.get_output_embeddings())
        assert [len(table.weight) for table in tables] == [len(decoder.tokenizer)] * 2

    def test_lora_changes_nothing_yet(self, made):
        decoder, base = Decoder.load(made, dtype=torch.float32), made.load_decoder_base(dtype=torch.float32)
        ids = torch.tensor([[3, 1, 4, 1, 5]])
        old = min(base.config.vocab_size, len(decoder.tokenizer))
        with torch.inference_mode():
            torch.testing.assert_close(decoder.model(ids).logits[..., :old], base(ids).logits[..., :old])

    def test_its_settings_are_written(self, made):
        assert (made.rate, made.config.compressor_mlp_hidden_dim, made.config.lora_r_decoder) == (4, 40, 2)
        assert made.config.model_type == "PISCO"

    def test_local_bases_are_found_from_anywhere(self, make_base, tmp_path, monkeypatch):
        base = make_base("qwen3")
        monkeypatch.chdir(base.parent)
        new_checkpoint(tmp_path / "checkpoint", base.name, base.name, mlp_dim=8, lora_rank=1)
        monkeypatch.chdir(tmp_path)
        Decoder.load(str(tmp_path / "checkpoint"))

    def test_a_base_may_have_generation_settings_that_contradict_each_other(self, make_base, tmp_path):
        base = shutil.copytree(make_base("llama"), tmp_path / "base")
        (base / "generation_config.json").write_text('{"temperature": 0.9, "top_p": 0.6, "do_sample": false}')
        made = new_checkpoint(tmp_path / "checkpoint", base, base, mlp_dim=8, lora_rank=1)
        assert_computes_the_same(copy_of(made, tmp_path / "again"), made)

    @pytest.mark.parametrize("role", ["compressor", "decoder"])
    def test_a_missing_base_is_named(self, make_base, tmp_path, role):
        bases = {"compressor": make_base("qwen3"), "decoder": make_base("qwen3"), role: tmp_path / "nothing"}
        with pytest.raises(CheckpointError, match="nothing"):
            new_checkpoint(tmp_path / "out", **bases)
