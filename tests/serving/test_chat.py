"""The plain client of OpenAI asks, and gets what the reader answers; what is not supported is refused."""

import functools
import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest

from pisco_index.configs import ServeConfig
from pisco_index.reader.live.engine import FakeEngine

from .conftest import chat

# A list in a list, 900 times.
DEEP = functools.reduce(lambda inner, _: [inner], range(900), [])
PARGER = "Where was Ebir Parger born?"


@pytest.fixture(scope="module")
def api(client):
    with openai.OpenAI(base_url=f"{client.base_url}/v1", api_key="none", max_retries=0) as api:
        yield api


def ask(api, question, *, stream=False, extra=None, **options):
    messages = [{"role": "user", "content": question}]
    return api.chat.completions.create(model="wiki", messages=messages, stream=stream, extra_body=extra, **options)


def test_answers_of_many_at_once_are_those_of_the_reader(api, index, questions):
    expected = index.answer([each["question"] for each in questions], max_new_tokens=16, hits=2)
    with ThreadPoolExecutor(16) as threads:
        found = list(threads.map(lambda each: ask(api, each["question"], max_tokens=16, extra={"hits": 2}), questions))
    assert [each.choices[0].message.content for each in found] == [each.answer for each in expected]
    assert [tuple(d["id"] for d in each.documents) for each in found] == [each.documents for each in expected]
    assert [each.usage.prompt_tokens for each in found] == [each.prompt_tokens for each in expected]
    assert [each.usage.memory_tokens for each in found] == [each.memory_tokens for each in expected]


def test_named_documents_are_used_and_counted(api, index, questions):
    first = questions[0]
    found = ask(
        api, first["question"], extra={"documents": first["doc_ids"]}, temperature=0, n=1, seed=3, max_tokens=16
    )
    (expected,) = index.answer([first["question"]], doc_ids=[first["doc_ids"]], max_new_tokens=16)
    (choice,) = found.choices
    assert (choice.message.content, choice.message.role, choice.finish_reason) == (expected.answer, "assistant", "stop")
    usage = found.usage
    assert (usage.prompt_tokens, usage.memory_tokens) == (expected.prompt_tokens, expected.memory_tokens)
    assert (usage.text_tokens, usage.saved_text_tokens) == (
        expected.text_tokens,
        expected.text_tokens - expected.memory_tokens,
    )
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert found.documents == [{"id": first["doc_ids"][0], "score": None, "memory_tokens": expected.memory_tokens}]
    assert found.timings.keys() == {"queue", "retrieve", "fetch", "first_token", "decode", "total"}
    assert ask(api, first["question"], max_completion_tokens=1).choices[0].finish_reason == "length"


def test_a_stream_is_the_answer_in_pieces(api, questions):
    for each in questions[:8]:
        whole = ask(api, each["question"], max_tokens=16)
        chunks = list(ask(api, each["question"], max_tokens=16, stream=True, stream_options={"include_usage": True}))
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1])
        assert text == whole.choices[0].message.content
        assert chunks[0].choices[0].delta.role == "assistant"
        assert chunks[0].documents == whole.documents
        assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason
        assert chunks[-1].usage == whole.usage
        assert len({chunk.id for chunk in chunks}) == 1
    assert all(chunk.choices for chunk in ask(api, questions[0]["question"], stream=True))


def test_a_message_may_have_parts_of_text(api, questions):
    text = questions[0]["question"]
    parts = [{"type": "text", "text": text[:9]}, {"type": "text", "text": text[9:]}]
    assert ask(api, parts, max_tokens=16).choices == ask(api, text, max_tokens=16).choices


