"""Family "cocom": what makes a checkpoint right or refused, passages and prompts, and one copy of the base weights."""

import gc
import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from pisco_index import Compressor, Decoder, open_checkpoint
from pisco_index.configs import CompressionConfig
from pisco_index.errors import CheckpointError, ConfigError, FingerprintMismatchError, PromptError
from pisco_index.model.families.cocom import ADAPTERS, TABLES
from pisco_index.model.identity import identity_as_stored
from pisco_index.model.passages import memory_bounds_of

from ...released import CHAT_WITHOUT_SYSTEM, edit_pth, linears, save_shards, write_cocom
from ..conftest import sent

TEXTS = ["", "a", "A text of forty letters, more or less so.", "x" * 13, "x" * 16, "x" * 17, "long " * 30]
QUESTION = "Who?"
LAYER = "model.layers.1.mlp.up_proj"


@pytest.fixture
def folder(tmp_path):
    """A checkpoint that a test may change."""
    return write_cocom(tmp_path)


@pytest.fixture(scope="module")
def shared_folder(tmp_path_factory):
    return write_cocom(tmp_path_factory.mktemp("cocom"))


@pytest.fixture
def checkpoint(shared_folder):
    return open_checkpoint(shared_folder)


def edit_config(folder, **values):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def merged(folder, role):
    """The model that a role has by the format's description, computed plainly."""
    model = AutoModelForCausalLM.from_pretrained(folder.parent / "base_decoder", dtype=torch.float32).eval()
    tables = torch.load(folder / TABLES, weights_only=True)
    model.resize_token_embeddings(len(tables["model.embed_tokens.weight"]))
    state = model.state_dict()
    for name, tensor in tables.items():
        state[name].copy_(tensor)
    pairs = torch.load(folder / ADAPTERS, weights_only=True)[f"{role}_adapter"]
    for name in linears(state):
        if name != "lm_head":
            down, up = (pairs[f"{name}.lora_{each}.weight"].float() for each in "AB")
            state[f"{name}.weight"] += 2 * up @ down
    return model


def passages(checkpoint, texts=TEXTS, **settings):
    compression = CompressionConfig(**settings)
    return list(sent(checkpoint.passage_tokenizer(compression)).tokenize(texts))


@torch.inference_mode()
def expected_memory(folder, ids):
    model = merged(folder, "encoder").model
    return torch.cat([model(torch.tensor([each])).last_hidden_state[0, -4:] for each in ids])


class TestNumbers:
    @pytest.mark.parametrize("kind", ["mistral", "llama", "qwen2", "qwen3", "gemma2"])
    @pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
    def test_both_adapters_are_merged_and_share_the_base(self, tmp_path, kind, tied):
        folder = write_cocom(tmp_path, base={"kind": kind, "tie_word_embeddings": tied, "rows": 272})
        if tied:
            edit_pth(folder / TABLES, lambda state: state.pop("lm_head.weight", None) and state)
        ids = [document.passages[0] for document in passages(open_checkpoint(folder), on_long="truncate")]
        reference = merged(folder, "decoder")
        for order in ("compressor first", "decoder first"):
            checkpoint = open_checkpoint(folder)
            if order == "compressor first":
                compressor = Compressor.load(checkpoint, dtype=torch.float32)
                decoder = Decoder.load(checkpoint, dtype=torch.float32)
            else:
                decoder = Decoder.load(checkpoint, dtype=torch.float32)
                compressor = Compressor.load(checkpoint, dtype=torch.float32)
            memory = compressor.compress(ids)
            torch.testing.assert_close(memory.values, expected_memory(folder, ids), rtol=0, atol=1e-4)
            prompt = decoder.prompt_ids(QUESTION, memory.lengths)
            with torch.inference_mode():
                embedded = decoder.embed(prompt, memory)
                logits = reference(inputs_embeds=embedded[None]).logits[0]
            torch.testing.assert_close(decoder.logits(prompt, memory), logits, rtol=0, atol=2e-4)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
    def test_other_dtypes_on_disk(self, tmp_path, dtype):
        folder = write_cocom(tmp_path, dtype=dtype, base={"dtype": dtype})
        checkpoint = open_checkpoint(folder)
        ids = [document.passages[0] for document in passages(checkpoint, on_long="truncate")]
        memory = Compressor.load(checkpoint, dtype=torch.float32).compress(ids)
        torch.testing.assert_close(memory.values, expected_memory(folder, ids), rtol=0, atol=1e-4)
        assert Compressor.load(checkpoint).compress(ids).values.dtype == torch.bfloat16

    @pytest.mark.parametrize("pickled", [False, True], ids=["safetensors", "bin"])
    def test_a_base_in_shards(self, folder, pickled):
        base = folder.parent / "base_decoder"
        expected = open_checkpoint(folder).load_decoder(dtype=torch.float32).state_dict()
        state = load_file(base / "model.safetensors")
        (base / "model.safetensors").unlink()
        save_shards(base, state, 3, pickled=pickled)
        found = open_checkpoint(folder).load_decoder(dtype=torch.float32).state_dict()
        assert all(torch.equal(found[name], expected[name]) for name in expected)


