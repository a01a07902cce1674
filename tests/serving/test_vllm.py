"""A vLLM server generates: a stand-in that speaks its protocol, and a real one where it is installed.

`make test-vllm VLLM_PYTHON=…` runs the real one, whose Python is in PISCO_INDEX_VLLM.
"""

import asyncio
import base64
import io
import json
import os
import socket
import subprocess
import time
from contextlib import contextmanager

import httpx
import pytest
import torch
from starlette.applications import Starlette
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Route

from pisco_index import open_checkpoint
from pisco_index.errors import ConfigError
from pisco_index.model.decoding.embedder import load_embedder
from pisco_index.model.decoding.greedy import decode
from pisco_index.model.families.export_decoder import export_decoder
from pisco_index.reader.live.vllm import VllmEngine

from .conftest import CHECKPOINT, chat, serving

PARGER = "Where was Ebir Parger born?"
PYTHON = os.environ.get("PISCO_INDEX_VLLM")


def embedder(**options):
    return load_embedder(open_checkpoint(CHECKPOINT), dtype=torch.float32, **options)


class StandIn:
    """Speaks vLLM's protocol; it generates with the decoder of this process."""

    def __init__(self, decoder):
        self._decoder = decoder
        self.context, self.failure, self.dropped, self.hangs = 2048, None, 0, False
        self.app = Starlette(
            routes=[
                Route("/health", lambda _: JSONResponse({})),
                Route("/v1/models", self.models),
                Route("/v1/completions", self.complete, methods=["POST"]),
            ]
        )

    async def models(self, _request):
        return JSONResponse({"data": [{"id": "decoder", "max_model_len": self.context}]})

    async def complete(self, request):
        body = await request.json()
        if self.failure == "nonsense":
            return StreamingResponse(iter(['data: {"choices": null}\n\n']), media_type="text/event-stream")
        if self.failure is not None:
            return JSONResponse({"error": {"message": self.failure}}, 400)
        assert (body["model"], body["temperature"], body["stream"]) == ("decoder", 0, True)
        assert (body["return_token_ids"], body["repetition_penalty"]) == (True, 1)
        content = base64.b64decode(body["prompt_embeds"], validate=True)
        embeddings = torch.load(io.BytesIO(content), weights_only=True)
        # Nothing but the prompt was written.
        assert len(content) < embeddings.nbytes + 4000
        with torch.inference_mode():
            (ids,) = decode(
                self._decoder.model, [embeddings], body["stop_token_ids"], limit=body["max_tokens"], penalty=1, pad=0
            )
        return StreamingResponse(self.events(ids, body), media_type="text/event-stream")

    async def events(self, ids, body):
        try:
            for place, token in enumerate(ids):
                while self.hangs:
                    await asyncio.sleep(0.01)
                ended = place == len(ids) - 1
                reason = ("stop" if token in body["stop_token_ids"] else "length") if ended else None
                yield f"data: {json.dumps({'choices': [{'token_ids': [token], 'finish_reason': reason}]})}\n\n"
            yield "data: [DONE]\n\n"
        except asyncio.CancelledError:
            self.dropped += 1
            raise


@pytest.fixture
def stand_in(index):
    stand_in = StandIn(index.decoder)
    with serving(stand_in.app) as client:
        stand_in.url = str(client.base_url)
        yield stand_in


def test_answers_are_those_of_the_own_decoder(served, stand_in, index, questions):
    client = served(engine=VllmEngine(stand_in.url, embedder())).client
    expected = index.answer([each["question"] for each in questions[:20]], hits=2, max_new_tokens=16)
    for each, answer in zip(questions, expected, strict=False):
        found = chat(client, each["question"], hits=2, max_tokens=16).json()
        assert found["choices"][0]["message"]["content"] == answer.answer
    streamed = chat(client, PARGER, max_tokens=16, stream=True).text
    assert '"finish_reason":"stop"' in streamed
    assert client.get("/ready").status_code == 200


