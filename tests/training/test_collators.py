"""Collators: what stands in a prompt, what of it is to be learned, and what cannot be used."""

import json

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer

from pisco_index import (
    Autoencoding,
    Collator,
    CompressionConfig,
    Compressor,
    ConfigError,
    Continuation,
    Decoder,
    Pretraining,
    QueryDependent,
    QuestionAnswering,
    Sample,
    TrainingError,
    load_pretraining,
)
from pisco_index.model.passages import PassageTokenizer, clean_text
from pisco_index.training.collators import TooShortError
from pisco_index.training.data import conversations

TEXT = "the river of the city was there before the people made the first war and the second team " * 6
PLAIN = CompressionConfig(max_length=32)
DOCUMENTS = [{"title": "A river", "text": "the river " * 30}, {"text": "a city"}]
ASKED = {"documents": DOCUMENTS, "turns": [{"question": "Where is it? ", "answer": "in the north"}]}
TURNS = [
    {"question": "Where is it?", "answer": "in the north"},
    {"question": "And the city?", "answer": "a"},
    {"question": "Who was there?", "answer": "in the north"},
]


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture
def learned_text(tiny):
    """The labels of a row as text."""

    def learned_text(labels):
        return tiny.decoder_tokenizer.decode([label for label in map(int, labels) if label >= 0])

    return learned_text


