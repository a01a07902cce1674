"""Agreement with the outputs of a reference implementation."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from pisco_index import Compressor, Decoder, Memory, open_checkpoint
from pisco_index.model.passages import PassageTokenizer

ORACLE = Path(__file__).parents[3] / "shared" / "oracle"
pytestmark = pytest.mark.skipif(not ORACLE.is_dir(), reason="the reference's outputs (../shared/oracle) are not here")


@pytest.fixture(scope="module")
def expected():
    return json.loads((ORACLE / "compress_oracle.json").read_text()) | dict(np.load(ORACLE / "compress_oracle.npz"))


@pytest.fixture(scope="module")
def dialogues():
    return json.loads((ORACLE / "generate_oracle.json").read_text())


@pytest.fixture(scope="module")
def checkpoint():
    return open_checkpoint(ORACLE / "ckpt")


@pytest.fixture(scope="module", params=[False, True], ids=["memory-tokens-only", "whole-last-layer"])
def whole_last_layer(request):
    return request.param


@pytest.fixture(scope="module")
def compressor(checkpoint, whole_last_layer):
    return Compressor.load(checkpoint, dtype=torch.float32, whole_last_layer=whole_last_layer)


@pytest.fixture(scope="module")
def decoder(checkpoint):
    return Decoder.load(checkpoint, dtype=torch.float32)


def tokenize(checkpoint, texts, max_length):
    tokenizer = PassageTokenizer(
        checkpoint.compressor_tokenizer, rate=checkpoint.rate, max_length=max_length, on_long="truncate"
    )
    return list(tokenizer.tokenize(texts))


def bf16(bits):
    return torch.from_numpy(bits.view(np.int16).copy()).view(torch.bfloat16).float()


def test_ids_and_memory_lengths_agree(checkpoint, expected):
    documents = tokenize(checkpoint, expected["docs"], 512)
    assert [list(d.passages[0]) for d in documents] == expected["input_ids"]
    assert [d.n_mem for d in documents] == expected["n_mem"]


def test_ids_truncated_at_128_agree(checkpoint, expected):
    indices = [int(i) for i in expected["input_ids_max128"]]
    documents = tokenize(checkpoint, [expected["docs"][i] for i in indices], 128)
    assert [list(d.passages[0]) for d in documents] == list(expected["input_ids_max128"].values())
    assert all(d.tokens_total > d.tokens_fed == 128 for d in documents)


@pytest.mark.parametrize("stage", ["hidden", "embedding"])
def test_memory_agrees_in_fp32(compressor, expected, stage):
    memory = compressor.compress(expected["input_ids"], stage=stage)
    reference = expected["hidden_fp32" if stage == "hidden" else "emb_fp32"]
    assert list(memory.lengths) == np.diff(expected["offsets"]).tolist()
    np.testing.assert_allclose(memory.values.numpy(), reference, rtol=0, atol=1e-5)


def test_memory_truncated_at_128_agrees(compressor, checkpoint, expected):
    documents = tokenize(checkpoint, [expected["docs"][i] for i in expected["long_index"]], 128)
    memory = compressor.compress([d.passages[0] for d in documents], stage="embedding")
    assert list(memory.lengths) == np.diff(expected["offsets128"]).tolist()
    np.testing.assert_allclose(memory.values.numpy(), expected["emb128_fp32"], rtol=0, atol=1e-5)


def test_memory_tokens_in_the_middle_of_the_ids_agree(compressor, expected):
    memory = compressor.compress([expected["midtext"]["input_ids"]], stage="embedding")
    np.testing.assert_allclose(memory.values.numpy(), expected["midtext"]["emb_fp32"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("stage", ["hidden", "embedding"])
def test_memory_agrees_in_bf16(checkpoint, expected, whole_last_layer, stage):
    compressor = Compressor.load(checkpoint, dtype=torch.bfloat16, whole_last_layer=whole_last_layer)
    memory = compressor.compress(expected["input_ids"], stage=stage)
    reference = bf16(expected["hidden_bf16_bits" if stage == "hidden" else "emb_bf16_bits"])
    assert torch.cosine_similarity(memory.values.float(), reference).min() >= 0.999


@pytest.fixture(scope="module")
def memories(checkpoint, expected):
    memory = Compressor.load(checkpoint, dtype=torch.float32).compress(expected["input_ids"])
    return lambda pair: memory.select(pair["doc_index"][: pair.get("topk_docs", 5)])


@pytest.mark.parametrize(("style", "answer"), [("collator", ""), ("genprompt", None)])
def test_prompts_agree(decoder, dialogues, memories, style, answer):
    for pair in dialogues["pairs"]:
        ids = decoder.prompt_ids(pair["query"], memories(pair).lengths, answer=answer)
        assert ids == pair[f"decoder_input_ids_{style}"]


def test_first_logits_agree(decoder, dialogues, memories):
    reference = np.load(ORACLE / "generate_first_logits.npz")["first_logits_fp32"]
    ours = [
        decoder.logits(pair[f"decoder_input_ids_{style}"], memories(pair))[-1].numpy()
        for pair in dialogues["pairs"]
        for style in ("collator", "genprompt")
    ]
    np.testing.assert_allclose(np.stack(ours), reference, rtol=0, atol=1e-4)


@pytest.mark.parametrize("style", ["collator", "genprompt"])
@pytest.mark.parametrize("together", [False, True], ids=["one-by-one", "in-a-batch"])
def test_greedy_answers_agree(decoder, dialogues, memories, style, together):
    pairs = dialogues["pairs"]
    prompts = [pair[f"decoder_input_ids_{style}"] for pair in pairs]
    given = [memories(pair) for pair in pairs]
    if together:
        answers = decoder.generate(prompts, given, max_new_tokens=24)
    else:
        answers = [decoder.generate([p], [m], max_new_tokens=24)[0] for p, m in zip(prompts, given, strict=True)]
    assert answers == [pair[f"{style}_fp32"]["ids"] for pair in pairs]


def test_losses_agree(decoder, dialogues, memories):
    for pair in dialogues["loss"]:
        memory: Memory = memories(pair)
        loss = decoder.loss(pair["decoder_input_ids"], pair["labels"], memory)
        # The reference states no gate for its losses; ours differ by up to 2.6e-4 of the value.
        assert float(loss) == pytest.approx(pair["loss_fp32"], rel=3e-4)
        ids = decoder.prompt_ids(pair["query"], memory.lengths, answer=pair["label"])
        assert ids == pair["decoder_input_ids"]
