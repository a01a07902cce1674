"""Family "oscar": both kinds of compressor, with weights of their own or LoRA pairs; and what is refused."""

import copy
import json

import pytest
import torch
from transformers import AutoModel

from pisco_index import Compressor, Decoder, open_checkpoint
from pisco_index.configs import CompressionConfig
from pisco_index.errors import CheckpointError, PromptError

from ...released import edit_pth, linears, write_oscar
from ..conftest import sent

QUESTION = "Who wrote it?"
TEXTS = ["", "a", "A text of forty letters, more or less so.", "x" * 200]
SETTINGS = CompressionConfig()


@pytest.fixture
def folder(tmp_path):
    return write_oscar(tmp_path)


@pytest.fixture
def trimmed(tmp_path):
    return write_oscar(tmp_path, trimmed=True)


def edit_config(folder, **values):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def question_ids(checkpoint, question=QUESTION, texts=TEXTS):
    return [document.passages[0] for document in checkpoint.query_passages(question, texts, SETTINGS)]


@torch.inference_mode()
def expected_memory(folder, ids, kept, *, trimmed, lora, norm, position=None):
    """Memory by the format's description, computed plainly, one passage at a time."""
    base = folder.parent / "base_compressor"
    model = AutoModel.from_pretrained(base, dtype=torch.float32).eval()
    compressor, prefix = folder / "compressor", "custom_model.model." if trimmed else ""
    saved = torch.load(compressor / ("first_layer.pth" if lora else "compressor.pth"), weights_only=True)
    table = saved[f"{prefix}embed_tokens.weight"]
    model.resize_token_embeddings(len(table))
    if len(kept) < len(model.layers):
        model.layers = torch.nn.ModuleList(model.layers[i] for i in kept)
        model.config.num_hidden_layers = len(kept)
    state = model.state_dict()
    for name, tensor in saved.items():
        if name.startswith(prefix) and "lm_head" not in name:
            state[name.removeprefix(prefix)].copy_(tensor)
    if lora:
        pairs = torch.load(compressor / "compressor_adapters.pth", weights_only=True)
        for name in linears(state):
            down, up = (pairs[f"{'model.' * trimmed}{name}.lora_{each}.weight"].float() for each in "AB")
            state[f"{name}.weight"] += 2 * up @ down
    if trimmed:
        model.rotary_emb.inv_freq.copy_(model.rotary_emb.inv_freq.to(torch.bfloat16))
        if not norm:
            model.norm = torch.nn.Identity()
    memory = []
    for passage in ids:
        tokens, gap = torch.tensor([passage]), 0 if position is None else position - (len(passage) - 4)
        # The padding between a text and its memory tokens, which no token attends to.
        padded = torch.cat([tokens[:, :-4], torch.zeros(1, gap, dtype=torch.long), tokens[:, -4:]], 1)
        mask = torch.ones_like(padded)
        mask[:, len(passage) - 4 : len(passage) - 4 + gap] = 0
        positions = torch.arange(padded.shape[1])[None]
        output = model(input_ids=padded, attention_mask=mask, position_ids=positions, use_cache=False)
        memory.append(output.last_hidden_state[0, -4:])
    return torch.cat(memory)


@pytest.mark.parametrize("lora", [False, True], ids=["whole", "lora"])
@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({}, [0, 1, 2]),
        ({"mlp": False}, [0, 1, 2]),
        ({"trimmed": True}, [0, 1]),
        ({"trimmed": True, "norm": True}, [0, 1]),
        ({"trimmed": True, "every": 2, "compressor": {"num_hidden_layers": 5}}, [0, 2]),
        ({"trimmed": True, "compressor": {"padding_side": "right"}}, [0, 1]),
        ({"trimmed": True, "compressor": {"kind": "gemma2", "padding_side": "right"}}, [0, 1]),
        ({"trimmed": True, "compressor": {"kind": "qwen3"}}, [0, 1]),
        ({"compressor": {"kind": "qwen2", "tie_word_embeddings": True, "rows": 280}}, [0, 1, 2]),
    ],
    ids=str,
)
def test_the_compressor_computes_what_the_format_says(tmp_path, options, kept, lora):
    folder = write_oscar(tmp_path, lora=lora, **options)
    checkpoint = open_checkpoint(folder)
    ids = question_ids(checkpoint)
    compressor = Compressor.load(checkpoint, dtype=torch.float32)
    memory = compressor.compress(ids)
    trimmed, right = options.get("trimmed", False), "padding_side" in options.get("compressor", {})
    expected = expected_memory(
        folder,
        ids,
        kept,
        trimmed=trimmed,
        lora=lora,
        norm=options.get("norm", False),
        position=16 + 64 + 8 if right else None,
    )
    torch.testing.assert_close(memory.values, expected, rtol=0, atol=1e-4)
    assert memory.stage == checkpoint.stages[0] == ("hidden" if options.get("mlp", True) else "embedding")
    decoder = Decoder.load(checkpoint, dtype=torch.float32)
    assert decoder.embed(decoder.prompt_ids(QUESTION, memory.lengths), memory).shape[1] == 32
    checkpoint.describe()