class TestSharing:
    @pytest.mark.parametrize("first", ["compressor", "decoder"])
    def test_a_process_that_does_both_holds_the_base_once(self, tmp_path, first):
        folder = write_cocom(tmp_path, base={"width": 256, "intermediate_size": 1024})
        checkpoint = open_checkpoint(folder)
        load = {"compressor": Compressor.load, "decoder": Decoder.load}
        second = ({"compressor", "decoder"} - {first}).pop()
        made = {role: load[role](checkpoint, dtype=torch.float32) for role in (first, second)}
        gc.collect()
        own = held(made["decoder"].model)
        both = own | held(made["compressor"]._forward)
        assert sum(both.values()) < 1.1 * sum(own.values())

    def test_nothing_is_kept_alive(self, checkpoint):
        compressor = Compressor.load(checkpoint, dtype=torch.float32)
        assert checkpoint._shared.find(torch.float32, torch.device("cpu"))
        assert not checkpoint._shared.find(torch.bfloat16, torch.device("cpu"))
        del compressor
        gc.collect()
        assert not checkpoint._shared.find(torch.float32, torch.device("cpu"))

    def test_two_compressors_of_a_checkpoint_are_equal(self, checkpoint):
        ids = [document.passages[0] for document in passages(checkpoint, on_long="truncate")]
        first, second = (Compressor.load(checkpoint, dtype=torch.float32) for _ in range(2))
        assert torch.equal(first.compress(ids).values, second.compress(ids).values)
        assert held(first._forward) == held(second._forward)


def held(module):
    """Bytes of the storages that a module's parameters lie in."""
    storages = [parameter.untyped_storage() for parameter in module.parameters()]
    return {storage.data_ptr(): storage.nbytes() for storage in storages}