@pytest.fixture
def opening(tiny, monkeypatch):
    """The checkpoint with tokenizers that have a BOS; the compressor's puts it, and an EOS, around a text."""
    for name in ("compressor_tokenizer", "decoder_tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(tiny.path / "base_decoder")
        tokenizer.add_special_tokens({"additional_special_tokens": ["<MEM>", "<AE>"], "bos_token": "<|im_start|>"})
        if name == "compressor_tokenizer":
            ends = [(token, tokenizer.convert_tokens_to_ids(token)) for token in ("<|im_start|>", "<|im_end|>")]
            around = TemplateProcessing(single="<|im_start|> $A <|im_end|>", special_tokens=ends)
            tokenizer.backend_tokenizer.post_processor = around
        monkeypatch.setitem(vars(tiny), name, tokenizer)
    return tiny


def memory_counts(collator, batch):
    taken = int((batch["input_ids"] == collator.decoder_memory_id).sum())
    given = int(((batch["passages"] == collator.passages.memory_token_id) & batch["passage_mask"]).sum())
    return taken, given


# Answering


def test_what_is_learned_is_the_answer_and_its_end(tiny, learned_text):
    batch = QuestionAnswering(tiny, PLAIN)([ASKED])
    assert learned_text(batch["labels"][0]) == "in the north<|im_end|>"
    assert batch["input_ids"][0][batch["labels"][0] >= 0].tolist() == [i for i in batch["labels"][0].tolist() if i >= 0]


def test_of_several_turns_every_answer_is_learned(tiny, learned_text):
    batch = QuestionAnswering(tiny, PLAIN)([ASKED | {"turns": TURNS}])
    assert learned_text(batch["labels"][0]) == "in the north<|im_end|>a<|im_end|>in the north<|im_end|>"
    text = tiny.decoder_tokenizer.decode(batch["input_ids"][0])
    assert text.count("Background:") == 1
    assert [text.count(f"Question: {turn['question']}") for turn in TURNS] == [1, 1, 1]


@pytest.mark.parametrize("as_text", [0.0, 1.0])
def test_an_answer_that_also_stands_elsewhere_is_learned_where_it_is_given(tiny, learned_text, as_text):
    """In a document behind words that are the question, or in the template's own."""
    document = {"text": "Venice is in the north of Italy"}
    for question, answer in (("Venice", "the north"), ("Venice", "art"), ("is", "assistant"), ("is", "x<MEM>y")):
        record = {"documents": [document], "turns": [{"question": question, "answer": answer}]}
        batch = QuestionAnswering(tiny, PLAIN, text_ratio=as_text)([record])
        (places,) = (batch["labels"][0] >= 0).nonzero(as_tuple=True)
        assert learned_text(batch["labels"][0]) == answer.replace("<MEM>", "< MEM >") + "<|im_end|>"
        behind = tiny.decoder_tokenizer.decode(batch["input_ids"][0][places[-1] + 1 :])
        assert behind.strip() == ""


@pytest.mark.parametrize("question", ["Where is it?", " Where is <MEM> it?\n"])
def test_a_prompt_is_the_one_that_is_answered_from(tiny, question):
    collator = QuestionAnswering(tiny, PLAIN)
    sample = collator.sample(ASKED | {"turns": [{"question": question, "answer": "in the north"}]})
    texts = ["A river\n" + "the river " * 30, "a city"]
    documents = list(collator.passages.tokenize(texts))
    expected = Decoder.load(tiny).prompt_ids(question.strip(), [document.n_mem for document in documents])
    first = next(i for i, label in enumerate(sample.labels) if label >= 0)
    assert list(sample.input_ids[:first]) == expected
    assert list(sample.passages) == [ids for document in documents for ids in document.passages]
    memory = Compressor.load(tiny).compress(sample.passages)
    assert sum(memory.lengths) == sample.input_ids.count(collator.decoder_memory_id)


def test_titles_are_repeated_as_in_a_build(tiny):
    compression = CompressionConfig(max_length=24, repeat_title=True)
    sample = QuestionAnswering(tiny, compression).sample(ASKED)
    texts, titles = ["A river\n" + "the river " * 30, "a city"], ["A river\n", ""]
    cutter = PassageTokenizer(tiny.compressor_tokenizer, rate=tiny.rate, max_length=24)
    expected = [ids for document in cutter.tokenize(texts, titles) for ids in document.passages]
    assert list(sample.passages) == expected
    assert sum(next(iter(cutter.tokenize(titles))).passages[0][:3] == ids[:3] for ids in expected) > 2


@pytest.mark.parametrize("collator", [Autoencoding, Continuation])
def test_pretraining_repeats_titles_as_a_build_does(tiny, collator):
    compression = CompressionConfig(max_length=12, template="{title}: {text}", repeat_title=True)
    learned = collator(tiny, compression, windows=[2000])
    heading = tiny.compressor_tokenizer("the river: ", add_special_tokens=False)["input_ids"][:6]
    samples = [learned.sample({"title": "the river", "text": TEXT}) for _ in range(9)]
    further = [ids for sample in samples for ids in sample.passages[1:]]
    assert len(further) > 9
    assert all(list(ids[: len(heading)]) == heading for ids in further)


def test_batches_of_text_have_no_passages(tiny, learned_text):
    collator = QuestionAnswering(tiny, PLAIN, text_ratio=1.0)
    batch = collator([ASKED, ASKED | {"turns": TURNS}])
    assert batch["passages"].numel() == batch["passage_mask"].numel() == 0
    assert memory_counts(collator, batch) == (0, 0)
    assert "Document 1:a city\n Question: Where is it?" in tiny.decoder_tokenizer.decode(batch["input_ids"][0])
    assert learned_text(batch["labels"][0]) == "in the north<|im_end|>"


def test_the_share_of_text_is_one_of_batches(tiny):
    collator = QuestionAnswering(tiny, PLAIN, text_ratio=0.3)
    as_text = [collator([ASKED])["passages"].numel() == 0 for _ in range(100)]
    assert 15 < sum(as_text) < 45


def test_the_number_of_documents_may_differ_in_a_batch(tiny):
    collator = QuestionAnswering(tiny, PLAIN)
    batch = collator([ASKED | {"documents": DOCUMENTS[:1] * count} for count in (1, 4, 2)])
    taken, given = memory_counts(collator, batch)
    assert taken == given > 0
    counts = (batch["input_ids"] == collator.decoder_memory_id).sum(1).tolist()
    assert counts == [counts[0], 4 * counts[0], 2 * counts[0]]
    assert batch["labels"].shape == batch["input_ids"].shape
    assert (batch["labels"] >= 0).sum(1).unique().numel() == 1


def test_query_dependent_passages_begin_with_the_question(tiny):
    collator = QueryDependent(tiny, CompressionConfig(max_length=200))
    sample = collator.sample(ASKED)
    texts = [tiny.compressor_tokenizer.decode(ids) for ids in sample.passages]
    assert texts[0].startswith("Query: Where is it?\n Document: A river\nthe river the river")
    assert texts[1].startswith("Query: Where is it?\n Document: a city<MEM>")
    assert "Query:" not in tiny.decoder_tokenizer.decode(sample.input_ids)


PREFIX = "Query: Where is it?\n Document: "


@pytest.mark.parametrize("overlap", [0, 5])
@pytest.mark.parametrize("text", [TEXT * 2, "河边 🌊 " * 30])
def test_every_query_dependent_passage_begins_with_the_question(tiny, text, overlap):
    compression = CompressionConfig(max_length=64, overlap=overlap)
    collator = QueryDependent(tiny, compression)
    record = {"documents": [{"text": text}], "turns": ASKED["turns"]}
    sample = collator.sample(record)
    assert len(sample.passages) > 2
    pieces = []
    for ids in sample.passages:
        assert len(ids) - ids.count(collator.passages.memory_token_id) <= 64
        decoded = tiny.compressor_tokenizer.decode(ids).replace("<MEM>", "")
        assert decoded.startswith(PREFIX)
        pieces.append(decoded.removeprefix(PREFIX))
    if not overlap:
        assert "".join(pieces) == text
    assert all(piece in text for piece in pieces)
    first = QueryDependent(tiny, compression.model_copy(update={"on_long": "truncate"})).sample(record)
    assert list(first.passages) == list(sample.passages[:1])


def test_query_dependent_passages_have_room_for_special_tokens(opening):
    collator = QueryDependent(opening, CompressionConfig(max_length=48))
    for ids in collator.sample(ASKED).passages:
        kept = [token for token in ids if token != collator.passages.memory_token_id]
        decoded = opening.compressor_tokenizer.decode(kept)
        assert len(kept) <= 48
        assert decoded.startswith("<|im_start|>" + PREFIX)
        assert decoded.endswith("<|im_end|>")


def test_a_question_that_leaves_no_room_and_several_are_refused(tiny):
    with pytest.raises(TrainingError, match="leaves no room for a document among 4 tokens"):
        QueryDependent(tiny, CompressionConfig(max_length=4))([ASKED])
    with pytest.raises(TrainingError, match=r"d:1: has 3 turns, and memory that depends on the question is made for"):
        QueryDependent(tiny, PLAIN)([ASKED | {"turns": TURNS, "origin": "d:1"}])


@pytest.mark.parametrize("as_text", [0.0, 1.0])
def test_documents_that_do_not_fit_are_left_out_from_the_end(tiny, caplog, as_text):
    many = ASKED | {"documents": [*DOCUMENTS, *DOCUMENTS], "origin": "d:1"}
    whole = QuestionAnswering(tiny, PLAIN, text_ratio=as_text)
    two = whole([many | {"documents": DOCUMENTS}])
    length = two["input_ids"].shape[1]
    collator = QuestionAnswering(tiny, PLAIN, text_ratio=as_text, max_tokens=length)
    for _ in range(2):
        batch = collator([many])
        assert {name: values.tolist() for name, values in batch.items()} == {
            name: values.tolist() for name, values in two.items()
        }
    assert collator.dropped == 4
    assert [r.getMessage() for r in caplog.records] == [
        f"d:1: its documents do not fit in {length} tokens; the last are left out, here and wherever it is so."
    ]
    one = whole([many | {"documents": DOCUMENTS[:1]}])["input_ids"].shape[1]
    QuestionAnswering(tiny, PLAIN, text_ratio=as_text, max_tokens=one)([many])
    with pytest.raises(TrainingError, match=f"^d:1: the prompt has {one} tokens with its answer, and {one - 1} fit"):
        QuestionAnswering(tiny, PLAIN, text_ratio=as_text, max_tokens=one - 1)([many])


def test_a_template_that_changes_answers_is_refused(tiny, monkeypatch):
    template = tiny.decoder_tokenizer.chat_template.replace("m['content']", "m['content'] | replace('north', 'N')")
    monkeypatch.setattr(tiny.decoder_tokenizer, "chat_template", template)
    with pytest.raises(TrainingError, match="chat template changes what is said"):
        QuestionAnswering(tiny, PLAIN)([ASKED])


# Pretraining


def test_what_is_restored_is_the_text(tiny, learned_text):
    for text in (TEXT[:90], "é <MEM> ü", "the"):
        collator = Autoencoding(tiny, PLAIN, windows=[1000])
        batch = collator([{"text": text}])
        clean = text.replace("<MEM>", "< MEM >")
        assert learned_text(batch["labels"][0]) == clean + "<|im_end|>"
        prompt = tiny.decoder_tokenizer.decode(batch["input_ids"][0][batch["labels"][0] < 0])
        taken, given = memory_counts(collator, batch)
        assert prompt == "<MEM>" * taken + "<AE>"
        assert taken == given
        passages = batch["passages"][batch["passage_mask"]].tolist()
        assert tiny.compressor_tokenizer.decode(passages).replace("<MEM>", "") == clean


def test_a_longer_text_is_read_from_several_passages(tiny):
    sample = Autoencoding(tiny, PLAIN, windows=[1000]).sample({"text": TEXT})
    assert len(sample.passages) > 2


def test_a_title_is_restored_as_it_is_compressed(tiny, learned_text):
    batch = Autoencoding(tiny, PLAIN, windows=[1000])([{"title": "Rivers", "text": "the north"}])
    assert learned_text(batch["labels"][0]) == "Rivers\nthe north<|im_end|>"


def test_windows_are_pieces_of_the_text_and_drawn_for_each_batch(tiny):
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
def test_the_share_of_auto_encoding(tiny, ratio):
    collator = Pretraining(tiny, PLAIN, ratio=ratio, windows=[16])
    restored = sum(
        int((collator([{"text": TEXT}] * 4)["input_ids"] == collator.autoencoding.autoencoding_id).sum())
        for _ in range(40)
    )
    assert abs(restored / 160 - ratio) < 0.12
    assert collator.autoencoding.window == collator.continuation.window == 16


def test_a_text_too_short_to_be_continued_is_restored(tiny):
    with pytest.raises(TooShortError, match="1 tokens are too few"):
        Continuation(tiny, PLAIN, windows=[16]).sample({"text": "t"})
    collator = Pretraining(tiny, PLAIN, ratio=0.0, windows=[16])
    assert collator.autoencoding.autoencoding_id in collator.sample({"text": "t"}).input_ids


@given(text=st.text(min_size=1).filter(str.strip), seed=st.integers(0, 99), window=st.sampled_from([3, 5, 16]))
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@example(text="🌊🏔️🌋", seed=1, window=5)
@example(text="河" * 20, seed=2, window=3)
@example(text="the river 🌊 of 🏔️", seed=18, window=16)
def test_every_text_can_be_learned_whatever_its_characters(tiny, text, seed, window):
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


def test_where_nothing_is_left_to_be_continued_the_text_is_restored(tiny):
    """Three bytes of one character are three tokens."""
    with pytest.raises(TooShortError, match="a piece has no character of its own"):
        Continuation(tiny, PLAIN, windows=[16]).sample({"text": "河"})
    collator = Pretraining(tiny, PLAIN, ratio=0.0, windows=[16])
    sample = collator.sample({"text": "河"})
    assert collator.autoencoding.autoencoding_id in sample.input_ids


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"windows": [8, 0], "autoencoding": 1}, r"windows: each must be at least 1, not \[8, 0\]"),
        ({"windows": [8, 2]}, "windows: each must be at least 3 to be continued, or autoencoding 1, not"),
        (
            {"windows": [33], "compression": {"max_length": 32, "on_long": "truncate"}},
            r"windows: none may exceed compression\.max_length \(32\) where on_long is truncate",
        ),
        ({"autoencoding": 2, "compression": {"max_length": 0}}, "autoencoding: "),
    ],
)
def test_windows_that_cannot_be_learned_are_named(values, message):
    with pytest.raises(ConfigError, match=message):
        load_pretraining(None, values)


