import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, CTRLTokenizer

from pisco_index.model import passages as passages_module
from pisco_index.model.passages import (
    TOKENIZER_CHUNK,
    PassageTokenizer,
    TokenizedDocument,
    clean_text,
    encode_all,
    memory_bounds,
    memory_length,
)

RATE = 16
# One token a letter, so that lengths are what they look like.
documents = st.text(st.sampled_from("abc é漢<>MERT "), max_size=90)


@pytest.fixture(scope="module")
def tokenizer(make_tokenizer):
    return make_tokenizer()


def tokenize(tokenizer, text, **settings):
    (document,) = PassageTokenizer(tokenizer, **({"rate": RATE, "max_length": 512} | settings)).tokenize([text])
    return document


def split_memory(passage, tokenizer):
    """A passage's text tokens and its number of memory tokens."""
    memory = tokenizer.convert_tokens_to_ids("<MEM>")
    count = passage.count(memory)
    assert passage[len(passage) - count :] == [memory] * count
    return passage[: len(passage) - count], count


@pytest.mark.parametrize(
    ("tokens", "truncated", "chunked"),
    [
        (0, [1], [1]),
        (15, [1], [1]),
        (16, [2], [2]),
        (17, [2], [2]),
        (511, [32], [32]),
        (512, [33], [33]),
        (513, [33], [33, 1]),
        (600, [33], [33, 6]),
        (1024, [33], [33, 33]),
    ],
)
def test_a_passage_of_n_tokens_has_n_by_rate_plus_one_memory_tokens(tokenizer, tokens, truncated, chunked):
    for on_long, expected in (("truncate", truncated), ("chunk", chunked)):
        document = tokenize(tokenizer, "a" * tokens, on_long=on_long)
        assert [split_memory(passage, tokenizer)[1] for passage in document.passages] == expected
        assert document.n_mem == sum(expected)


@given(
    texts=st.lists(documents, min_size=1, max_size=5),
    heading=st.text("ab", max_size=8),
    max_length=st.integers(1, 40),
    rate=st.integers(1, 20),
    overlap=st.integers(0, 39),
    on_long=st.sampled_from(["chunk", "truncate"]),
    eos=st.booleans(),
)
def test_memory_tokens_lie_within_their_bounds(make_tokenizer, texts, heading, max_length, rate, overlap, on_long, eos):
    settings = {
        "rate": rate,
        "max_length": max_length + eos,
        "on_long": on_long,
        "overlap": min(overlap, max_length - 1),
    }
    tokenized = list(PassageTokenizer(make_tokenizer(eos=eos), **settings).tokenize(texts, [heading] * len(texts)))
    fed = np.array([document.tokens_fed for document in tokenized])
    least, most = memory_bounds(fed, rate)
    assert least.tolist() == [memory_length(tokens, rate) for tokens in fed.tolist()]
    for i, document in enumerate(tokenized):
        assert least[i] <= document.n_mem <= most[i]
        assert len(document.passages) > 1 or document.n_mem == least[i]


@given(text=documents, max_length=st.integers(1, 40), rate=st.integers(1, 20), bos=st.booleans(), eos=st.booleans())
def test_chunks_lose_nothing(make_tokenizer, text, max_length, rate, bos, eos):
    tokenizer = make_tokenizer(bos=bos, eos=eos)
    max_length += eos
    ids = tokenizer(clean_text(text))["input_ids"]
    document = tokenize(tokenizer, text, max_length=max_length, rate=rate)
    parts = [split_memory(passage, tokenizer) for passage in document.passages]
    assert [token for piece, _ in parts for token in piece] == ids
    assert all(len(piece) <= max_length and count == memory_length(len(piece), rate) for piece, count in parts)
    assert document.n_mem == sum(count for _, count in parts)
    assert document.tokens_total == document.tokens_fed == len(ids)