class TestPassages:
    def test_every_passage_has_the_same_number_of_vectors(self, checkpoint):
        tokenizer = checkpoint.decoder_tokenizer
        first, bos, eos = tokenizer.convert_tokens_to_ids(["<ENC>", "<s>", "</s>"])
        documents = passages(checkpoint, overlap=3)
        for text, document in zip(TEXTS, documents, strict=True):
            assert document.n_mem == 4 * len(document.passages)
            bodies = []
            for passage in document.passages:
                assert passage[:2] == [first, bos]
                assert passage[-4:] == list(checkpoint.memory_token_ids)
                assert passage[-5] == eos
                assert len(passage) <= 16 + 3 + 4
                bodies.append(tokenizer.decode(passage[2:-5]))
            assert bodies[0] + "".join(body[3:] for body in bodies[1:]) == text
        assert [len(document.passages) for document in documents] == [1, 1, 3, 1, 1, 2, 12]

    def test_a_truncated_passage_loses_its_eos(self, checkpoint):
        *_, fits, longer, longest = passages(checkpoint, on_long="truncate")
        eos = checkpoint.decoder_tokenizer.eos_token_id
        assert (fits.passages[0][18], fits.tokens_total, fits.tokens_fed) == (eos, 19, 19)
        for document in (longer, longest):
            assert eos not in document.passages[0]
            assert document.tokens_fed == 19 < document.tokens_total

    @pytest.mark.parametrize("settings", [{}, {"overlap": 5}, {"on_long": "truncate"}, {"max_length": 7}])
    def test_a_store_knows_its_counts_without_the_checkpoint(self, checkpoint, settings):
        documents = passages(checkpoint, **settings)
        components = checkpoint.identity | CompressionConfig(**settings).components
        bounds = memory_bounds_of(components)
        assert bounds is not None
        least, most = bounds(np.array([document.tokens_fed for document in documents]))
        assert least.tolist() == most.tolist() == [document.n_mem for document in documents]

    def test_a_repeated_title_stands_in_every_passage(self, checkpoint):
        tokenizer = checkpoint.passage_tokenizer(CompressionConfig())
        (document,) = tokenizer.tokenize(["T: " + "x" * 40], ["T: "])
        decoded = [checkpoint.decoder_tokenizer.decode(passage[2:-5]) for passage in document.passages]
        assert all(text.startswith("T: ") for text in decoded)
        assert "".join(text.removeprefix("T: ") for text in decoded) == "x" * 40

    def test_settings_without_room(self, checkpoint):
        with pytest.raises(ConfigError, match="16 tokens of text, which must be more than the overlap 20"):
            checkpoint.passage_tokenizer(CompressionConfig(overlap=20))

    def test_special_tokens_in_texts_and_questions_are_broken_up(self, checkpoint):
        ids = checkpoint.decoder_tokenizer.convert_tokens_to_ids(["<MEM0>", "<SEP>", "</s>", "<ENC>"])
        (document,) = passages(checkpoint, ["<MEM0><SEP></s>"], on_long="truncate")
        assert [document.passages[0].count(each) for each in ids] == [1, 0, 0, 1]
        decoder = Decoder.load(checkpoint, dtype=torch.float32)
        prompt = decoder.prompt_ids("<MEM0> <SEP>?", [4])
        assert [prompt.count(each) for each in ids[:2]] == [1, 1]

    def test_a_question_takes_room_beyond_the_documents(self, checkpoint):
        (document,) = checkpoint.query_passages("Who?", ["x" * 200], CompressionConfig())
        assert document.tokens_fed == 16 + 64 + 8
        with pytest.raises(PromptError, match="the compressor takes 88 tokens, and the question has 108"):
            checkpoint.query_passages("x" * 88, ["a"], CompressionConfig())


class TestPrompt:
    def test_chunks_have_a_separator_each(self, checkpoint):
        text = checkpoint.prompt("Q", [4, 8])
        slots = "<MEM0><MEM1><MEM2><MEM3><SEP>"
        assert text.count(slots) == 3
        assert f"Background:\n{3 * slots}\n\nQuestion:Q" in text
        with pytest.raises(PromptError, match="has 6 vectors, which are no passages of 4"):
            checkpoint.prompt("Q", [6])

    def test_a_template_may_refuse_a_system_turn(self, tmp_path):
        checkpoint = open_checkpoint(write_cocom(tmp_path, base={"chat": CHAT_WITHOUT_SYSTEM}))
        assert checkpoint.prompt("Q", []).startswith("<s>[INST] You are a helpful")
        assert "as briefly as possible.\nBackground:\n\n\nQuestion:Q [/INST]" in checkpoint.prompt("Q", [])
        assert checkpoint.describe()["prompt"]["system_role"].startswith("refused")

    def test_one_memory_token_may_stand_for_all(self, tmp_path):
        checkpoint = open_checkpoint(write_cocom(tmp_path, different=False, kbtc=True))
        assert checkpoint.prompt("Q", [8]).count("<MEM>" * 4 + "<SEP>") == 2
        assert checkpoint.decoder_tokenizer.convert_tokens_to_ids(["<MEM>", "<KBTC>"]) == [258, 262]
        ids = [document.passages[0] for document in passages(checkpoint, on_long="truncate")]
        memory = Compressor.load(checkpoint, dtype=torch.float32).compress(ids)
        torch.testing.assert_close(memory.values, expected_memory(checkpoint.path, ids), rtol=0, atol=1e-4)

    def test_generation_settings_are_the_base_s(self, tmp_path):
        settings = {"eos_token_id": [257, 5], "repetition_penalty": 1.7, "do_sample": True}
        folder = write_cocom(tmp_path, base={"generation": settings})
        checkpoint = open_checkpoint(folder)
        assert checkpoint.generation.stop_token_ids == (257, 5)
        assert Decoder.load(checkpoint).generation.repetition_penalty == 1.7
        assert Decoder.load(checkpoint, repetition_penalty=1.0).generation.repetition_penalty == 1
        for bad in ({"repetition_penalty": "x"}, {"repetition_penalty": 0}, {"eos_token_id": "</s>"}):
            (folder.parent / "base_decoder" / "generation_config.json").write_text(json.dumps(bad))
            with pytest.raises(CheckpointError, match=f"generation_config.json: {next(iter(bad))} is"):
                _ = open_checkpoint(folder).generation


