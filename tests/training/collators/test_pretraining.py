"""Auto-encoding and continuation: what a prompt reads, which text it learns, and which texts are too short."""

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from pisco_index.configs import CompressionConfig
from pisco_index.model.passages import clean_text
from pisco_index.training.collators import Autoencoding, Continuation, Pretraining, TooShortError

TEXT = "the river of the city was there before the people made the first war and the second team " * 6
PLAIN = CompressionConfig(max_length=32)


@pytest.mark.parametrize(("text", "passages"), [(TEXT[:90], 1), ("é <MEM> ü", 1), ("the", 1), (TEXT, 4)])
def test_autoencoding_restores_the_text_from_its_memory(tiny, learned_text, memory_counts, text, passages):
    collator = Autoencoding(tiny, PLAIN, windows=[1000])
    batch = collator([{"text": text}])
    clean = text.replace("<MEM>", "< MEM >")
    assert learned_text(batch["labels"][0]) == clean + "<|im_end|>"
    prompt = tiny.decoder_tokenizer.decode(batch["input_ids"][0][batch["labels"][0] < 0])
    taken, given = memory_counts(collator, batch)
    assert prompt == "<MEM>" * taken + "<AE>"
    assert taken == given
    assert len(batch["passages"]) >= passages
    read = batch["passages"][batch["passage_mask"]].tolist()
    assert tiny.compressor_tokenizer.decode(read).replace("<MEM>", "") == clean


def test_a_title_is_restored_as_it_is_compressed(tiny, learned_text):
    batch = Autoencoding(tiny, PLAIN, windows=[1000])([{"title": "Rivers", "text": "the north"}])
    assert learned_text(batch["labels"][0]) == "Rivers\nthe north<|im_end|>"


@pytest.mark.parametrize("collator", [Autoencoding, Continuation])
def test_titles_are_repeated_as_in_a_build(tiny, collator):
    compression = CompressionConfig(max_length=12, template="{title}: {text}", repeat_title=True)
    learned = collator(tiny, compression, windows=[2000])
    heading = tiny.compressor_tokenizer("the river: ", add_special_tokens=False)["input_ids"][:6]
    samples = [learned.sample({"title": "the river", "text": TEXT}) for _ in range(9)]
    further = [ids for sample in samples for ids in sample.passages[1:]]
    assert len(further) > 9
    assert all(list(ids[: len(heading)]) == heading for ids in further)


def test_a_window_is_a_random_piece_and_drawn_for_each_batch(tiny):
    collator = Autoencoding(tiny, PLAIN, windows=[8, 24])
    sizes, beginnings = set(), set()
    for _ in range(30):
        batch = collator([{"text": TEXT}] * 3)
        lengths = [int((row >= 0).sum()) - 1 for row in batch["labels"]]
        sizes.add(collator.window)
        assert max(lengths) <= collator.window + 3
        for row in batch["labels"]:
            piece = tiny.decoder_tokenizer.decode(row[row >= 0]).removesuffix("<|im_end|>")
            assert piece in TEXT
            beginnings.add(TEXT.index(piece))
    assert sizes == {8, 24}
    assert len(beginnings) > 10


def test_a_continuation_has_three_pieces_that_make_the_window(tiny):
    collator = Continuation(tiny, PLAIN, windows=[20])
    for _ in range(20):
        sample = collator.sample({"text": TEXT})
        labels = [label for label in sample.labels if label >= 0]
        decoder = tiny.decoder_tokenizer
        before, _, after = decoder.decode(sample.input_ids).partition("<MEM>")
        middle = "".join(map(tiny.compressor_tokenizer.decode, sample.passages)).replace("<MEM>", "")
        after = after.replace("<MEM>", "")
        assert before
        assert middle
        assert decoder.decode(labels) == after
        assert before + middle + after in TEXT
        assert abs(len(decoder(before + middle + after)["input_ids"]) - 20) <= 2


@pytest.mark.parametrize("ratio", [0.0, 0.3, 1.0])
def test_the_share_of_autoencoding_is_as_configured(tiny, ratio):
    collator = Pretraining(tiny, PLAIN, ratio=ratio, windows=[16])
    restored = sum(
        int((collator([{"text": TEXT}] * 4)["input_ids"] == collator.autoencoding.autoencoding_id).sum())
        for _ in range(40)
    )
    assert abs(restored / 160 - ratio) < 0.12


def test_both_tasks_of_a_batch_have_one_window(tiny):
    collator = Pretraining(tiny, PLAIN, ratio=0.0, windows=[8, 24])
    drawn = set()
    for _ in range(20):
        collator([{"text": TEXT}])
        assert collator.continuation.window == collator.autoencoding.window
        drawn.add(collator.continuation.window)
    assert drawn == {8, 24}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("t", "the text has 1 tokens, but a text to be continued needs 3"),
        # Three bytes of one character are three tokens.
        ("河", "a piece adds no character"),
    ],
)
def test_a_text_too_short_to_be_continued_is_restored(tiny, text, message):
    with pytest.raises(TooShortError, match=message):
        Continuation(tiny, PLAIN, windows=[16]).sample({"text": text})
    collator = Pretraining(tiny, PLAIN, ratio=0.0, windows=[16])
    assert collator.autoencoding.autoencoding_id in collator.sample({"text": text}).input_ids


@given(text=st.text(min_size=1).filter(str.strip), seed=st.integers(0, 99), window=st.sampled_from([3, 5, 16]))
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@example(text="🌊🏔️🌋", seed=1, window=5)
@example(text="河" * 20, seed=2, window=3)
@example(text="the river 🌊 of 🏔️", seed=18, window=16)
def test_any_text_can_be_learned_whatever_its_characters(tiny, text, seed, window):
    torch.manual_seed(seed)
    options = {"windows": [window], "max_tokens": 1000}
    for ratio in (0.0, 1.0):
        Pretraining(tiny, PLAIN, ratio=ratio, **options)([{"text": text}])
    collator = Autoencoding(tiny, PLAIN, **options)
    clean = clean_text(text)
    starts = collator.token_starts(clean)
    (piece,) = collator.cut(clean, starts, [window])
    assert piece
    assert piece in clean
    assert "".join(collator.cut(clean, starts, [1, 1, window - 2])) in clean
    whole = [len(starts) // 3] * 2 + [len(starts)]
    assert "".join(collator.cut(clean, starts, whole)) == clean


def test_a_prompt_begins_with_the_decoders_bos(opening):
    bos = opening.decoder_tokenizer.bos_token_id
    for kind in (Autoencoding, Continuation):
        batch = kind(opening, PLAIN, windows=[16])([{"text": TEXT}])
        assert batch["input_ids"][0, :2].tolist().count(bos) == 1
        assert (batch["input_ids"][0, 0], batch["labels"][0, 0]) == (bos, -100)


def test_special_tokens_are_part_of_a_window(opening):
    collator = Autoencoding(opening, PLAIN, windows=[PLAIN.max_length])
    assert collator.special_tokens == 2
    sizes = []
    for _ in range(20):
        (passage,) = collator.sample({"text": TEXT}).passages
        sizes.append(len(passage) - passage.count(collator.passage_tokenizer.memory_token_ids[0]))
    assert max(sizes) == PLAIN.max_length