def test_rotary_frequencies_of_trimmed_compressors_are_rounded(trimmed):
    model = open_checkpoint(trimmed).load_compressor(dtype=torch.float32)
    rounded = model.rotary_emb.inv_freq
    assert torch.equal(rounded, rounded.to(torch.bfloat16).float())
    decoder = open_checkpoint(trimmed).load_decoder(dtype=torch.float32)
    assert not torch.equal(decoder.model.rotary_emb.inv_freq, rounded[: len(decoder.model.rotary_emb.inv_freq)])


class TestPassages:
    def test_a_pair_keeps_its_question(self, folder):
        checkpoint = open_checkpoint(folder)
        tokenizer, bos = checkpoint.compressor_tokenizer, 256
        for ids, text in zip(question_ids(checkpoint), TEXTS, strict=True):
            second = ids.index(bos, 1)
            assert ids[0] == bos
            assert tokenizer.decode(ids[1:second]) == QUESTION
            assert text.startswith(tokenizer.decode(ids[second + 1 : -4]))
            assert ids[-4:] == [258, 259, 260, 261] == list(checkpoint.memory_token_ids)
        assert len(question_ids(checkpoint)[-1]) == 16 + 64 + 3 + 4

    def test_query_extra_is_a_setting(self, folder):
        assert len(question_ids(open_checkpoint(folder, query_extra=5))[-1]) == 16 + 5 + 3 + 4
        with pytest.raises(PromptError, match="Ask a shorter question, or raise query_extra"):
            question_ids(open_checkpoint(folder, query_extra=0), "x" * 30)

    def test_a_trimmed_compressor_reads_one_text(self, trimmed):
        checkpoint = open_checkpoint(trimmed)
        (ids,) = question_ids(checkpoint, texts=["b"])
        decoded = checkpoint.compressor_tokenizer.decode(ids)
        assert decoded == f"<s>\nQuery:\n{QUESTION}Document:\nb<MEM0><MEM1><MEM2><MEM3>"
        assert checkpoint.memory_position is None

    @pytest.mark.parametrize(
        ("settings", "position"),
        [
            ({"padding_side": "right"}, 88),
            ({"padding_side": "left"}, None),
            ({"tokenizer_class": "LlamaTokenizer"}, None),
            ({"tokenizer_class": "PreTrainedTokenizerFast"}, 88),
        ],
        ids=str,
    )
    def test_the_base_s_padding_side_places_memory(self, trimmed, settings, position):
        path = trimmed.parent / "base_compressor" / "tokenizer_config.json"
        values = json.loads(path.read_text())
        del values["padding_side"]
        path.write_text(json.dumps(values | settings))
        assert open_checkpoint(trimmed).memory_position == position

    def test_special_tokens_are_broken_up(self, folder):
        (ids,) = question_ids(open_checkpoint(folder), "<MEM0>", ["<MEM1>"])
        assert [ids.count(each) for each in (258, 259)] == [1, 1]

    def test_without_a_question(self, folder):
        tokenizer = open_checkpoint(folder).passage_tokenizer(CompressionConfig(on_long="truncate"))
        (document,) = sent(tokenizer).tokenize(["x" * 99])
        assert document.tokens_fed == 18
        assert document.n_mem == 4


def drop(key):
    return lambda state: {name: value for name, value in state.items() if name != key}


