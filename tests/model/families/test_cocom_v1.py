"""Family "cocom-v1": one adapter for both roles, or a BERT that compresses; and what is refused."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, BertModel

from pisco_index import Compressor, Decoder, open_checkpoint
from pisco_index.configs import CompressionConfig
from pisco_index.errors import CheckpointError, ConfigError
from pisco_index.model.families.cocom_v1 import CocomV1Checkpoint
from pisco_index.model.passages import memory_bounds_of

from ...released import linears, save_shards, write_cocom_v1
from ..conftest import sent
from .test_cocom import held

TEXTS = ["", "a", "A text of forty letters, more or less so.", "x" * 125, "x" * 126, "long words " * 40]
PREFIX = "decoder.base_model.model."
TRUNCATE = CompressionConfig(on_long="truncate")


@pytest.fixture
def folder(tmp_path):
    return write_cocom_v1(tmp_path)


@pytest.fixture
def light(tmp_path):
    return write_cocom_v1(tmp_path, light=True)


def edit_weights(folder, change):
    state = load_file(folder / "model.safetensors")
    save_file(change(state) or state, folder / "model.safetensors")


def documents_of(checkpoint, settings=TRUNCATE, texts=TEXTS):
    return list(sent(checkpoint.passage_tokenizer(settings)).tokenize(texts))


def merged(folder):
    saved = load_file(folder / "model.safetensors")
    saved = {name.removeprefix(PREFIX): tensor.float() for name, tensor in saved.items() if name.startswith(PREFIX)}
    model = AutoModelForCausalLM.from_pretrained(folder.parent / "base_decoder", dtype=torch.float32).eval()
    model.resize_token_embeddings(len(saved["model.embed_tokens.weight"]))
    state = model.state_dict()
    for name in state:
        state[name].copy_(saved[name if name in saved else name.replace("_proj.", "_proj.base_layer.")])
    for name in linears(state):
        down, up = (saved[f"{name}.lora_{each}.default.weight"] for each in "AB")
        state[f"{name}.weight"] += 2 * up @ down
    return model


@pytest.mark.parametrize("kind", ["mistral", "qwen2"])
@pytest.mark.parametrize("rate", [4, 16, 128])
def test_one_adapter_compresses_and_answers(tmp_path, rate, kind):
    folder = write_cocom_v1(tmp_path, rate=rate, base={"kind": kind})
    checkpoint = open_checkpoint(folder)
    assert checkpoint.family == "cocom-v1"
    ids = [document.passages[0] for document in documents_of(checkpoint)]
    n = 128 // rate
    assert all(passage[-n:] == [258] * n and passage[:2] == [260, 256] for passage in ids)
    assert [len(passage) - n for passage in ids] == [3, 4, 44, 128, 128, 128]
    model = merged(folder)
    memory = Compressor.load(checkpoint, dtype=torch.float32).compress(ids)
    with torch.inference_mode():
        expected = torch.cat([model.model(torch.tensor([each])).last_hidden_state[0, -n:] for each in ids])
        torch.testing.assert_close(memory.values, expected, rtol=0, atol=1e-4)
        decoder = Decoder.load(checkpoint, dtype=torch.float32)
        prompt = decoder.prompt_ids("Q", memory.lengths[:1])
        logits = model(inputs_embeds=decoder.embed(prompt, memory.select([0]))[None]).logits[0]
    torch.testing.assert_close(decoder.logits(prompt, memory.select([0])), logits, rtol=0, atol=2e-4)


def test_both_roles_share_all_weights(folder):
    checkpoint = open_checkpoint(folder)
    decoder = Decoder.load(checkpoint, dtype=torch.float32)
    compressor = Compressor.load(checkpoint, dtype=torch.float32)
    assert held(compressor._forward).keys() <= held(decoder.model).keys()


def test_the_prompt(folder, tmp_path):
    checkpoint = open_checkpoint(folder)
    slots = "<MEM>" * 8 + "<SEP>"
    assert checkpoint.prompt("Q <MEM>", [16, 8]) == f"<s>{slots * 3}[INST]Q < MEM >\n[/INST]\n"
    decoder = Decoder.load(checkpoint, dtype=torch.float32)
    assert decoder.prompt_ids("Q", [8])[:3] == [256, 256, 258]
    ids, count = decoder.answered_ids("Q", [8], "Ada")
    assert checkpoint.decoder_tokenizer.decode(ids[-count:]) == "Ada</s>"
    once = Decoder.load(CocomV1Checkpoint(folder, has_two_bos=False), dtype=torch.float32)
    assert once.prompt_ids("Q", [8])[:2] == [256, 258]
    bare = open_checkpoint(write_cocom_v1(tmp_path / "bare", sep=False))
    assert "<SEP>" not in bare.prompt("Q", [8])


@pytest.mark.parametrize("settings", [{}, {"overlap": 5}, {"on_long": "truncate"}, {"max_length": 60}])
@pytest.mark.parametrize("kind", ["folder", "light"])
def test_a_store_knows_its_counts_without_the_checkpoint(kind, settings, request):
    checkpoint = open_checkpoint(request.getfixturevalue(kind))
    documents = documents_of(checkpoint, CompressionConfig(**settings))
    bounds = memory_bounds_of(checkpoint.identity | CompressionConfig(**settings).components)
    assert bounds is not None
    least, most = bounds(np.array([document.tokens_fed for document in documents]))
    assert least.tolist() == most.tolist() == [document.n_mem for document in documents]


def test_the_length_of_a_passage_is_a_setting(folder):
    checkpoint = open_checkpoint(folder, doc_max_length=40)
    (document,) = documents_of(checkpoint, texts=["x" * 200])
    assert (document.n_mem, document.tokens_fed) == (3, 40)
    assert checkpoint.identity["n_mem"] == "3"
    assert checkpoint.prompt("Q", [6]).count("<SEP>") == 2


@torch.inference_mode()
def test_light_groups_the_states_of_a_bert(light):
    checkpoint = open_checkpoint(light)
    documents = documents_of(checkpoint)
    ids = [document.passages[0] for document in documents]
    assert [document.n_mem for document in documents] == [-(-document.tokens_fed // 16) for document in documents]
    assert max(map(len, ids)) == 128
    state = {name: tensor.float() for name, tensor in load_file(light / "model.safetensors").items()}
    bert = BertModel(checkpoint.compressor_config).eval()
    bert.load_state_dict(
        {n.removeprefix("compr.model."): t for n, t in state.items() if "compr.model." in n}, strict=False
    )
    expected = []
    for document in documents:
        tokens = torch.tensor([document.passages[0]])
        mask = (torch.arange(tokens.shape[1]) < document.tokens_fed).long()[None]
        grouped = bert(tokens, attention_mask=mask).last_hidden_state.view(-1, 16 * 16)
        expected.append(grouped @ state["compr.linear.weight"].T + state["compr.linear.bias"])
    for budget in (None, 100):
        compressor = Compressor.load(checkpoint, dtype=torch.float32, token_budget=budget)
        memory = compressor.compress(ids)
        assert list(memory.lengths) == [document.n_mem for document in documents]
        torch.testing.assert_close(memory.values, torch.cat(expected), rtol=0, atol=1e-4)
    decoder = Decoder.load(checkpoint, dtype=torch.float32)
    assert isinstance(decoder.answer("Q", memory.select([2]), max_new_tokens=3), str)
    checkpoint.describe()


def test_there_is_no_memory_for_a_question(folder):
    with pytest.raises(ConfigError, match="family cocom-v1 does not compress a document for a question"):
        open_checkpoint(folder).query_passages("Q", ["a"], TRUNCATE)


@pytest.mark.parametrize("pickled", [False, True], ids=["safetensors", "bin"])
def test_shards(folder, pickled):
    expected = open_checkpoint(folder).load_decoder(dtype=torch.float32).state_dict()
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    save_shards(folder, state, 3, pickled=pickled)
    found = open_checkpoint(folder).load_decoder(dtype=torch.float32).state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    (index,) = folder.glob("*.index.json")
    shards = sorted({path.name for path in folder.glob("*-of-*")})
    values = json.loads(index.read_text())
    moved = next(name for name, place in values["weight_map"].items() if place == shards[0])
    del values["weight_map"][moved]
    index.write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match=f"{index.name}: {moved} is in the index or in the files"):
        Decoder.load(open_checkpoint(folder))
    (folder / shards[0]).unlink()
    with pytest.raises(CheckpointError, match=f"{index.name}: names {shards[0]}, which is not there"):
        open_checkpoint(folder)


def drop(key):
    return lambda state: {name: tensor for name, tensor in state.items() if name != key}


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("folder", drop(f"{PREFIX}model.norm.weight"), "lack 1 tensors, the first: .*model.norm.weight"),
        ("folder", drop(f"{PREFIX}lm_head.weight"), "lack 1 tensors, the first: .*lm_head.weight"),
        ("folder", drop(f"{PREFIX}model.layers.0.mlp.up_proj.base_layer.weight"), "lack 1 tensors"),
        ("folder", drop(f"{PREFIX}model.layers.0.mlp.up_proj.lora_B.default.weight"), "has no partner lora_B"),
        ("folder", lambda state: state | {"more": torch.zeros(1)}, "1 of its tensors have no place, the first: more"),
        (
            "folder",
            lambda state: state | {"compr.linear.bias": torch.zeros(1)},
            "no place, the first: compr.linear.bias",
        ),
        ("folder", lambda state: state | {f"{PREFIX}model.norm.weight": torch.zeros(31)}, r"is \(31,\), but \(32,\)"),
        ("folder", lambda state: state | {f"{PREFIX}model.norm.weight": torch.full((32,), torch.inf)}, "not finite"),
        ("folder", lambda state: state | {f"{PREFIX}model.norm.weight": torch.zeros(32).int()}, "holds I32"),
        ("light", drop("compr.linear.bias"), "lack 1 tensors, the first: compr.linear.bias"),
        ("light", drop("compr.model.pooler.dense.bias"), "lack 1 tensors, the first: compr.model.pooler"),
        ("light", lambda state: state | {"compr.linear.weight": torch.zeros(32, 9)}, r"is \(32, 9\), but \(32, 256\)"),
    ],
)
def test_each_tensor_is_used_once(kind, change, message, request):
    path = request.getfixturevalue(kind)
    edit_weights(path, change)
    with pytest.raises(CheckpointError, match=message):
        Decoder.load(open_checkpoint(path))


def test_missing_bases_are_named_with_their_flags(light):
    config = json.loads((light / "config.json").read_text())
    for key, flag in (("decoder_model_name", "--decoder-base"), ("compr_model_name", "--compressor-base")):
        (light / "config.json").write_text(json.dumps(config | {key: "someone/a-base"}))
        with pytest.raises(CheckpointError, match=f"base.*: someone/a-base: .*{flag}"):
            Compressor.load(open_checkpoint(light))
    (light / "config.json").write_text(json.dumps(config | {"lora_r": 3}))
    with pytest.raises(CheckpointError, match=r"has rank 2; config\.json says 3"):
        Compressor.load(open_checkpoint(light))


def test_the_base_s_weights_are_not_needed(folder):
    (folder.parent / "base_decoder" / "model.safetensors").unlink()
    assert Decoder.load(open_checkpoint(folder)) is not None
