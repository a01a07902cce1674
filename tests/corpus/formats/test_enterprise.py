"""Pages of Wikimedia Enterprise are read from their wikitext."""

import json


def page(number, wikitext):
    body = {"html": "<p>x</p>", "wikitext": wikitext}
    return {
        "name": f"P{number}",
        "identifier": number,
        "abstract": "x",
        "article_body": body,
        "version": {"identifier": 1},
    }


def test_pages_are_prose_with_their_titles(write, sources, read_in_shards):
    pages = [page(81, "An '''orchard''' has [[fruit|fruits]]."), page(82, "{{stub}}"), page(83, "Hedges.<ref>x</ref>")]
    path = write("enwiki.ndjson", "\n".join(map(json.dumps, pages)))
    (source,) = sources(path)
    for cuts in ((), (1, 2)):
        documents = read_in_shards(source, cuts)
        assert [(each.doc_id, each.title, each.text) for each in documents] == [
            ("81#0", "P81", "An orchard has fruits."),
            ("83#0", "P83", "Hedges."),
        ]


def test_pages_are_cut_as_those_of_other_dumps(write, sources):
    (source,) = sources(write("c.ndjson", json.dumps(page(1, "word " * 150))))
    assert [each.doc_id for each in source.read(0, None)] == ["1#0", "1#1"]


def test_another_field_may_be_the_text(write, documents, refusal):
    assert documents(write("c.ndjson", json.dumps(page(1, "w"))), text_field="abstract")[0].text == "x"
    without = page(1, "w") | {"article_body": {"html": "<p>x</p>"}}
    assert "Wikimedia Enterprise" in refusal(write("d.ndjson", json.dumps(without)))
