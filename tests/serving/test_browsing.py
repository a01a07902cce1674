"""What stores hold can be looked at: models, documents, a search, sizes and history."""

import socket
import threading
import time

import pytest

from pisco_index import build, delete, load_config
from pisco_index.configs import ServeConfig

from .conftest import CHECKPOINT, chat

PARGER = "Where was Ebir Parger born?"


def test_the_stores_are_models(client, index):
    wiki, other = client.get("/v1/models").json()["data"]
    assert (wiki["id"], wiki["object"], wiki["documents"], wiki["searchable"]) == ("wiki", "model", 24, True)
    assert (other["id"], other["documents"], other["searchable"]) == ("other", 1, False)
    assert client.get("/v1/models/wiki").json() == wiki
    assert client.get("/v1/models/none").json()["error"]["code"] == "model_not_found"
    assert wiki["version"] == index.reader.version


def test_a_document_is_shown_with_its_text_if_that_is_kept(client, index):
    found = client.get("/v1/documents/tp-held-out-000000", params={"model": "wiki"}).json()
    assert found["id"] == "tp-held-out-000000"
    assert "Ebir Parger" in found["title"]
    assert found["memory_tokens"] == index.reader.sizes(["tp-held-out-000000"])[0].memory
    assert found["codec"] == "int8"
    assert found["memory_bytes"] > 1000
    assert "Niritur" in found["text"]
    odd = client.get("/v1/documents/a%2Fb%3Fc%23d%20%25", params={"model": "other"}).json()
    assert (odd["id"], odd["title"], odd["text"]) == ("a/b?c#d %", "Odd", None)


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/v1/documents/nobody?model=wiki", 404, "document_not_found"),
        ("/v1/documents/tp-held-out-000000?model=other", 404, "document_not_found"),
        ("/v1/documents/tp-held-out-000000", 400, "model_missing"),
        ("/v1/documents/..%2F..%2Fwiki?model=other", 404, "document_not_found"),
        ("/v1/documents/%00?model=wiki", 404, "document_not_found"),
        ("/v1/documents?model=wiki&offset=-1", 400, "invalid_value"),
        ("/v1/documents?model=other&search=odd", 400, "not_searchable"),
        ("/v1/stores/..%2Fwiki", 404, "model_not_found"),
        ("/v1/none", 404, "not_found"),
        ("/page/../app.py", 404, "not_found"),
        ("/v1/chat/completions", 405, "method_not_allowed"),
    ],
)
def test_what_is_not_there_is_told_in_openais_form(client, path, status, code):
    response = client.get(path)
    assert (response.status_code, response.json()["error"]["code"]) == (status, code)


def test_documents_are_paged_in_the_order_of_the_store(client, index):
    ids = []
    while page := client.get("/v1/documents", params={"model": "wiki", "offset": len(ids), "limit": 10}).json()["data"]:
        assert "text" not in page[0]
        ids += [each["id"] for each in page]
    assert ids == list(index.reader.ids())


def test_documents_are_found_by_words_and_by_id(client, index):
    def found(search, **options):
        params = {"model": "wiki", "search": search} | options
        return [each["id"] for each in client.get("/v1/documents", params=params).json()["data"]]

    assert found("Ebir Parger", limit=3) == [hit.doc_id for hit in index.search("Ebir Parger", 3)]
    assert found("Ebir Parger", limit=2, offset=1) == [hit.doc_id for hit in index.search("Ebir Parger", 3)][1:]
    assert found("tp-held-out-000007")[0] == "tp-held-out-000007"
    assert found("zzz") == []


def test_retrieval_is_the_readers(client, index):
    found = client.post("/v1/retrieve", json={"query": PARGER, "model": "wiki", "hits": 3}).json()["data"]
    assert [(each["id"], each["score"]) for each in found] == [tuple(hit) for hit in index.search(PARGER, 3)]
    assert found[0]["title"] == "Ebir Parger"
    assert client.post("/v1/retrieve", json={"query": "zzz", "model": "wiki"}).json()["data"] == []
    for body, code in (
        ({"query": PARGER, "model": "other"}, "not_searchable"),
        ({"query": PARGER, "model": "wiki", "hits": 21}, "too_many_documents"),
        ({"query": PARGER, "model": "wiki", "k": 3}, "invalid_value"),
        ({"model": "wiki"}, "invalid_value"),
    ):
        assert client.post("/v1/retrieve", json=body).json()["error"]["code"] == code