@pytest.mark.parametrize(
    ("further", "status", "param", "code"),
    [
        ({"temperature": 0.7}, 400, "temperature", "unsupported_value"),
        ({"n": 2}, 400, "n", "unsupported_value"),
        ({"tools": [{"type": "function"}]}, 400, "tools", "unsupported_value"),
        ({"response_format": {"type": "json_object"}}, 400, "response_format", "unsupported_value"),
        ({"stop": ["\n"]}, 400, "stop", "unsupported_value"),
        ({"logprobs": True}, 400, "logprobs", "unsupported_value"),
        ({"beam_width": 4}, 400, "beam_width", "unsupported_value"),
        ({"temperature": DEEP}, 400, "temperature", "unsupported_value"),
        ({"messages": [{"role": DEEP, "content": "Who?"}]}, 400, "messages", "unsupported_value"),
        ({"messages": [{"role": "user", "content": [{"type": DEEP}]}]}, 400, "messages.0.content", "unsupported_value"),
        ({"messages": []}, 400, "messages", "invalid_value"),
        (
            {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Who?"}]},
            400,
            "messages",
            "unsupported_value",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}]},
            400,
            "messages.0.content",
            "unsupported_value",
        ),
        ({"messages": [{"role": "user", "content": 3}]}, 400, "messages.0.content", "invalid_value"),
        ({"messages": [{"role": "user", "content": "  "}]}, 400, "messages", "unusable_prompt"),
        ({"messages": [{"role": "user", "content": "the " * 3000}]}, 400, "messages", "unusable_prompt"),
        ({"max_tokens": 0}, 400, "max_tokens", "invalid_value"),
        ({"max_tokens": "9"}, 400, "max_tokens", "invalid_value"),
        ({"max_tokens": 5000}, 400, "messages", "unusable_prompt"),
        ({"documents": ["tp-held-out-000000", "nobody"]}, 404, "documents", "document_not_found"),
        ({"documents": []}, 400, "documents", "invalid_value"),
        ({"documents": ["12"], "hits": 3}, 400, "hits", "invalid_value"),
        ({"documents": [f"tp-held-out-{n:06}" for n in range(21)]}, 400, "documents", "too_many_documents"),
        ({"hits": 21}, 400, "hits", "too_many_documents"),
        ({"model": "none"}, 404, "model", "model_not_found"),
        ({"model": "other"}, 400, "documents", "not_searchable"),
        # An id of one store leads to nothing in the other.
        ({"model": "other", "documents": ["tp-held-out-000000"]}, 404, "documents", "document_not_found"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_what_cannot_be_answered_is_refused_in_openais_form(client, further, status, param, code, stream):
    response = chat(client, PARGER, stream=stream, **further)
    error = response.json()["error"]
    assert (response.status_code, error["param"], error["code"]) == (status, param, code)
    assert error["type"] == "invalid_request_error"
    assert error["message"].endswith(".")


def test_the_client_raises_the_errors_of_openai(api):
    with pytest.raises(openai.BadRequestError, match="temperature"):
        ask(api, "Who?", temperature=1)
    with pytest.raises(openai.NotFoundError):
        ask(api, "Who?", extra={"documents": ["nobody"]})


@pytest.mark.parametrize(
    ("body", "kind", "status"),
    [
        (b"{", "application/json", 400),
        (b"[]", "application/json", 400),
        (b'{"model": "\xff"}', "application/json", 400),
        (b"[" * 100_000, "application/json", 400),
        (b'{"model": "' + b"x" * (1 << 20) + b'"}', "application/json", 413),
        # A form of another site's page needs no permission of a browser; JSON does.
        (b"{}", "text/plain", 415),
        (b"{}", "application/x-www-form-urlencoded", 415),
    ],
)
def test_a_body_that_is_no_request_is_refused(client, body, kind, status):
    response = client.post("/v1/chat/completions", content=body, headers={"content-type": kind})
    assert response.status_code == status
    assert "error" in response.json()


# Load


class Slow(FakeEngine):
    """An engine that writes no word before it is let go."""

    def __init__(self):
        super().__init__({})
        self.begun, self.go = threading.Event(), threading.Event()
        self.prompt_ids = lambda *_: [0]

    def run(self, take):
        def taken(running, patience):
            new = take(running, patience)
            if new:
                self.begun.set()
                while not self.go.wait(0.01) and all(each.is_wanted() for each in new):
                    pass
            return new

        super().run(taken)


def test_a_full_queue_is_told_with_the_time_to_come_back(served):
    engine = Slow()
    server = served(engine=engine, queue=1)
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(chat, server.client, PARGER)
        assert engine.begun.wait(60)
        second = threads.submit(chat, server.client, PARGER)
        while server.live.queued < 1:
            time.sleep(0.01)
        refused = chat(server.client, PARGER)
        # Nothing of the body is looked at.
        unread = server.client.post("/v1/chat/completions", content=b"{")
        engine.go.set()
        assert first.result().status_code == second.result().status_code == 200
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
    assert refused.json()["error"]["code"] == unread.json()["error"]["code"] == "queue_full"
    assert chat(server.client, PARGER).status_code == 200


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_hangs_up_frees_its_place(served, stream):
    engine = Slow()
    server = served(engine=engine)
    body = {"model": "wiki", "messages": [{"role": "user", "content": PARGER}], "stream": stream}
    content = json.dumps(body).encode()
    with socket.create_connection((server.client.base_url.host, server.client.base_url.port)) as connection:
        connection.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
            b"content-length: %d\r\n\r\n%s" % (len(content), content)
        )
        assert engine.begun.wait(60)
        # It waits behind the first.
        with ThreadPoolExecutor(1) as threads:
            other = threads.submit(chat, server.client, PARGER)
            while server.live.queued < 1:
                time.sleep(0.01)
            connection.close()
            while server.live.queued:
                time.sleep(0.01)
            engine.go.set()
            assert other.result().status_code == 200
    path = 'pisco_index_requests_total{path="/v1/chat/completions",status='
    numbers = server.client.get("/metrics").text
    assert f'{path}"{200 if stream else 499}"}}' in numbers


def test_a_server_limits_the_tokens_that_a_request_may_ask_for(served):
    client = served(ServeConfig(max_tokens=2)).client
    for name in ("max_tokens", "max_completion_tokens"):
        error = chat(client, PARGER, **{name: 3}).json()["error"]
        assert (error["code"], error["param"]) == ("too_many_tokens", name)
    for asked in ({}, {"max_tokens": 2}):
        assert chat(client, PARGER, **asked).json()["usage"]["completion_tokens"] == 2


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_that_takes_too_long_is_ended(served, stream):
    engine = Slow()
    server = served(ServeConfig(deadline_s=0.3), engine=engine)
    response = chat(server.client, PARGER, stream=stream)
    if stream:
        # The documents were told before.
        event = json.loads(response.text.split("\n\n")[1].removeprefix("data: "))
        assert response.status_code == 200
    else:
        event = response.json()
        assert response.status_code == 504
    assert event["error"]["code"] == "deadline_exceeded"
    assert server.live.queued == 0


def test_an_engine_that_fails_is_told_without_its_secrets(served, caplog):
    engine = FakeEngine({})
    engine.prompt_ids = lambda *_: [0]
    engine.error = RuntimeError("Traceback: /secret/place")
    server = served(engine=engine)
    response = chat(server.client, PARGER)
    assert (response.status_code, response.json()["error"]["code"]) == (502, "engine")
    assert "secret" not in response.text
    assert server.client.get("/ready").status_code == 503
    assert chat(server.client, PARGER).status_code == 200
    assert server.client.get("/ready").status_code == 200
    assert "secret" in caplog.text