class TestIdentity:
    def test_memory_belongs_to_the_checkpoint(self, tmp_path, checkpoint):
        other = open_checkpoint(write_cocom(tmp_path, seed=1))
        assert other.memory_digest != checkpoint.memory_digest == checkpoint.identity["connector"]
        memory = Compressor.load(other, dtype=torch.float32).compress([passages(other)[0].passages[0]])
        decoder = Decoder.load(checkpoint, dtype=torch.float32)
        with pytest.raises(FingerprintMismatchError):
            decoder.embed(decoder.prompt_ids("Q", memory.lengths), memory)

    def test_a_changed_base_is_another_identity(self, folder):
        before = open_checkpoint(folder).identity
        path = folder.parent / "base_decoder" / "model.safetensors"
        state = load_file(path)
        state["model.norm.weight"][0] += 1
        save_file(state, path, {"format": "pt"})
        after = open_checkpoint(folder).identity
        assert {name for name in before if before[name] != after[name]} == {"base", "connector"}

    def test_memory_of_an_older_store_is_its_own(self, folder, checkpoint):
        """Stores of versions that hashed files carry the digest of these."""
        older = checkpoint.file_identity
        assert older.keys() == checkpoint.identity.keys() - {"base_config", "base_tokenizer"}
        assert identity_as_stored(checkpoint, older) == older
        assert older["connector"] != checkpoint.memory_digest
        assert checkpoint.owns_memory(older["connector"])
        assert not checkpoint.owns_memory("another")

    def test_a_base_that_was_saved_again_is_the_same(self, folder):
        before = open_checkpoint(folder).identity
        base = folder.parent / "base_decoder"
        state = load_file(base / "model.safetensors")
        (base / "model.safetensors").unlink()
        save_shards(base, state, 2)
        (base / "config.json").write_text(
            json.dumps(json.loads((base / "config.json").read_text()) | {"transformers_version": "4.40.0"})
        )
        assert open_checkpoint(folder).identity == before

    def test_stages(self, checkpoint):
        assert checkpoint.connector is None
        assert checkpoint.stages == ("embedding",)
        assert checkpoint.memory_dim("embedding") == 32
        with pytest.raises(ConfigError, match="at the stage embedding only"):
            checkpoint.memory_dim("hidden")
        with pytest.raises(ValueError, match="embedding"):
            Compressor.load(checkpoint).compress([[1, 2]], stage="hidden")

    def test_the_description(self, checkpoint):
        described = checkpoint.describe()
        assert described["memory"] | {"width": 32, "vectors": 4} == described["memory"]
        assert described["generation"] == {"stop_tokens": ["</s>"], "repetition_penalty": 1.0}
        json.dumps(described)


def drop(key):
    return lambda state: {name: value for name, value in state.items() if name != key}


def replace(key, value):
    return lambda state: state | {key: value}