def test_what_the_engine_refuses_fails_alone(served, stand_in, caplog):
    stand_in.context = 100
    server = served(engine=VllmEngine(f"{stand_in.url}/v1/", embedder()))
    too_long = chat(server.client, PARGER, max_tokens=90)
    assert (too_long.status_code, too_long.json()["error"]["code"]) == (400, "unusable_prompt")
    for failure in ("no such thing", "nonsense"):
        stand_in.failure = failure
        refused = chat(server.client, PARGER, max_tokens=4, hits=1)
        assert (refused.status_code, refused.json()["error"]["code"]) == (502, "engine")
    assert "no such thing" in caplog.text
    stand_in.failure = None
    assert chat(server.client, PARGER, max_tokens=4, hits=1).status_code == 200


def test_an_answer_that_nobody_waits_for_is_given_up(served, stand_in):
    server = served(engine=VllmEngine(stand_in.url, embedder()))
    stand_in.hangs = True
    with pytest.raises(httpx.ReadTimeout):
        server.client.post(
            "/v1/chat/completions",
            json={"model": "wiki", "messages": [{"role": "user", "content": PARGER}]},
            timeout=2,
        )
    while not stand_in.dropped:
        time.sleep(0.01)
    stand_in.hangs = False
    assert chat(server.client, PARGER, max_tokens=4).status_code == 200


def test_a_server_that_is_none_is_named():
    with pytest.raises(ConfigError, match="no vLLM server answers there"):
        VllmEngine("http://127.0.0.1:9", embedder())
    with pytest.raises(ConfigError, match=r"repetition penalty 1\.2"):
        VllmEngine("http://127.0.0.1:9", embedder(repetition_penalty=1.2))


# The real one


@contextmanager
def vllm(folder, logs):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [PYTHON, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder), "--port", str(port)]
    command += ["--served-model-name", "decoder", "--dtype", "float32", "--max-model-len", "2048"]
    command += ["--enable-prompt-embeds", "--chat-template-content-format", "openai", "--host", "127.0.0.1"]
    settings = {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1"}
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | settings
    with logs.open("wb") as log, subprocess.Popen(command, stdout=log, stderr=log, env=environment) as process:
        try:
            url = f"http://127.0.0.1:{port}"
            while True:
                assert process.poll() is None, logs.read_text()[-3000:]
                try:
                    httpx.get(f"{url}/health", timeout=5).raise_for_status()
                    break
                except httpx.HTTPError:
                    time.sleep(1)
            yield url
        finally:
            process.terminate()
            process.wait(60)


@pytest.mark.skipif(PYTHON is None, reason="PISCO_INDEX_VLLM names no Python that has vLLM")
def test_a_real_vllm_gives_the_same_tokens(served, index, questions, tmp_path):
    checkpoint = open_checkpoint(CHECKPOINT)
    export_decoder(checkpoint, tmp_path / "decoder", dtype=torch.float32)
    expected = index.answer([each["question"] for each in questions], max_new_tokens=16)
    with vllm(tmp_path / "decoder", tmp_path / "log") as url:
        client = served(engine=VllmEngine(url, embedder())).client
        for each, answer in zip(questions, expected, strict=True):
            found = chat(client, each["question"], max_tokens=16).json()
            assert found["choices"][0]["message"]["content"] == answer.answer
        # Its own chat, with the exported template, takes a message in parts, and embeddings as one of them.
        text = index.decoder.tokenizer(f" {PARGER}", add_special_tokens=False)["input_ids"]
        table = index.decoder.model.get_input_embeddings()
        with torch.inference_mode():
            embeddings = table(torch.tensor(text)).clone()
        file = io.BytesIO()
        torch.save(embeddings, file)
        parts = [
            [{"type": "text", "text": f" {PARGER}"}],
            [{"type": "prompt_embeds", "data": base64.b64encode(file.getvalue()).decode()}],
        ]
        answers = [
            httpx.post(
                f"{url}/v1/chat/completions",
                json={
                    "model": "decoder",
                    "messages": [{"role": "user", "content": content}],
                    "temperature": 0,
                    "max_tokens": 16,
                },
                timeout=60,
            ).json()
            for content in parts
        ]
        texts = [each["choices"][0]["message"]["content"] for each in answers]
        assert texts[0] == texts[1]
