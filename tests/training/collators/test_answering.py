"""Question answering: the prompt, the labels, documents that do not fit, and memory that depends on the question."""

import pytest

from pisco_index import Compressor, Decoder
from pisco_index.configs import CompressionConfig
from pisco_index.errors import TrainingError
from pisco_index.model.passages import PassageTokenizer
from pisco_index.training.collators import QueryDependent, QuestionAnswering

TEXT = "the river of the city was there before the people made the first war and the second team " * 6
PLAIN = CompressionConfig(max_length=32)
DOCUMENTS = [{"title": "A river", "text": "the river " * 30}, {"text": "a city"}]
ASKED = {"documents": DOCUMENTS, "turns": [{"question": "Where is it? ", "answer": "in the north"}]}
TURNS = [
    {"question": "Where is it?", "answer": "in the north"},
    {"question": "And the city?", "answer": "a"},
    {"question": "Who was there?", "answer": "in the north"},
]
PREFIX = "Query: Where is it?\n Document: "


def test_the_answer_of_each_turn_and_its_end_are_learned(tiny, learned_text):
    collator = QuestionAnswering(tiny, PLAIN)
    one, several = collator([ASKED]), collator([ASKED | {"turns": TURNS}])
    assert learned_text(one["labels"][0]) == "in the north<|im_end|>"
    assert learned_text(several["labels"][0]) == "in the north<|im_end|>a<|im_end|>in the north<|im_end|>"
    for batch in (one, several):
        learned = batch["labels"][0] >= 0
        assert batch["input_ids"][0][learned].tolist() == batch["labels"][0][learned].tolist()
    text = tiny.decoder_tokenizer.decode(several["input_ids"][0])
    assert text.count("Background:") == 1
    assert [text.count(f"Question: {turn['question']}") for turn in TURNS] == [1, 1, 1]


@pytest.mark.parametrize("as_text", [0.0, 1.0])
def test_an_answer_that_also_stands_elsewhere_is_learned_where_it_is_given(tiny, learned_text, as_text):
    """It also stands in a document, behind words that are the question, or among the template's own words."""
    document = {"text": "Venice is in the north of Italy"}
    for question, answer in (("Venice", "the north"), ("Venice", "art"), ("is", "assistant"), ("is", "x<MEM>y")):
        record = {"documents": [document], "turns": [{"question": question, "answer": answer}]}
        batch = QuestionAnswering(tiny, PLAIN, text_ratio=as_text)([record])
        (places,) = (batch["labels"][0] >= 0).nonzero(as_tuple=True)
        assert learned_text(batch["labels"][0]) == answer.replace("<MEM>", "< MEM >") + "<|im_end|>"
        behind = tiny.decoder_tokenizer.decode(batch["input_ids"][0][places[-1] + 1 :])
        assert behind.strip() == ""


@pytest.mark.parametrize("question", ["Where is it?", " Where is <MEM> it?\n"])
def test_the_prompt_is_the_decoders_own(tiny, question):
    collator = QuestionAnswering(tiny, PLAIN)
    sample = collator.sample(ASKED | {"turns": [{"question": question, "answer": "in the north"}]})
    texts = ["A river\n" + "the river " * 30, "a city"]
    documents = list(collator.passage_tokenizer.tokenize(texts))
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


def test_batches_of_text_have_no_passages(tiny, learned_text, memory_counts):
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


def test_the_number_of_documents_may_differ_in_a_batch(tiny, memory_counts):
    collator = QuestionAnswering(tiny, PLAIN)
    batch = collator([ASKED | {"documents": DOCUMENTS[:1] * count} for count in (1, 4, 2)])
    taken, given = memory_counts(collator, batch)
    assert taken == given > 0
    counts = (batch["input_ids"] == collator.decoder_memory_id).sum(1).tolist()
    assert counts == [counts[0], 4 * counts[0], 2 * counts[0]]
    assert batch["labels"].shape == batch["input_ids"].shape
    assert (batch["labels"] >= 0).sum(1).unique().numel() == 1


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
    (record,) = caplog.records
    assert record.getMessage().startswith(f"d:1: its documents do not fit into {length} tokens, so the last ones are")
    one = whole([many | {"documents": DOCUMENTS[:1]}])["input_ids"].shape[1]
    QuestionAnswering(tiny, PLAIN, text_ratio=as_text, max_tokens=one)([many])
    message = f"^d:1: the prompt with its answer has {one} tokens, but only {one - 1} fit"
    with pytest.raises(TrainingError, match=message):
        QuestionAnswering(tiny, PLAIN, text_ratio=as_text, max_tokens=one - 1)([many])