def test_a_store_is_described_without_its_place(client, folder):
    response = client.get("/v1/stores/wiki")
    found = response.json()
    assert (found["documents"], found["codec"], found["stage"], found["failed_documents"]) == (24, "int8", "hidden", 0)
    assert [each["documents"] for each in found["history"]] == [24]
    assert found["history"][0]["time"].endswith("+00:00")
    assert str(folder) not in response.text


def test_probes_and_numbers(client):
    assert client.get("/health").json() == {"status": "ok"}
    assert client.get("/ready").json() == {"status": "ready"}
    assert chat(client, PARGER, max_tokens=4).status_code == 200
    # A request is counted when its response has been sent.
    counted = 'pisco_index_requests_total{path="/v1/chat/completions",status="200"}'
    deadline = time.monotonic() + 20
    while counted not in (numbers := client.get("/metrics").text):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert 'pisco_index_tokens_total{kind="memory"}' in numbers
    assert 'pisco_index_answer_seconds_count{part="decode"}' in numbers
    client.get("/some/other/path")
    assert "/some/other" not in client.get("/metrics").text


def test_a_store_is_opened_anew_while_it_is_asked(served):
    server = served()
    before = server.client.get("/v1/models").json()["data"][0]["version"]
    stop, seen = threading.Event(), []

    def ask():
        while not stop.is_set():
            seen.append(chat(server.client, PARGER, max_tokens=8).status_code)

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    delete(server.folder, ["tp-held-out-000003"])
    # The opened version stays as it is until the reload.
    assert server.client.get("/v1/documents/tp-held-out-000003").status_code == 200
    (reloaded,) = server.client.post("/reload").json()["data"]
    assert (reloaded["version_before"], reloaded["error"]) == (before, None)
    assert reloaded["version"] > before
    assert server.client.get("/v1/documents/tp-held-out-000003").status_code == 404
    assert server.client.get("/v1/models").json()["data"][0]["documents"] == 23
    stop.set()
    for thread in threads:
        thread.join()
    assert set(seen) == {200}


def test_a_store_that_cannot_be_opened_anew_keeps_its_version(served, caplog):
    server = served()
    server.folder.rename(server.folder.with_name("away"))
    (reloaded,) = server.client.post("/reload").json()["data"]
    assert reloaded["error"] is not None
    assert str(server.folder) not in str(reloaded)
    assert "cannot be opened anew" in caplog.text
    assert server.client.get("/v1/models").json()["data"][0]["documents"] == 24


def test_another_store_in_its_place_is_refused(served, tmp_path, caplog):
    server = served()
    server.folder.rename(tmp_path / "away")
    (tmp_path / "c.jsonl").write_text('{"_id": "x", "title": "T", "text": "Other settings."}\n')
    other = load_config("tinypedia", {"compression": {"max_length": 20}})
    build([tmp_path / "c.jsonl"], CHECKPOINT, server.folder, other)
    # Other settings of compression are no other checkpoint.
    assert server.client.post("/reload").json()["data"][0]["error"] is None
    assert server.client.get("/v1/documents/x").status_code == 200


def test_a_body_that_does_not_come_in_time_is_given_up(served):
    url = served(ServeConfig(deadline_s=0.2)).client.base_url
    for path in ("/v1/retrieve", "/v1/chat/completions"):
        with socket.create_connection((url.host, url.port), timeout=30) as slow:
            head = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 99\r\n\r\n{{"
            slow.sendall(head.encode())
            # Until the server closes the connection.
            response = b"".join(iter(lambda: slow.recv(4096), b"")).decode()
        assert response.startswith("HTTP/1.1 504 ")
        assert "deadline_exceeded" in response
