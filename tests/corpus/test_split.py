"""Texts are cut into pieces of N words."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pisco_index.corpus import Document
from pisco_index.corpus.split import split_document, split_text


@given(st.text(), st.integers(10, 20))
def test_nothing_but_blanks_is_lost(text, words):
    assert re.sub(r"\s", "", "".join(split_text(text, words))) == re.sub(r"\s", "", text)


@given(st.lists(st.text("abcé", min_size=1), min_size=1), st.integers(10, 20))
def test_pieces_have_n_words_and_the_last_one_the_rest(words, size):
    pieces = [piece.split() for piece in split_text(" \n".join(words), size)]
    assert [len(piece) for piece in pieces[:-1]] == [size] * (len(pieces) - 1)
    assert [word for piece in pieces for word in piece] == words


def test_line_breaks_within_a_piece_stay():
    assert list(split_text("  one two\nthree  four \n", 10)) == ["one two\nthree  four"]


@pytest.mark.parametrize(
    "sentence", ["吾輩は猫である。名前はまだ無い。", "我是一只猫。名字还没有。", "แมวตัวหนึ่งยังไม่มีชื่อ", "ខ្ញុំជាឆ្មា"]
)
def test_two_characters_are_a_word_where_none_are_separated(sentence):
    text = sentence * 100
    pieces = list(split_text(text, 100))
    assert "".join(pieces) == text
    assert len(text) / 450 <= len(pieces) <= len(text) / 190
    assert max(map(len, pieces)) <= 450


def test_a_mark_stays_with_its_letter():
    assert all(not re.match("[\u0e31\u0e34-\u0e3a\u0e47-\u0e4e]", piece) for piece in split_text("ชื่" * 500, 10))


def test_korean_has_blanks_and_a_run_without_any_is_bounded():
    assert [piece.count(" ") for piece in split_text("나는 고양이로소이다 " * 50, 10)] == [9] * 10
    assert max(map(len, split_text("x" * 100_000, 10))) == 640


def test_pieces_are_numbered_even_when_there_is_one():
    document = Document("a", "one", "T", {"k": 1})
    assert list(split_document(document, None)) == [document]
    assert list(split_document(document, 10)) == [Document("a#0", "one", "T", {"k": 1})]
    assert list(split_document(Document("a", ""), 10)) == [Document("a#0", "")]


def test_records_of_any_format_are_cut(write, sources, documents, refusal):
    path = write("c.jsonl", '{"id": "a", "text": "%s"}\n{"id": "b", "text": "x"}' % ("w " * 25))
    assert [(d.doc_id, len(d.text.split())) for d in documents(path, passage_words=10)] == [
        ("a#0", 10),
        ("a#1", 10),
        ("a#2", 5),
        ("b#0", 1),
    ]
    long_id = write("long.jsonl", '{"id": "%s", "text": "x"}' % ("i" * 510))
    assert len(documents(long_id)) == 1
    assert "at most 504 are allowed" in refusal(long_id, passage_words=10)