def in_group(change):
    return lambda state: {name: change(group) for name, group in state.items()}


class TestRefusals:
    @pytest.mark.parametrize(
        ("file", "change", "message"),
        [
            (ADAPTERS, drop("encoder_adapter"), "expected decoder_adapter and encoder_adapter, found decoder_adapter"),
            (ADAPTERS, replace("third", {}), None),
            (ADAPTERS, replace("third", {"a": torch.zeros(1)}), "found decoder_adapter, encoder_adapter, third"),
            (ADAPTERS, replace("third", torch.zeros(1)), "expected decoder_adapter and encoder_adapter"),
            (ADAPTERS, in_group(drop(f"{LAYER}.lora_B.weight")), f"{LAYER}.lora_A.weight has no partner"),
            (ADAPTERS, in_group(drop(f"{LAYER}.lora_A.weight")), f"no place, the first: {LAYER}.lora_B.weight"),
            (
                ADAPTERS,
                in_group(lambda group: {n: t for n, t in group.items() if LAYER not in n}),
                "1 linear layers have no LoRA pair, the first: layers.1.mlp.up_proj",
            ),
            (ADAPTERS, in_group(replace(f"{LAYER}.lora_A.weight", torch.zeros(2, 33))), "layers.1.mlp.up_proj is"),
            (ADAPTERS, in_group(replace(f"{LAYER}.lora_A.weight", torch.zeros(3, 32))), r"the pair of .* is \(48, 2\)"),
            (ADAPTERS, in_group(replace("extra.weight", torch.zeros(3))), "no place, the first: extra.weight"),
            (ADAPTERS, in_group(replace(f"{LAYER}.lora_A.weight", torch.full((2, 32), torch.nan))), "not finite"),
            (
                ADAPTERS,
                in_group(lambda g: {n.replace("layers.2", "layers.3"): t for n, t in g.items()}),
                "no linear layer layers.3",
            ),
            (TABLES, drop("model.embed_tokens.weight"), "expected model.embed_tokens.weight and lm_head.weight"),
            (TABLES, drop("lm_head.weight"), "lacks lm_head.weight, and the base decoder's head is not tied"),
            (TABLES, replace("model.norm.weight", torch.zeros(32)), "expected model.embed_tokens.weight"),
            (TABLES, replace("lm_head.weight", torch.zeros(264, 32)), "the same shape"),
            (
                TABLES,
                lambda state: {n: t[:-1].clone() for n, t in state.items()},
                "has 264 rows, but the tokenizer of .* has 258 tokens and the checkpoint adds 7: 265",
            ),
            (TABLES, lambda state: {n: t[:, :-1].clone() for n, t in state.items()}, "has the width 31, the base"),
        ],
    )
    def test_each_tensor_is_used_once(self, folder, file, change, message):
        edit_pth(folder / file, change)
        if message is None:
            message = "expected decoder_adapter"
            edit_pth(folder / file, replace("third", {"x": torch.zeros(1)}))
        for load in (Compressor.load, Decoder.load):
            with pytest.raises(CheckpointError, match=message) as error:
                load(open_checkpoint(folder))
            assert str(folder) in str(error.value)
            assert "\n" not in str(error.value)

    def test_shapes_are_checked_before_the_base_is_read(self, folder, monkeypatch):
        edit_pth(folder / ADAPTERS, in_group(drop(f"{LAYER}.lora_B.weight")))
        monkeypatch.setattr("pisco_index.model.families.cocom.load_model", lambda *_, **__: pytest.fail("it was read"))
        with pytest.raises(CheckpointError, match="no partner"):
            Compressor.load(open_checkpoint(folder))

    @pytest.mark.parametrize(
        ("values", "message"),
        [
            ({"lora_r": 3}, "has rank 2; config.json says 3"),
            ({"sep": False}, "sep: Input should be True"),
            ({"lora": False}, "lora: Input should be True"),
            ({"compr_rate": 0}, "compr_rate: "),
            ({"compr_rate": 32}, "compr_rate 32 is larger than doc_max_length 16"),
            ({"compr_rate": 8}, "the checkpoint adds 5: 263"),
            ({"kbtc_training": True}, "the checkpoint adds 8: 266"),
            ({"decoder_model_name": None}, "decoder_model_name: "),
        ],
    )
    def test_the_configuration_fits(self, folder, values, message):
        edit_config(folder, **values)
        with pytest.raises(CheckpointError, match=message):
            open_checkpoint(folder).check()

    def test_copies_of_a_newer_peft_and_stale_shards_are_ignored(self, folder):
        expected = open_checkpoint(folder).load_compressor(dtype=torch.float32).state_dict()
        tables = torch.load(folder / TABLES, weights_only=True)
        edit_pth(folder / ADAPTERS, in_group(lambda group: group | tables))
        (folder / "model-00001-of-00002.safetensors").write_bytes(b"stale")
        found = open_checkpoint(folder).load_compressor(dtype=torch.float32).state_dict()
        assert all(torch.equal(found[name], expected[name]) for name in expected)

    def test_a_missing_base_is_named_with_its_flag(self, folder):
        edit_config(folder, decoder_model_name="someone/their-base")
        with pytest.raises(CheckpointError, match=r"base decoder: someone/their-base: .*--decoder-base"):
            Compressor.load(open_checkpoint(folder))
        given = open_checkpoint(folder, decoder_base=str(folder.parent / "base_decoder"))
        assert given.load_compressor(dtype=torch.float32) is not None

    def test_another_base_is_refused(self, folder, tmp_path):
        other = write_cocom(tmp_path / "other", base={"width": 40})
        with pytest.raises(CheckpointError, match="has the width 32, the base decoder 40"):
            Compressor.load(open_checkpoint(folder, decoder_base=str(other.parent / "base_decoder")))

    def test_a_base_with_weights_left_over_is_refused(self, folder):
        path = folder.parent / "base_decoder" / "model.safetensors"
        save_file(load_file(path) | {"model.extra.weight": torch.zeros(2)}, path, {"format": "pt"})
        with pytest.raises(CheckpointError, match=r"1 weights have no place, the first: model\.extra\.weight"):
            Compressor.load(open_checkpoint(folder))

    @pytest.mark.parametrize("missing", [ADAPTERS, TABLES])
    def test_a_missing_file_is_named(self, folder, missing):
        (folder / missing).unlink()
        with pytest.raises(CheckpointError, match=f"not a complete cocom checkpoint, missing {missing}"):
            open_checkpoint(folder)

    def test_a_family_that_is_unknown(self, folder):
        edit_config(folder, model_type="xRAG")
        with pytest.raises(CheckpointError, match="model_type is 'xRAG', and its keys fit no family"):
            open_checkpoint(folder)

    def test_a_tokenizer_that_has_the_tokens_already(self, folder):
        tokenizer = open_checkpoint(folder).decoder_tokenizer
        tokenizer.save_pretrained(folder.parent / "base_decoder")
        with pytest.raises(CheckpointError, match="has the token <MEM0> already"):
            open_checkpoint(folder).check()


def test_a_snapshot_of_the_hub_cache(folder, tmp_path):
    """In the cache, files are links to blobs beside the snapshots."""
    home = tmp_path / "models--someone--cocom"
    snapshot = home / "snapshots" / "0123"
    (home / "blobs").mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for number, path in enumerate(sorted(folder.iterdir())):
        shutil.copy(path, home / "blobs" / str(number))
        (snapshot / path.name).symlink_to(f"../../blobs/{number}")
    base = str(folder.parent / "base_decoder")
    checkpoint = open_checkpoint(snapshot, decoder_base=base)
    assert checkpoint.identity["adapters"] == open_checkpoint(folder).identity["adapters"]
    assert Compressor.load(checkpoint).compress([passages(checkpoint)[0].passages[0]]).values.shape == (4, 32)
    (snapshot / "secret").symlink_to("/etc/passwd")
    with pytest.raises(CheckpointError, match="a link out of"):
        open_checkpoint(snapshot)