@given(text=documents, max_length=st.integers(2, 30), data=st.data())
def test_overlapping_chunks_repeat_the_end_of_the_one_before(tokenizer, text, max_length, data):
    overlap = data.draw(st.integers(0, max_length - 1))
    document = tokenize(tokenizer, text, max_length=max_length, overlap=overlap)
    first, *others = [split_memory(passage, tokenizer)[0] for passage in document.passages]
    whole = list(first)
    for piece in others:
        assert len(piece) > overlap, "a chunk of nothing new"
        assert piece[:overlap] == whole[len(whole) - overlap :]
        whole += piece[overlap:]
    assert whole == tokenizer(clean_text(text))["input_ids"]
    assert document.tokens_fed == document.tokens_total + overlap * len(others)


@given(
    text=documents,
    heading=documents,
    max_length=st.integers(3, 30),
    bos=st.booleans(),
    eos=st.booleans(),
    data=st.data(),
)
def test_each_further_chunk_begins_with_the_heading(make_tokenizer, text, heading, max_length, bos, eos, data):
    tokenizer = make_tokenizer(bos=bos, eos=eos)
    overlap = data.draw(st.integers(0, max_length - 1))
    cutter = PassageTokenizer(tokenizer, rate=RATE, max_length=max_length, overlap=overlap)
    (document,) = cutter.tokenize([text], [heading])
    repeated = tokenizer(clean_text(heading))["input_ids"] if heading else []
    repeated = repeated[: len(repeated) - (eos and bool(heading))][: (max_length - overlap) // 2]
    first, *others = [split_memory(passage, tokenizer)[0] for passage in document.passages]
    whole = list(first)
    for piece in others:
        assert len(piece) <= max_length
        assert piece[: len(repeated)] == repeated
        rest = piece[len(repeated) :]
        assert len(rest) > overlap, "a chunk of nothing new"
        assert rest[:overlap] == whole[len(whole) - overlap :]
        whole += rest[overlap:]
    assert whole == tokenizer(clean_text(text))["input_ids"]
    assert document.tokens_fed == document.tokens_total + (overlap + len(repeated)) * len(others)


@given(text=documents, max_length=st.integers(3, 40), bos=st.booleans(), eos=st.booleans())
def test_truncation_is_that_of_transformers(make_tokenizer, text, max_length, bos, eos):
    tokenizer = make_tokenizer(bos=bos, eos=eos)
    document = tokenize(tokenizer, text, max_length=max_length, on_long="truncate")
    (passage,) = document.passages
    expected = tokenizer(clean_text(text), truncation=True, max_length=max_length)["input_ids"]
    assert split_memory(passage, tokenizer)[0] == expected
    assert document.tokens_fed == len(expected)
    assert document.tokens_total == len(tokenizer(clean_text(text))["input_ids"])


def test_bos_counts(make_tokenizer):
    document = tokenize(make_tokenizer(bos=True), "a" * 15)
    assert (document.tokens_total, document.n_mem) == (16, 2)


def test_a_cut_text_keeps_its_eos(make_tokenizer):
    tokenizer = make_tokenizer(bos=True, eos=True)
    piece, _ = split_memory(tokenize(tokenizer, "a" * 99, max_length=10, on_long="truncate").passages[0], tokenizer)
    assert (piece[0], piece[-1]) == (tokenizer.bos_token_id, tokenizer.eos_token_id)


@given(documents)
def test_no_text_opens_memory_slots(tokenizer, text):
    assert "<MEM>" not in clean_text(text)
    assert "<RET>" not in clean_text(text)
    assert sum(split_memory(p, tokenizer)[1] for p in tokenize(tokenizer, text).passages) == memory_length(
        len(tokenizer(clean_text(text))["input_ids"]), RATE
    )


def test_literal_memory_tokens_are_spelled_apart():
    assert clean_text("a <MEM><MEM> b <RET>, <mem>") == "a < MEM >< MEM > b < RET >, <mem>"


def test_texts_come_back_in_order_across_chunks(tokenizer):
    lengths = [i % 7 for i in range(2 * TOKENIZER_CHUNK + 3)]
    found = PassageTokenizer(tokenizer, rate=4, max_length=9).tokenize(["a" * n for n in lengths])
    assert [document.tokens_total for document in found] == lengths


def test_no_texts_are_no_documents(tokenizer):
    assert list(PassageTokenizer(tokenizer, rate=4, max_length=9).tokenize([])) == []


def test_truncation_and_padding_stored_with_a_tokenizer_are_ignored(make_tokenizer, tmp_path):
    tokenizer = make_tokenizer()
    tokenizer.backend_tokenizer.enable_truncation(5)
    tokenizer.backend_tokenizer.enable_padding(length=50)
    tokenizer.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "tokenizer.json").read_text())["truncation"]["max_length"] == 5
    assert tokenize(AutoTokenizer.from_pretrained(tmp_path), "a" * 20).tokens_fed == 20


