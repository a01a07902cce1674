"""A converted checkpoint computes what its original does, without base models, and memory keeps its identity."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from pisco_index import Compressor, Decoder, open_checkpoint
from pisco_index.configs import CompressionConfig
from pisco_index.errors import CheckpointError
from pisco_index.model.families import convert
from pisco_index.model.families.convert import convert_checkpoint
from pisco_index.model.families.merged import digest_merged_files

from ...released import write_cocom, write_cocom_v1, write_oscar
from .test_oracle_released import FOR_QUESTIONS, ORACLE, STORED

TEXTS = ["A town by the river.", "", "<MEM0> and </s>", "long " * 60]
GENERATION = {"eos_token_id": [257, 5], "repetition_penalty": 1.3, "temperature": 0.1, "do_sample": False}
LAYOUTS = {
    "cocom": lambda folder: write_cocom(folder, base={"generation": GENERATION}),
    "cocom-tied": lambda folder: write_cocom(
        folder, different=False, kbtc=True, base={"kind": "qwen2", "tie_word_embeddings": True}
    ),
    "oscar": write_oscar,
    "oscar-lora": lambda folder: write_oscar(folder, lora=True),
    "oscar-first-layers": lambda folder: write_oscar(folder, trimmed=True),
    "oscar-first-layers-lora": lambda folder: write_oscar(
        folder, trimmed=True, lora=True, compressor={"padding_side": "right"}
    ),
    "oscar-every-second-layer": lambda folder: write_oscar(
        folder, trimmed=True, norm=True, every=2, layers=None, mlp=False
    ),
    "cocom-v1-16": write_cocom_v1,
    "cocom-v1-4": lambda folder: write_cocom_v1(folder, rate=4, sep=False, shards=2),
    "cocom-v1-128": lambda folder: write_cocom_v1(folder, rate=128),
    "cocom-v1-light": lambda folder: write_cocom_v1(folder, rate=4, light=True),
}
RELEASED = [name for name in (*STORED, *FOR_QUESTIONS) if (ORACLE / name / "ckpt").is_dir()]


def observed(path):
    """Everything that a checkpoint says about itself, and the memory and answers that it computes in fp32."""
    checkpoint = open_checkpoint(path)
    compression = CompressionConfig(on_long="truncate")
    if checkpoint.is_query_dependent:
        documents = checkpoint.query_passages("Who?", TEXTS, compression)
    else:
        documents = list(checkpoint.passage_tokenizer(compression).tokenize(TEXTS))
    passages = [passage for document in documents for passage in document.passages]
    memory = Compressor.load(checkpoint, dtype=torch.float32).compress(passages)
    decoder = Decoder.load(checkpoint, dtype=torch.float32)
    ids = decoder.prompt_ids("Who?", memory.lengths)
    described = checkpoint.describe()
    said = {
        "passages": passages,
        "lengths": list(memory.lengths),
        "stage": (memory.stage, memory.connector, checkpoint.stages, checkpoint.default_stage),
        "prompt": ids,
        "answer": decoder.generate([ids], [memory], max_new_tokens=6),
        "generation": checkpoint.generation,
        "identity": dict(checkpoint.identity),
        "rule": dict(checkpoint.n_mem_rule),
        "context": checkpoint.decoder_context,
        "described": {key: described[key] for key in ("family", "rate", "memory", "prompt", "generation")},
        "pads": [each.padding_side for each in (checkpoint.decoder_tokenizer, checkpoint.compressor_tokenizer)],
        "position": checkpoint.memory_position,
    }
    return said, memory.values


@pytest.mark.parametrize("name", [*LAYOUTS, *RELEASED])
def test_the_converted_checkpoint_is_the_same_model_without_its_base(name, tmp_path):
    folder, out = tmp_path / "model", tmp_path / "merged"
    path = LAYOUTS[name](folder) if name in LAYOUTS else shutil.copytree(ORACLE / name, folder) / "ckpt"
    converted = convert_checkpoint(open_checkpoint(path), out, dtype=torch.float32)
    said, values = observed(path)
    shutil.rmtree(folder)
    assert converted.memory_difference <= 1e-5 >= converted.logits_difference
    again, found = observed(out)
    assert again == said
    assert (found - values).abs().max() <= 1e-5
    assert {file.suffix for file in out.rglob("*") if file.is_file()} <= {".json", ".jinja", ".safetensors", ".txt"}
    assert [entry.name for entry in tmp_path.iterdir()] == ["merged"]


@pytest.fixture(scope="module")
def cocom(tmp_path_factory):
    return open_checkpoint(write_cocom(tmp_path_factory.mktemp("cocom")))


@pytest.fixture(scope="module")
def merged(cocom, tmp_path_factory):
    return convert_checkpoint(cocom, tmp_path_factory.mktemp("merged") / "out")


def test_weights_are_written_in_the_dtype(merged):
    assert merged.dtype == "bfloat16"
    for role in ("compressor", "decoder"):
        tensors = load_file(merged.path / role / "model.safetensors").values()
        assert {tensor.dtype for tensor in tensors} == {torch.bfloat16}
    assert merged.bytes == sum(file.stat().st_size for file in merged.path.rglob("*") if file.is_file())


def test_a_changed_file_is_an_error(merged, tmp_path):
    path = shutil.copytree(merged.path, tmp_path / "copy")
    content = bytearray((path / "compressor" / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (path / "compressor" / "model.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match="not those that the conversion wrote"):
        _ = open_checkpoint(path).identity
    shutil.rmtree(path / "decoder")
    with pytest.raises(CheckpointError, match="not a complete merged cocom checkpoint, missing decoder/config"):
        open_checkpoint(path)


def test_an_older_conversion_records_digests_of_files(merged, cocom, tmp_path):
    path = shutil.copytree(merged.path, tmp_path / "copy")
    assert open_checkpoint(path).file_identity == cocom.file_identity
    values = json.loads((path / "config.json").read_text())
    values["merged"] = {"digests": values["merged"]["file_digests"], "files": digest_merged_files(path)}
    (path / "config.json").write_text(json.dumps(values))
    older = open_checkpoint(path)
    assert older.identity == older.file_identity == cocom.file_identity
    (path / "decoder" / "config.json").write_text("{}")
    with pytest.raises(CheckpointError):
        _ = open_checkpoint(path).identity


def test_changed_settings_are_an_error(merged, tmp_path):
    path = shutil.copytree(merged.path, tmp_path / "copy")
    config = path / "decoder" / "config.json"
    values = json.loads(config.read_text())
    config.write_text(json.dumps(values | {"transformers_version": "4.50.0"}))
    assert open_checkpoint(path).identity == open_checkpoint(merged.path).identity
    config.write_text(json.dumps(values | {"rms_norm_eps": 0.5}))
    with pytest.raises(CheckpointError, match="not those that the conversion wrote"):
        _ = open_checkpoint(path).identity


def test_what_is_not_converted(merged, cocom, fake, tmp_path):
    with pytest.raises(CheckpointError, match="is merged already"):
        convert_checkpoint(open_checkpoint(merged.path), tmp_path / "out")
    with pytest.raises(CheckpointError, match="need not be converted"):
        convert_checkpoint(fake, tmp_path / "out")
    with pytest.raises(CheckpointError, match="holds something already"):
        convert_checkpoint(cocom, merged.path)


@pytest.mark.parametrize("part", ["self_attn.q_proj", "lm_head"])
def test_nothing_appears_if_the_models_differ(part, cocom, tmp_path, monkeypatch):
    def save_another(model, folder):
        names = [name for name, _ in model.named_parameters() if part in name]
        kept = {name: model.get_parameter(name).clone() for name in names}
        for name in names:
            model.get_parameter(name).mul_(1.5)
        original(model, folder)
        for name, values in kept.items():
            model.get_parameter(name).copy_(values)

    original = convert.save_model
    monkeypatch.setattr(convert, "save_model", save_another)
    with pytest.raises(CheckpointError, match="first logits" if part == "lm_head" else "memory of the converted"):
        convert_checkpoint(cocom, tmp_path / "out", dtype=torch.float32)
    assert not list(tmp_path.iterdir())


def test_weights_that_a_dtype_cannot_hold(tmp_path):
    path = write_cocom(tmp_path)
    state = torch.load(path / "decoder_first_last_layers.pth", weights_only=True)
    state["model.embed_tokens.weight"][0, 0] = 1e6
    torch.save(state, path / "decoder_first_last_layers.pth")
    with pytest.raises(CheckpointError, match=r"in torch.float16: embed_tokens.weight has values that are not finite"):
        convert_checkpoint(open_checkpoint(path), tmp_path / "out", dtype=torch.float16)
