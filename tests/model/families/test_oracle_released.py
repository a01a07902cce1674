"""Agreement with what the reference implementations compute on tiny checkpoints in the layouts of the released ones."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import pisco_index
from pisco_index import Compressor, Decoder, open_checkpoint
from pisco_index.configs import CompressionConfig
from pisco_index.model.families.cocom_v1 import CocomV1Checkpoint
from pisco_index.model.forward.packing import Passages

SHARED = Path(pisco_index.__file__).parents[1] / "shared"
ORACLE = SHARED / "oracle_released"
STORED = [
    "oracle_cocom_mistral",
    "oracle_cocom_llama",
    "oracle_cocomv1_16",
    "oracle_cocomv1_4",
    "oracle_cocomv1_light16",
]
FOR_QUESTIONS = ["oracle_oscar_llama_mlp", "oracle_oscar_trimmed", "oracle_oscar2026"]
FAMILIES = {"cocom-v1-light": "cocom-v1"}
WIDE = CompressionConfig(on_long="truncate")
MEMORY, LOGITS, LOSS, MARGIN = 1e-4, 2e-4, 1e-4, 1e-3

pytestmark = pytest.mark.skipif(
    not ORACLE.is_dir(), reason="the references' outputs (../shared/oracle_released) are not here"
)


class Folder:
    """A folder of the oracle, its checkpoint, and our models of it in fp32."""

    def __init__(self, name):
        self.name = name
        self.expected = json.loads((ORACLE / name / "oracle.json").read_text())
        self.numbers = dict(np.load(ORACLE / name / "oracle.npz"))
        own = ORACLE / name / "ckpt"
        self.path = own if own.is_dir() else SHARED / "oracle" / "ckpt"
        self.checkpoint = open_checkpoint(self.path)
        self.compressor = Compressor.load(self.checkpoint, dtype=torch.float32)
        self.decoder = Decoder.load(self.checkpoint, dtype=torch.float32)
        length = self.expected.get("compressor_max_length", 512)
        self.compression = CompressionConfig(on_long="truncate", max_length=length)

    def ids(self, texts, compression=None):
        tokenizer = self.checkpoint.passage_tokenizer(compression or self.compression)
        return [passage for document in tokenizer.tokenize(texts) for passage in document.passages]

    def pair_ids(self, pairs, checkpoint=None):
        checkpoint = checkpoint or self.checkpoint
        made = (checkpoint.query_passages(pair["query"], [pair["text"]], self.compression) for pair in pairs)
        return [document.passages[0] for (document,) in made]

    def memory(self, case):
        """The memory that answers a case."""
        docs = case["docs"][: self.expected.get("topk_docs")]
        if self.name in STORED:
            return self.compressor.compress(self.ids(docs))
        pairs = [{"query": case["query"], "text": text} for text in docs]
        return self.compressor.compress(self.pair_ids(pairs), stage="embedding")

    def agrees(self, key, values, tolerance=MEMORY):
        reference = self.numbers[key]
        np.testing.assert_allclose(values.float().numpy().reshape(reference.shape), reference, rtol=0, atol=tolerance)


@pytest.fixture(scope="module", params=[*STORED, *FOR_QUESTIONS])
def folder(request):
    return Folder(request.param)


def passages_of(folder):
    if folder.name in STORED:
        return folder.ids(folder.expected["docs"])
    return folder.pair_ids(folder.expected["pairs"])


def test_the_family_is_recognised(folder):
    expected, checkpoint = folder.expected, folder.checkpoint
    assert checkpoint.family == FAMILIES.get(expected["family"], expected["family"])
    assert checkpoint.rate == expected["compr_rate"]
    assert checkpoint.is_query_dependent == (checkpoint.family == "oscar")
    assert checkpoint.describe()["family"] == checkpoint.family
    if checkpoint.family == "pisco":
        return
    tokenizer = checkpoint.decoder_tokenizer
    assert tokenizer.convert_tokens_to_ids(list(expected["decoder_tokens"])) == list(
        expected["decoder_tokens"].values()
    )
    assert len(tokenizer) == expected["decoder_vocab"]
    assert tokenizer.pad_token_id == expected["decoder_pad_id"]
    mem_ids = expected.get("mem_ids") or [expected["mem_id"]]
    assert sorted(set(tokenizer.convert_tokens_to_ids(list(checkpoint.prompt.memory_tokens)))) == mem_ids
    assert tokenizer.convert_tokens_to_ids("<SEP>") == expected["sep_id"]
    if "compressor_vocab" in expected:
        compressor = checkpoint.compressor_tokenizer
        assert list(checkpoint.memory_token_ids) == expected["compressor_mem_ids"]
        assert len(compressor) == expected["compressor_vocab"]
        assert compressor.pad_token_id == expected["compressor_pad_id"]
    if "generation" in expected:
        stops, settings = expected["generation"]["eos_token_id"], checkpoint.generation
        assert list(settings.stop_token_ids) == (stops if isinstance(stops, list) else [stops])
        assert settings.repetition_penalty == expected["generation"].get("repetition_penalty", 1.0)


def test_ids_agree(folder):
    expected = folder.expected
    assert passages_of(folder) == expected["input_ids"]
    if "with_query" in expected:
        assert folder.pair_ids(expected["with_query"]["pairs"]) == expected["with_query"]["input_ids"]
    if "without_query" in expected:
        assert folder.ids(expected["without_query"]["texts"]) == expected["without_query"]["input_ids"]
    if "query_extra_0" in expected:
        pairs = [expected["pairs"][i] for i in expected["query_extra_0"]["pair_index"]]
        checkpoint = open_checkpoint(folder.path, query_extra=0)
        assert folder.pair_ids(pairs, checkpoint) == expected["query_extra_0"]["input_ids"]
    if "compressor_text" in expected:
        plain = folder.checkpoint.compressor_tokenizer(expected["compressor_text"])["input_ids"]
        lengths = [min(len(ids), expected["compressor_max_length"]) for ids in plain]
        assert [ids[:n] for ids, n in zip(plain, lengths, strict=True)] == [
            ids[:n] for ids, n in zip(passages_of(folder), lengths, strict=True)
        ]


@pytest.mark.parametrize("whole_last_layer", [False, True], ids=["memory-tokens-only", "whole-last-layer"])
def test_memory_agrees(folder, whole_last_layer):
    expected, numbers = folder.expected, folder.numbers
    compressor = Compressor.load(folder.checkpoint, dtype=torch.float32, whole_last_layer=whole_last_layer)
    memory = compressor.compress(expected["input_ids"], stage="embedding")
    folder.agrees("memory", memory.values)
    counts = expected["n_mem"]
    assert list(memory.lengths) == (counts if isinstance(counts, list) else [counts] * len(memory))
    assert memory.connector == folder.checkpoint.memory_digest
    if "offsets" in numbers:
        assert list(memory.lengths) == np.diff(numbers["offsets"]).tolist()
    if "before_projection" in numbers:
        folder.agrees("before_projection", compressor.compress(expected["input_ids"]).values)
    for key in ("with_query", "without_query", "query_extra_0"):
        if key in expected:
            made = compressor.compress(expected[key]["input_ids"], stage="embedding")
            folder.agrees(f"memory_{key}", made.values)


@pytest.mark.parametrize("folder", ["oracle_cocomv1_light16"], indirect=True)
def test_grouped_states_agree(folder):
    forward = folder.compressor._forward
    batches = []
    for ids, mask in zip(folder.expected["input_ids"], folder.expected["attention_mask"], strict=True):
        pad = folder.checkpoint.compressor_tokenizer.pad_token_id
        assert [int(token != pad) for token in ids] == mask
        packed = folder.compressor._pack(Passages.of([ids]), np.array([0]), 0)
        batches.append(forward.grouped(packed))
    folder.agrees("grouped", torch.cat(batches))


def test_memory_in_bf16_is_near(folder):
    compressor = Compressor.load(folder.checkpoint)
    memory = compressor.compress(folder.expected["input_ids"], stage="embedding").values.float()
    reference = torch.from_numpy(folder.numbers["memory"]).view(memory.shape)
    assert torch.cosine_similarity(memory, reference, dim=-1).min() >= 0.999


def test_prompts_and_first_logits_agree(folder):
    for index, case in enumerate(folder.expected["cases"]):
        memory = folder.memory(case)
        if "prompt" in case:
            assert folder.decoder._prompt(case["query"], memory.lengths) == case["prompt"]
        ids = folder.decoder.prompt_ids(case["query"], memory.lengths)
        assert ids == case["prompt_ids"]
        first = folder.decoder.logits(ids, memory)[-1].numpy()
        np.testing.assert_allclose(first, folder.numbers["first_logits"][index], rtol=0, atol=LOGITS)


@pytest.mark.parametrize("folder", [name for name in STORED if "cocomv1" in name], indirect=True)
def test_first_logits_of_a_prompt_with_one_bos_agree(folder):
    checkpoint = CocomV1Checkpoint(folder.path, has_two_bos=False)
    decoder = Decoder.load(checkpoint, dtype=torch.float32)
    for index, case in enumerate(folder.expected["cases"]):
        memory = folder.memory(case)
        ids = decoder.prompt_ids(case["query"], memory.lengths)
        assert ids == case["prompt_ids"][1:]
        first = decoder.logits(ids, memory)[-1].numpy()
        np.testing.assert_allclose(first, folder.numbers["first_logits_one_bos"][index], rtol=0, atol=LOGITS)


@pytest.mark.parametrize("together", [False, True], ids=["one-by-one", "in-a-batch"])
def test_greedy_answers_agree(folder, together):
    check_greedy_answers(folder, together, suffix="", penalty=None)


@pytest.mark.parametrize("together", [False, True], ids=["one-by-one", "in-a-batch"])
@pytest.mark.parametrize("folder", ["oracle_oscar_llama_mlp"], indirect=True)
def test_greedy_answers_without_the_repetition_penalty_agree(folder, together):
    check_greedy_answers(folder, together, suffix="_plain", penalty=1.0)


def check_greedy_answers(folder, together, *, suffix, penalty):
    cases = folder.expected["cases"]
    options = {"max_new_tokens": folder.expected["max_new_tokens"], "repetition_penalty": penalty}
    given = [folder.memory(case) for case in cases]
    prompts = [case["prompt_ids"] for case in cases]
    if together:
        found = folder.decoder.generate(prompts, given, **options)
    else:
        found = [folder.decoder.generate([p], [m], **options)[0] for p, m in zip(prompts, given, strict=True)]
    for case, ids in zip(cases, found, strict=True):
        reference, margins = case[f"greedy_ids{suffix}"], case.get(f"margins{suffix}", [])
        sure = next((step for step, margin in enumerate(margins) if margin < MARGIN), len(reference))
        assert ids[:sure] == reference[:sure]
        if sure == len(reference):
            assert ids == reference
            if "answer" in case and not suffix:
                assert folder.decoder.tokenizer.decode(ids, skip_special_tokens=True) == case["answer"]


def test_losses_agree(folder):
    for each in folder.expected.get("loss", []):
        case = folder.expected["cases"][each["case"]]
        ids, labels = case["prompt_ids"], each["label_ids"]
        loss = folder.decoder.loss(ids + labels, [-100] * len(ids) + labels, folder.memory(case))
        assert float(loss) == pytest.approx(each["loss"], abs=LOSS)


@pytest.mark.parametrize("folder", ["oracle_cocomv1_16", "oracle_cocomv1_4"], indirect=True)
def test_memory_before_the_text_would_ignore_it(folder):
    """The released entry of family "cocom-v1" puts memory tokens first, and its vectors are the same for all texts."""
    memory = folder.compressor.compress(folder.expected["released_entry_prepends"]["input_ids"])
    first, second = memory
    common = min(len(first), len(second))
    assert torch.allclose(first[:common], second[:common], rtol=0, atol=1e-5)