class TestRefusals:
    @pytest.mark.parametrize(
        ("file", "change", "message"),
        [
            ("compressor.pth", drop("norm.weight"), "lacks 1 weights, the first: norm.weight"),
            ("compressor.pth", drop("embed_tokens.weight"), "lacks embed_tokens.weight"),
            (
                "compressor.pth",
                lambda s: s | {"score.weight": torch.zeros(1, 24)},
                "no place, the first: score.weight. A rerank head is not supported",
            ),
            (
                "compressor.pth",
                lambda s: s | {"layers.0.mlp.up_proj.weight": torch.zeros(47, 24)},
                r"up_proj.weight is \(47, 24\), but \(48, 24\)",
            ),
            (
                "compressor.pth",
                lambda s: s | {"embed_tokens.weight": s["embed_tokens.weight"][:-1].clone()},
                "has 261 rows, but the tokenizer of .* has 258 tokens and the checkpoint adds 4",
            ),
            ("mlp.pth", drop("2.bias"), "a connector has the tensors"),
            ("mlp.pth", lambda s: s | {"0.weight": torch.zeros(40, 25)}, "has the widths 25, 40, 32; the compressor"),
        ],
    )
    def test_each_tensor_is_used_once(self, folder, file, change, message):
        edit_pth(folder / "compressor" / file, change)
        with pytest.raises(CheckpointError, match=message):
            Compressor.load(open_checkpoint(folder))

    @pytest.mark.parametrize("name", ["compressor.pth", "mlp.pth"])
    def test_a_missing_file_is_named(self, folder, name):
        (folder / "compressor" / name).unlink()
        with pytest.raises(CheckpointError, match=f"compressor: lacks {name}"):
            open_checkpoint(folder)

    def test_a_head_that_is_unknown(self, folder):
        torch.save({"weight": torch.zeros(1, 24)}, folder / "compressor" / "rerank_head.pth")
        with pytest.raises(CheckpointError, match=r"rerank_head\.pth has no place in an OSCAR compressor\. A rerank"):
            open_checkpoint(folder)

    def test_pairs_of_a_compressor(self, tmp_path):
        folder = write_oscar(tmp_path, trimmed=True, lora=True)
        pairs = folder / "compressor" / "compressor_adapters.pth"
        before = torch.load(pairs, weights_only=True)
        name = "model.layers.1.mlp.up_proj.lora_A.weight"
        for change, message in (
            (drop(name), "no place, the first: model.layers.1.mlp.up_proj.lora_B.weight"),
            (lambda s: {k.replace("layers.1", "layers.2"): v for k, v in s.items()}, "no linear layer layers.2"),
        ):
            torch.save(change(copy.copy(before)), pairs)
            with pytest.raises(CheckpointError, match=message):
                Compressor.load(open_checkpoint(folder))

    @pytest.mark.parametrize(
        ("values", "message"),
        [
            ({"compr_n_layers": None}, "needs one of compr_n_layers and compr_every_n_layer"),
            ({"compr_every_n_layer": 2}, "needs one of compr_n_layers and compr_every_n_layer"),
            ({"compr_n_layers": 4}, "keeps 4 layers of a base that has 3"),
            ({"compr_n_layers": 3}, "lacks 9 weights, the first: custom_model.model.layers.2"),
            ({"compr_n_layers": 1}, "9 tensors have no place, the first: custom_model.model.layers.1"),
            ({"compr_rms_norm": True}, "lacks 1 weights, the first: custom_model.model.norm.weight"),
            ({"compr_base_model_name": None}, "needs compr_base_model_name"),
            ({"compr_use_mlp": False}, "mlp.pth has no place"),
            ({"compr_mlp_hidden_dim": 41}, "has the widths 24, 40, 32; .* have 24, 41, 32"),
            ({"compr_base_model_name": "someone/base"}, "compressor's base: someone/base: .*--compressor-base"),
            ({"compr_base_model_name": "../x"}, "compr_base_model_name '../x' leads out .*--compressor-base"),
        ],
    )
    def test_the_configuration_fits(self, trimmed, values, message):
        edit_config(trimmed, **values)
        with pytest.raises(CheckpointError, match=message):
            Compressor.load(open_checkpoint(trimmed))

    def test_the_compressor_s_base_can_be_named(self, folder):
        edit_config(folder, compr_model_name="someone/their-model")
        base = str(folder.parent / "base_compressor")
        assert Compressor.load(open_checkpoint(folder, compressor_base=base)) is not None

    def test_an_encoder_adapter_has_no_place(self, folder):
        edit_pth(folder / "adapters.pth", lambda state: state | {"encoder_adapter": state["decoder_adapter"]})
        with pytest.raises(CheckpointError, match="expected decoder_adapter, found decoder_adapter, encoder_adapter"):
            Decoder.load(open_checkpoint(folder))