def test_windows_that_can_be_learned_are_taken():
    assert load_pretraining(None, {"windows": [1, 2], "autoencoding": 1}).windows == (1, 2)
    fitting = {"windows": [3, 32], "compression": {"max_length": 32, "on_long": "truncate"}}
    assert load_pretraining(None, fitting).windows == (3, 32)


def test_windows_of_one_batch_are_the_same_for_both_tasks(tiny):
    collator = Pretraining(tiny, PLAIN, ratio=0.0, windows=[8, 24])
    drawn = set()
    for _ in range(20):
        collator([{"text": TEXT}])
        assert collator.continuation.window == collator.autoencoding.window
        drawn.add(collator.continuation.window)
    assert drawn == {8, 24}


def test_a_prompt_begins_as_the_decoder_s_sequences_do(opening):
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
        sizes.append(len(passage) - passage.count(collator.passages.memory_token_id))
    assert max(sizes) == PLAIN.max_length


# What cannot be used


class Wrong(Collator):
    """Gives what it is told to."""

    def sample(self, record):
        return Sample(*record["sample"])


def test_a_prompt_that_does_not_match_its_passages_is_refused(tiny):
    collator = Wrong(tiny, PLAIN)
    memory, decoder_memory = collator.passages.memory_token_id, collator.decoder_memory_id
    good = [[5, memory], [6, memory, memory]], [decoder_memory] * 3 + [7], [-100] * 3 + [7]
    assert memory_counts(collator, collator([{"sample": good}])) == (3, 3)
    for sample, message in (
        ((good[0][:1], good[1], good[2]), "the prompt has 3 memory tokens, but its passages give 1"),
        ((good[0], good[1], good[2][:-1]), "3 labels for 4 tokens"),
        ((good[0], good[1], [-100] * 4), "nothing is to be learned from it"),
    ):
        with pytest.raises(TrainingError, match=rf"^data\.jsonl:3: {message}"):
            collator([{"sample": good, "origin": "data.jsonl:2"}, {"sample": sample, "origin": "data.jsonl:3"}])


def test_a_prompt_that_is_too_long_is_refused_with_its_line(tiny, lines):
    short = {"documents": [{"text": "a"}], "question": "b", "answer": "c"}
    path = lines(json.dumps(short), "", json.dumps(short | {"answer": "c " * 90}))
    collator = QuestionAnswering(tiny, PLAIN, max_tokens=150)
    records = [{**record, "origin": origin} for origin, record in conversations([str(path)])]
    collator(records[:1])
    with pytest.raises(TrainingError, match=rf"{path}:3: the prompt has \d+ tokens with its answer, and 150 fit"):
        collator(records)