def test_a_tokenizer_written_in_python_gives_what_it_gives(tmp_path):
    (tmp_path / "vocab.json").write_text('{"<unk>": 0, "a": 1, "b": 2}')
    (tmp_path / "merges.txt").write_text("#version\n")
    tokenizer = CTRLTokenizer(tmp_path / "vocab.json", tmp_path / "merges.txt")
    tokenizer.add_special_tokens({"extra_special_tokens": ["<MEM>"]})
    document = tokenize(tokenizer, "a b b", rate=2, max_length=2)
    assert document.passages == ([1, 2, 3, 3], [2, 3])


@pytest.mark.parametrize(("max_length", "overlap"), [(8, 8), (8, -1), (0, 0)])
def test_chunks_must_advance(tokenizer, max_length, overlap):
    with pytest.raises(ValueError, match="overlap"):
        PassageTokenizer(tokenizer, rate=RATE, max_length=max_length, overlap=overlap)


def test_a_passage_holds_more_than_its_closing_tokens(make_tokenizer):
    with pytest.raises(ValueError, match="no room"):
        PassageTokenizer(make_tokenizer(eos=True), rate=RATE, max_length=1)


# Long texts

WORDS = "the river of a city, don't 1234 北京は日本の首都 é e\u0301 ÀÉ 😀 <MEM> ====== aaaaaaaaaaaaaaaa \n\n\t --"
SPECIALS = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]


def byte_level():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    return tokenizer, trainers.BpeTrainer