def test_a_template_that_changes_answers_is_refused(tiny, monkeypatch):
    template = tiny.decoder_tokenizer.chat_template.replace("m['content']", "m['content'] | replace('north', 'N')")
    monkeypatch.setattr(tiny.decoder_tokenizer, "chat_template", template)
    with pytest.raises(TrainingError, match="chat template changes what is said"):
        QuestionAnswering(tiny, PLAIN)([ASKED])


def test_what_a_template_writes_before_the_stop_token_is_learned(tiny, learned_text, monkeypatch, caplog):
    template = tiny.decoder_tokenizer.chat_template
    monkeypatch.setattr(tiny.decoder_tokenizer, "chat_template", template.replace("<|im_end|>", " over <|im_end|>"))
    batch = QuestionAnswering(tiny, PLAIN)([ASKED | {"turns": TURNS}])
    learned = " ".join(learned_text(batch["labels"][0]).split())
    assert learned == "in the north over <|im_end|>a over <|im_end|>in the north over <|im_end|>"
    assert not caplog.records
    monkeypatch.setattr(tiny.decoder_tokenizer, "chat_template", template.replace("<|im_end|>", ""))
    collator = QuestionAnswering(tiny, PLAIN)
    for _ in range(2):
        learned = " ".join(learned_text(collator([ASKED | {"turns": TURNS}])["labels"][0]).split())
        assert learned == "in the north a in the north"
    (record,) = caplog.records
    assert "ends answers with none of the tokens at which the decoder stops" in record.getMessage()


# Memory that depends on the question


def test_the_question_stands_before_title_and_text(tiny):
    collator = QueryDependent(tiny, CompressionConfig(max_length=200))
    sample = collator.sample(ASKED)
    texts = [tiny.compressor_tokenizer.decode(ids) for ids in sample.passages]
    assert texts[0].startswith(f"{PREFIX}A river\nthe river the river")
    assert texts[1].startswith(f"{PREFIX}a city<MEM>")
    assert "Query:" not in tiny.decoder_tokenizer.decode(sample.input_ids)


@pytest.mark.parametrize("overlap", [0, 5])
@pytest.mark.parametrize("text", [TEXT * 2, "河边 🌊 " * 30])
def test_every_passage_begins_with_the_question(tiny, text, overlap):
    compression = CompressionConfig(max_length=64, overlap=overlap)
    collator = QueryDependent(tiny, compression)
    record = {"documents": [{"text": text}], "turns": ASKED["turns"]}
    sample = collator.sample(record)
    assert len(sample.passages) > 2
    pieces = []
    for ids in sample.passages:
        assert len(ids) - ids.count(collator.passage_tokenizer.memory_token_ids[0]) <= 64
        decoded = tiny.compressor_tokenizer.decode(ids).replace("<MEM>", "")
        assert decoded.startswith(PREFIX)
        pieces.append(decoded.removeprefix(PREFIX))
    if not overlap:
        assert "".join(pieces) == text
    assert all(piece in text for piece in pieces)
    first = QueryDependent(tiny, compression.model_copy(update={"on_long": "truncate"})).sample(record)
    assert list(first.passages) == list(sample.passages[:1])


def test_passages_with_a_question_have_room_for_special_tokens(opening):
    collator = QueryDependent(opening, CompressionConfig(max_length=48))
    for ids in collator.sample(ASKED).passages:
        kept = [token for token in ids if token != collator.passage_tokenizer.memory_token_ids[0]]
        decoded = opening.compressor_tokenizer.decode(kept)
        assert len(kept) <= 48
        assert decoded.startswith("<|im_start|>" + PREFIX)
        assert decoded.endswith("<|im_end|>")


def test_a_question_without_room_and_several_questions_are_refused(tiny):
    with pytest.raises(TrainingError, match="leaves no room for a document among 4 tokens"):
        QueryDependent(tiny, CompressionConfig(max_length=4))([ASKED])
    with pytest.raises(TrainingError, match=r"d:1: has 3 turns, and memory that depends on the question is made for"):
        QueryDependent(tiny, PLAIN)([ASKED | {"turns": TURNS, "origin": "d:1"}])
