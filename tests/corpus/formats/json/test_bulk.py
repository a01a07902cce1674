"""Bulk files: the id is in the line before the document."""

import gzip
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ...fuzzing import fuzz, read

PAGE = '{"namespace": 0, "title": "Barn", "page_id": 71, "text": "The barn.", "opening_text": null}'


@pytest.mark.parametrize("wrap", [bytes, gzip.compress])
def test_cirrus_search(write, wrap):
    data = (
        f'{{"index": {{"_type": "_doc", "_id": "71"}}}}\n{PAGE}\n\n{{"create": {{"_id": 72, "_index": "i"}}}}\n{PAGE}\n'
    )
    path = write("content.json", wrap(data.encode()))
    for cuts in ((), (1,)):
        documents, _ = read(path, cuts)
        assert [(each.doc_id, each.title, each.text) for each in documents] == [
            ("71", "Barn", "The barn."),
            ("72", "Barn", "The barn."),
        ]


def test_ids_may_be_in_the_documents(write, documents, refusal):
    path = write(
        "c.json", '{"index": {}}\n{"id": "a", "text": "t"}\n{"index": {"_index": "i"}}\n{"id": "b", "text": "u"}'
    )
    assert [each.doc_id for each in documents(path)] == ["a", "b"]
    assert "no field for the id is recognised" in refusal(write("c.json", '{"index": {}}\n{"text": "t"}'))


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (['{"delete": {"_id": "1"}}'], "line 3: the action 'delete' gives no whole document"),
        (['{"update": {"_id": "1"}}', '{"doc": {"text": "t"}}'], "line 3: the action 'update' gives no whole document"),
        (['{"index": {"_id": "2"}}', '{"index": {"_id": "3"}}', PAGE], "line 3: no document follows the action"),
        ([PAGE], 'line 3: a line such as {"index": {"_id": "1"}} should stand before the document'),
        (['{"index": {"_id": 1.5}}', PAGE], "line 3: the id 'index._id' must be a string or an integer"),
        (['{"index": {"_id": "2"}}', '{"text": 3}'], "line 3: 'text' must be a string"),
    ],
)
def test_what_is_no_pair_is_refused_and_skipped(write, refusal, lines, message):
    before, after = ('{"index": {"_id": "a"}}', PAGE), ('{"index": {"_id": "b"}}', PAGE)
    path = write("c.json", "\n".join([*before, *lines, *after]))
    assert f"c.json, {message}" in refusal(path)
    for cuts in ((), (1, 2), (0, 1, 2, 3)):
        documents, rejected = read(path, cuts, on_error="skip")
        assert [each.doc_id for each in documents if each.doc_id in "ab"] == ["a", "b"]
        assert len(rejected) == 1


def test_an_action_at_the_end_has_no_document(write, refusal):
    data = f'{{"index": {{"_id": "1"}}}}\n{PAGE}\n{{"index": {{"_id": "2"}}}}\n'
    assert "c.json, line 3: no document follows the action" in refusal(write("c.json", data))


kinds = st.sampled_from(["index", "create", "delete", "update", "orphan", "missing", "broken"])


@fuzz(100)
@given(kinds=st.lists(kinds, max_size=8), cuts=st.lists(st.integers(0, 9), max_size=4))
def test_each_line_is_a_document_or_rejected(tmp_path, kinds, cuts):
    lines, wanted, bad = ['{"index": {"_id": "first"}}', PAGE], ["first"], 0
    for number, kind in enumerate(kinds):
        action = json.dumps({kind: {"_id": f"d{number}"}})
        match kind:
            case "index" | "create":
                lines += [action, PAGE]
                wanted.append(f"d{number}")
            case "delete":
                lines.append(action)
            case "update":
                lines += [action, '{"doc": {}}']
            case "orphan":
                lines.append(PAGE)
            case "missing":
                lines += ['{"index": {"_id": "m"}}', '{"delete": {"_id": "n"}}']
                bad += 1
            case "broken":
                lines += ['{"index": {"_id": "m"}}', "{"]
        bad += kind not in ("index", "create")
    path = tmp_path / "bulk.json"
    path.write_text("\n".join(lines))
    documents, rejected = read(path, cuts, on_error="skip")
    assert [each.doc_id for each in documents] == wanted
    assert len(rejected) == bad
