"""The trainable module: its loss is that of inference, its gradients reach the trained weights, it is saved again."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pisco_index import Compressor, Decoder, new_checkpoint, new_tiny_checkpoint, open_checkpoint
from pisco_index.errors import CheckpointError, TrainingError
from pisco_index.model.families.pisco import PiscoCheckpoint
from pisco_index.model.passages import PassageTokenizer
from pisco_index.model.trainable import TrainableModel
from pisco_index.model.trainable_decoder import lora_decoder

ORACLE = Path(__file__).parents[3] / "shared" / "oracle"
TEXTS = ["the river and the city", "", "a war " * 30]
KINDS = ["lora", "full"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> PiscoCheckpoint:
    """A checkpoint whose LoRA pairs and output head differ from its base."""
    path = tmp_path_factory.mktemp("trainable") / "checkpoint"
    new_tiny_checkpoint(path)
    state = torch.load(path / "decoder_state.pt", weights_only=True)
    torch.manual_seed(1)
    moved = {
        name: values + 0.05 * torch.randn(values.shape)
        if ".lora_" in name or name.startswith("lm_head.modules_to_save")
        else values.clone()
        for name, values in state.items()
    }
    torch.save(moved, path / "decoder_state.pt")
    return open_checkpoint(path)


def batch_of(checkpoint, *answers):
    """Prompts of different lengths, padded, with labels on their ends."""
    tokenizer = PassageTokenizer(checkpoint.compressor_tokenizer, rate=checkpoint.rate, max_length=64)
    rows, passages, labels = [], [], []
    decoder = checkpoint.decoder_tokenizer
    memory_id = decoder.convert_tokens_to_ids("<MEM>")
    for answer in answers or ("a city", "the north of the river"):
        documents = list(tokenizer.tokenize(TEXTS[: 1 + len(rows)]))
        passages += [ids for document in documents for ids in document.passages]
        prompt = [memory_id] * sum(document.n_mem for document in documents) + decoder(" Question")["input_ids"]
        ids = decoder(answer)["input_ids"]
        rows.append(prompt + ids)
        labels.append([-100] * len(prompt) + ids)
    pad = torch.nn.utils.rnn.pad_sequence
    mask = [torch.ones(len(ids), dtype=torch.bool) for ids in passages]
    return {
        "passages": pad([torch.tensor(ids) for ids in passages], batch_first=True),
        "passage_mask": pad(mask, batch_first=True),
        "input_ids": pad([torch.tensor(ids) for ids in rows], batch_first=True),
        "labels": pad([torch.tensor(ids) for ids in labels], batch_first=True, padding_value=-100),
    }


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_the_loss_is_that_of_inference(checkpoint, kind):
    model = TrainableModel(checkpoint, decoder=kind).eval()
    batch = batch_of(checkpoint)
    decoder = Decoder.load(checkpoint, dtype=torch.float32)
    compressor = Compressor.load(checkpoint, dtype=torch.float32)
    passages = [ids[used].tolist() for ids, used in zip(batch["passages"], batch["passage_mask"], strict=True)]
    first = compressor.compress(passages[:1], stage="embedding")
    second = compressor.compress(passages[1:], stage="embedding")
    total = labels = 0
    for row, memory in enumerate((first, second)):
        length = int((batch["labels"][row] >= 0).nonzero()[-1]) + 1
        wanted = batch["labels"][row][:length].tolist()
        count = sum(label >= 0 for label in wanted)
        loss = decoder.loss(batch["input_ids"][row][:length].tolist(), wanted, memory)
        one = {key: batch[key][row : row + 1] for key in ("input_ids", "labels")}
        at = slice(0, 1) if row == 0 else slice(1, None)
        read = {key: batch[key][at] for key in ("passages", "passage_mask")}
        assert float(model(**one, **read)["loss"]) == pytest.approx(float(loss), abs=1e-5)
        total, labels = total + count * float(loss), labels + count
    assert float(model(**batch)["loss"]) == pytest.approx(total / labels, abs=1e-5)
    assert float(model(**batch, num_items_in_batch=7)["loss"]) == pytest.approx(total / 7, abs=1e-5)


@pytest.mark.skipif(not ORACLE.is_dir(), reason="the reference's outputs (../shared/oracle) are not here")
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_losses_agree_with_the_reference(kind):
    expected = json.loads((ORACLE / "compress_oracle.json").read_text())
    model = TrainableModel(open_checkpoint(ORACLE / "ckpt"), decoder=kind).eval()
    for pair in json.loads((ORACLE / "generate_oracle.json").read_text())["loss"]:
        passages = [torch.tensor(expected["input_ids"][i]) for i in pair["doc_index"][: pair.get("topk_docs", 5)]]
        pad = torch.nn.utils.rnn.pad_sequence
        loss = model(
            passages=pad(passages, batch_first=True),
            passage_mask=pad([torch.ones_like(ids, dtype=torch.bool) for ids in passages], batch_first=True),
            input_ids=torch.tensor([pair["decoder_input_ids"]]),
            labels=torch.tensor([pair["labels"]]),
        )["loss"]
        assert float(loss) == pytest.approx(pair["loss_fp32"], rel=3e-4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["gemma2", "phi"])
@torch.no_grad()
def test_logits_include_the_steps_after_the_output_head(make_base, name, kind, tmp_path):
    checkpoint = new_checkpoint(
        tmp_path / "checkpoint", make_base("qwen3"), make_base(name), rate=8, mlp_dim=16, lora_rank=2
    )
    model = TrainableModel(checkpoint, decoder=kind).eval()
    batch = batch_of(checkpoint)
    embeddings = model.decoder.get_input_embeddings()(batch["input_ids"])
    predicted = batch["labels"][:, 1:] >= 0
    expected = model.decoder(inputs_embeds=embeddings).logits[:, :-1][predicted]
    torch.testing.assert_close(model._logits(embeddings, predicted), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_computed_only_where_a_label_is_predicted(checkpoint, kind):
    model, seen = TrainableModel(checkpoint, decoder=kind), []
    head = model.decoder.get_output_embeddings()
    head.register_forward_hook(lambda _, given, made: seen.append(made.shape[:-1].numel()))
    batch = batch_of(checkpoint)
    model(**batch)
    assert seen == [int((batch["labels"] >= 0).sum())]


@pytest.mark.parametrize("kind", KINDS)
def test_both_models_are_compiled(checkpoint, kind, monkeypatch):
    model, compiled = TrainableModel(checkpoint, decoder=kind), []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **settings: compiled.append((self, settings)))
    model.compile_models()
    decoder = model.decoder if kind == "full" else model.decoder.get_base_model()
    assert [id(each) for each, _ in compiled] == [id(model.compressor.model), id(decoder.model)]
    assert all(settings == {"dynamic": True} for _, settings in compiled)


@pytest.mark.parametrize(
    ("bfloat16", "long", "fused"), [(True, False, False), (True, True, True), (False, False, True)]
)
def test_attention_is_plain_if_that_is_faster(checkpoint, monkeypatch, bfloat16, long, fused):
    model = TrainableModel(checkpoint)
    batch = batch_of(checkpoint)
    if long:
        monkeypatch.setattr("pisco_index.model.trainable.FUSED_FROM", batch["input_ids"].shape[1])
    seen = []
    for part in (model.compressor.base_model, model.decoder):
        part.register_forward_pre_hook(lambda *_: seen.append(torch.backends.cuda.flash_sdp_enabled()))
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        model(**batch)
    assert seen == [fused, fused]


def test_dropout_applies_to_the_pairs(checkpoint):
    model = TrainableModel(checkpoint, lora_dropout=0.5)
    rates = {each.p for each in model.modules() if isinstance(each, torch.nn.Dropout)}
    assert rates == {0.5}
    batch = batch_of(checkpoint)
    model.train()
    assert model(**batch)["loss"] != model(**batch)["loss"]


def test_trained_weights_are_fp32_and_frozen_ones_as_configured(checkpoint):
    model = TrainableModel(checkpoint, base_dtype=torch.bfloat16)
    dtypes = {(values.requires_grad, values.dtype) for name, values in model.named_parameters() if "decoder" in name}
    assert dtypes == {(True, torch.float32), (False, torch.bfloat16)}
    with torch.autocast("cpu", torch.bfloat16):
        model(**batch_of(checkpoint))["loss"].backward()


def test_an_untied_output_head_of_the_compressor_is_frozen(make_base, tmp_path):
    untied = new_checkpoint(
        tmp_path / "checkpoint", make_base("llama"), make_base("qwen3"), rate=8, mlp_dim=16, lora_rank=2
    )
    model = TrainableModel(untied)
    assert not model.compressor.get_output_embeddings().weight.requires_grad
    assert model.compressor.get_input_embeddings().weight.requires_grad


@pytest.mark.parametrize("kind", KINDS)
def test_saving_leaves_the_model_as_it_is(checkpoint, kind, tmp_path):
    model = train_a_little(TrainableModel(checkpoint, decoder=kind), checkpoint)
    before = {name: (values, values.clone(), values.dtype) for name, values in model.named_parameters()}
    first, second = model.save(tmp_path / "first"), model.save(tmp_path / "second")
    for name, values in model.named_parameters():
        same, copy, dtype = before[name]
        assert values is same, name
        assert values.dtype == dtype
        assert torch.equal(values, copy), name
    assert first.identity == second.identity
    assert all(values.dtype == torch.bfloat16 for values in first.load_decoder_state().values())


@pytest.mark.parametrize("place", ["beside", "inside"])
def test_a_saved_checkpoint_finds_its_base(tiny_folder, tmp_path, place):
    start = shutil.copytree(tiny_folder, tmp_path / "start")
    if place == "beside":
        (start / "base_decoder").rename(tmp_path / "base_decoder")
    saved = TrainableModel(open_checkpoint(start)).save(tmp_path / "elsewhere" / "out")
    expected = {"beside": str(tmp_path / "base_decoder"), "inside": "base_decoder"}
    assert saved.config.decoder_model_name == expected[place]
    assert Decoder.load(saved)


def test_prompts_without_memory_have_a_loss(checkpoint):
    batch = batch_of(checkpoint)
    none = {"passages": torch.zeros(0, 0, dtype=torch.int64), "passage_mask": torch.zeros(0, 0, dtype=torch.bool)}
    assert torch.isfinite(TrainableModel(checkpoint)(**{**batch, **none})["loss"])


def test_passages_and_prompts_must_match(checkpoint):
    batch = batch_of(checkpoint)
    batch["input_ids"][0, 0] = 5
    with pytest.raises(TrainingError, match=r"the prompts have \d+ memory tokens, the passages \d+"):
        TrainableModel(checkpoint)(**batch)


def test_gradients_reach_trained_weights_only(checkpoint):
    model = TrainableModel(checkpoint)
    frozen = {name: values.clone() for name, values in model.named_parameters() if not values.requires_grad}
    optimizer = torch.optim.SGD((each for each in model.parameters() if each.requires_grad), lr=0.1)
    model(**batch_of(checkpoint))["loss"].backward()
    moved = {name for name, values in model.named_parameters() if values.grad is not None and values.grad.abs().sum()}
    assert moved == {name for name, values in model.named_parameters() if values.requires_grad}
    for part in ("compressor.model.embed_tokens", "compressor.model.layers.1.mlp", "connector.", "q_proj.lora_A"):
        assert any(part in name for name in moved), part
    assert sum("embed_tokens.modules_to_save" in name or "lm_head.modules_to_save" in name for name in moved) == 2
    optimizer.step()
    assert frozen
    assert not any("modules_to_save" in name or "compressor" in name for name in frozen)
    for name, values in model.named_parameters():
        assert name not in frozen or torch.equal(values, frozen[name]), name


def test_every_weight_of_a_full_decoder_is_trained(checkpoint):
    model = TrainableModel(checkpoint, decoder="full")
    model(**batch_of(checkpoint))["loss"].backward()
    assert all(values.grad is not None and values.grad.abs().sum() for values in model.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_activations_may_be_recomputed(checkpoint, kind):
    gradients = []
    for again in (False, True):
        model = TrainableModel(checkpoint, decoder=kind)
        model.train()
        if again:
            model.activation_checkpointing_enable()
        model(**batch_of(checkpoint))["loss"].backward()
        gradients.append({name: values.grad for name, values in model.named_parameters() if values.grad is not None})
    kept, computed_again = gradients
    assert kept.keys() == computed_again.keys()
    for name, values in kept.items():
        torch.testing.assert_close(computed_again[name], values, rtol=1e-3, atol=1e-5, msg=name)


def train_a_little(model, checkpoint):
    optimizer = torch.optim.SGD((each for each in model.parameters() if each.requires_grad), lr=0.5)
    for _ in range(2):
        model(**batch_of(checkpoint))["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_checkpoint_computes_the_same(checkpoint, kind, tmp_path):
    model = train_a_little(TrainableModel(checkpoint, decoder=kind), checkpoint)
    saved = model.save(tmp_path / "out", dtype=torch.float32)
    again = TrainableModel(saved, decoder=kind).eval()
    batch = batch_of(checkpoint)
    torch.testing.assert_close(again(**batch)["loss"], model(**batch)["loss"], rtol=0, atol=1e-5)
    passages = [ids[used].tolist() for ids, used in zip(batch["passages"], batch["passage_mask"], strict=True)][:1]
    memory = Compressor.load(saved, dtype=torch.float32).compress(passages, stage="embedding")
    expected = model.connector(model._compress(batch["passages"][:1], batch["passage_mask"][:1]))
    torch.testing.assert_close(memory.values, expected.detach(), rtol=0, atol=1e-5)
    length = int((batch["labels"][0] >= 0).nonzero()[-1]) + 1
    logits = Decoder.load(saved, dtype=torch.float32).logits(batch["input_ids"][0][:length].tolist(), memory)
    embeddings = model.decoder.get_input_embeddings()(batch["input_ids"][:1, :length])
    slots = batch["input_ids"][:1, :length] == model._decoder_memory_id
    wanted = model.decoder(inputs_embeds=embeddings.masked_scatter(slots[..., None], memory.values)).logits[0]
    torch.testing.assert_close(logits, wanted.detach(), rtol=0, atol=1e-4)
    assert saved.config.decoder_model_name == "base_decoder"
    assert saved.identity != checkpoint.identity
    # The default dtype takes half the bytes.
    half = model.save(tmp_path / "half")
    assert load_file(half.path / "compressor" / "model.safetensors").popitem()[1].dtype == torch.bfloat16


def test_a_full_decoder_is_the_new_base_and_tied_embeddings_are_stored_once(tiny_folder, tmp_path):
    tiny = open_checkpoint(tiny_folder)
    saved = TrainableModel(tiny, decoder="full").save(tmp_path / "out")
    base = load_file(saved.path / "base_decoder" / "model.safetensors")
    assert "lm_head.weight" not in base
    state = saved.load_decoder_state()
    names = [f"{name}.modules_to_save.default.weight" for name in ("model.embed_tokens", "lm_head")]
    assert state[names[0]].data_ptr() == state[names[1]].data_ptr()
    assert all(not values.any() for name, values in state.items() if ".lora_B." in name)
    assert "lm_head.weight" not in load_file(saved.path / "compressor" / "model.safetensors")


def test_untied_embeddings_stay_two(checkpoint, tmp_path):
    """This checkpoint's lm_head is no longer its embedding."""
    saved = TrainableModel(checkpoint, decoder="full").save(tmp_path / "out")
    assert "lm_head.weight" in load_file(saved.path / "base_decoder" / "model.safetensors")