def without_pre_tokenizer():
    """As sentencepiece's BPE: words may be joined, and a space is put before the text."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return tokenizer, trainers.BpeTrainer


def unigram():
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    return tokenizer, lambda **options: trainers.UnigramTrainer(unk_token="<unk>", **options)


def word_piece():
    tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Strip(), normalizers.BertNormalizer()])
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return tokenizer, trainers.WordPieceTrainer


class Fast:
    """The part of a transformers tokenizer that encoding uses."""

    def __init__(self, make):
        self.backend_tokenizer, trainer = make()
        text = [WORDS * 5, *(WORDS[start : start + 20] for start in range(len(WORDS)))] * 3
        options = {"vocab_size": 600, "special_tokens": SPECIALS, "show_progress": False}
        self.backend_tokenizer.train_from_iterator(text, trainer(**options))
        self.backend_tokenizer.add_tokens([AddedToken("<MEM>", lstrip=True, rstrip=True)])
        self.backend_tokenizer.post_processor = processors.TemplateProcessing(
            "<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
        )


@pytest.fixture(scope="module", params=[byte_level, without_pre_tokenizer, unigram, word_piece])
def trained(request):
    return Fast(request.param)


@pytest.fixture
def short_windows(monkeypatch):
    monkeypatch.setattr(passages_module, "WINDOW", 512)
    monkeypatch.setattr(passages_module, "OVERLAP", 256)


pieces = st.lists(st.tuples(st.sampled_from([*WORDS.split(" "), " ", "  ", "\n", "a", "\u0301"]), st.integers(1, 400)))


@pytest.mark.usefixtures("short_windows")
@settings(
    max_examples=25,
    phases=(Phase.explicit, Phase.generate),
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(pieces=pieces, words=st.lists(st.sampled_from(WORDS.split(" ")), min_size=200, max_size=400))
def test_a_long_text_has_the_tokens_that_it_has_as_a_whole(trained, pieces, words):
    text = " ".join(words) + "".join(word * min(times, 800 // len(word)) for word, times in pieces)
    for special in (False, True):
        (found,) = encode_all(trained, [text], special=special)
        whole = trained.backend_tokenizer.encode_batch_fast([text], add_special_tokens=special)[0].ids
        assert list(found) == whole


@pytest.mark.usefixtures("short_windows")
def test_windows_that_cannot_be_joined_are_doubled(trained, monkeypatch):
    sizes, of = [], passages_module._Window.of

    def record(fast, text, start, size):
        sizes.append(size)
        window = of(fast, text, start, size)
        # As a tokenizer whose tokens depend on the length of what it is given.
        return window if size > 1024 else replace(window, ids=window.ids + start)

    monkeypatch.setattr(passages_module._Window, "of", record)
    text = "".join(f"{number} the river of a city " for number in range(80))
    (found,) = encode_all(trained, [text], special=True)
    assert list(found) == trained.backend_tokenizer.encode(text).ids
    assert sizes == [512, 512, 1024, 512, 2048]


def test_a_long_document_is_cut_as_a_short_one(tokenizer, monkeypatch):
    text = "abc " * 500
    for settings_ in ({}, {"overlap": 7}, {"on_long": "truncate"}):
        short = tokenize(tokenizer, text, max_length=64, **settings_)
        with monkeypatch.context() as patched:
            patched.setattr(passages_module, "WINDOW", 512)
            patched.setattr(passages_module, "OVERLAP", 64)
            long = tokenize(tokenizer, text, max_length=64, **settings_)
        assert [list(passage) for passage in long.passages] == list(short.passages)
        assert {passage.typecode for passage in long.passages} == {"i"}
        assert (long.n_mem, long.tokens_total, long.tokens_fed) == (short.n_mem, short.tokens_total, short.tokens_fed)


def test_few_long_texts_are_tokenized_together(tokenizer, monkeypatch):
    monkeypatch.setattr(passages_module, "TOKENIZER_CHARACTERS", 10)
    texts = ["a" * 4, "b" * 4, "c" * 4, "d" * 40, "e"]
    chunks = [[text for text, _ in chunk] for chunk in passages_module.tokenizer_chunks(texts, None)]
    assert chunks == [texts[:2], texts[2:3], texts[3:4], texts[4:]]


def test_the_text_in_the_passages_is_a_part_of_a_truncated_text():
    assert TokenizedDocument((), 1, 10, 5).fed_text("0123456789") == "01234"
    # Passages that overlap have more tokens than the text.
    assert TokenizedDocument((), 1, 10, 15).fed_text("0123456789") == "0123456789"
    assert TokenizedDocument((), 1, 0, 0).fed_text("") == ""


def test_the_beginning_of_a_document_has_whole_passages(make_tokenizer):
    tokenizer = make_tokenizer()
    document = tokenize(tokenizer, "ab" * 50, max_length=8, rate=4)
    memory_token_ids = [tokenizer.convert_tokens_to_ids("<MEM>")]
    begun = document.beginning(5, memory_token_ids)
    parts = [split_memory(passage, tokenizer) for passage in document.passages[: len(begun.passages)]]
    assert begun.passages == document.passages[: len(parts)]
    assert begun.n_mem == sum(count for _, count in parts) >= 5 > begun.n_mem - parts[-1][1]
    assert begun.tokens_fed == sum(len(piece) for piece, _ in parts) < document.tokens_fed
    assert len(begun.fed_text("x" * document.tokens_total)) == begun.tokens_fed
    assert document.beginning(document.n_mem, memory_token_ids) is document