@pytest.mark.parametrize("kind", KINDS)
def test_a_training_state_holds_the_trained_tensors(checkpoint, kind):
    model = train_a_little(TrainableModel(checkpoint, decoder=kind), checkpoint)
    state = model.state_dict()
    assert len({values.data_ptr() for values in state.values()}) == len(state)
    assert state.keys() == {name for name, values in model.named_parameters() if values.requires_grad}
    other = TrainableModel(checkpoint, decoder=kind).eval()
    report = other.load_state_dict(state)
    assert not report.missing_keys
    assert not report.unexpected_keys
    batch = batch_of(checkpoint)
    assert torch.equal(other(**batch)["loss"], model(**batch)["loss"])


def test_the_training_state_of_other_settings_is_refused(checkpoint):
    state = TrainableModel(checkpoint).state_dict()
    with pytest.raises(TrainingError, match=r"has other tensors than this training, the first: decoder\."):
        TrainableModel(checkpoint, decoder="full").load_state_dict(state)


@pytest.mark.parametrize("kind", KINDS)
def test_a_connector_must_fit_the_decoder(folder, kind):
    connector = torch.load(folder / "connector.pt", weights_only=True)
    connector |= {"2.weight": connector["2.weight"][:95].clone(), "2.bias": connector["2.bias"][:95].clone()}
    torch.save(connector, folder / "connector.pt")
    with pytest.raises(CheckpointError, match="the connector gives 95 values, the decoder takes 96"):
        TrainableModel(open_checkpoint(folder), decoder=kind)


def test_every_tensor_has_its_place_in_the_decoder(folder):
    state = torch.load(folder / "decoder_state.pt", weights_only=True)
    pairs = {name: values for name, values in state.items() if ".lora_" in name}
    embeddings = {name: values for name, values in state.items() if ".lora_" not in name}
    changed = next(iter(pairs))
    partner, head = next(name for name in pairs if ".lora_B." in name), "lm_head.modules_to_save.default.weight"
    for content, message in (
        (embeddings, "has no LoRA pairs to train"),
        ({**state, changed: torch.zeros(4, 7)}, "does not fit the base decoder: size mismatch"),
        ({**state, "model.nothing": torch.zeros(1)}, "model.nothing has no place in the base decoder"),
        ({name: values for name, values in state.items() if name != partner}, f"lacks {partner}"),
        ({name: values for name, values in state.items() if name != head}, f"lacks {head}"),
    ):
        torch.save(content, folder / "decoder_state.pt")
        with pytest.raises(CheckpointError, match=message):
            lora_decoder(open_checkpoint(folder), 0.0, torch.float32)
