"""The examples for other frameworks work with these frameworks."""

import dataclasses
import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

from pisco_index import BuildConfig, Index, Reader, build, new_tiny_checkpoint

EXAMPLES = Path(__file__).parents[1] / "examples"
CITIES = {"o": ("Oslo", "Oslo is the capital of Norway."), "p": ("Paris", "Paris lies on the river Seine.")}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A store of two documents, and its checkpoint."""
    folder = tmp_path_factory.mktemp("examples")
    lines = [{"id": doc_id, "title": title, "text": text} for doc_id, (title, text) in CITIES.items()]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    new_tiny_checkpoint(folder / "checkpoint", rate=8)
    build([folder / "corpus.jsonl"], folder / "checkpoint", folder / "store", BuildConfig())
    return folder


def example(name: str) -> ModuleType:
    """Load an example as a module."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_langchain(folder):
    retriever = example("langchain_retriever").PiscoRetriever(reader=Reader(folder / "store"), hits=1)
    (found,) = retriever.invoke("Which river flows through Paris?")
    assert (found.id, found.metadata["title"]) == ("p", "Paris")
    assert found.page_content == "Paris\nParis lies on the river Seine."
    assert found.metadata["score"] > 0
    assert retriever.batch(["Norway?", "the"]) == [retriever.invoke("Norway"), []]


def test_haystack(folder, monkeypatch):
    monkeypatch.setenv("HAYSTACK_TELEMETRY_ENABLED", "false")
    question = "Which river flows through Paris?"
    with Index(folder / "store", folder / "checkpoint", dtype="float32", device="cpu") as index:
        pipeline = example("haystack_components").pipeline(index, top_k=1)
        result = pipeline.run({"retriever": {"query": question}, "answerer": {"query": question}})
        (expected,) = index.answer([question], hits=1)
    (answer,) = result["answerer"]["answers"]
    assert (answer.data, answer.query) == (expected.answer, question)
    assert [(each.id, each.meta["title"], each.content) for each in answer.documents] == [
        ("p", "Paris", "Paris\nParis lies on the river Seine.")
    ]
    assert answer.meta["memory_tokens"] == expected.memory_tokens > 0


def test_real_model(folder, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    real_model = example("real_model")
    base = folder / "checkpoint" / "base_decoder"
    monkeypatch.setattr(real_model, "unpacked", lambda *_: (base, base))
    texts = ["The city is the capital of the country. " * 20, "A river flows through the large town. " * 20]
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text("".join(json.dumps({"id": str(i), "title": "", "text": t}) + "\n" for i, t in enumerate(texts)))
    settings = real_model.Settings(rate=4, window=8, batch=2, steps=3, every=1, measured=2, autoencoding=0.5)
    settings = dataclasses.replace(settings, answer_steps=5)

    run, answers = tmp_path / "rate-4", tmp_path / "rate-4" / "answers-1000-of-8"

    def points(folder: Path = run) -> list[dict]:
        return json.loads((folder / "curve.json").read_text())["points"]

    real_model.main(tmp_path, [corpus], None, dataclasses.replace(settings, minutes=0), "cpu")
    assert [each["step"] for each in points()] == [0]
    with pytest.raises(SystemExit, match=r"begun with window 8\. Name another"):
        real_model.main(tmp_path, [corpus], None, dataclasses.replace(settings, window=9), "cpu")
    other = tmp_path / "other.jsonl"
    other.write_text(corpus.read_text().replace("river", "stream"))
    with pytest.raises(SystemExit, match="begun with another text"):
        real_model.main(tmp_path, [other], None, settings, "cpu")
    # An untrained teacher ends no answer.
    for name, doc_id in (("train", "1"), ("held-out", "0")):
        line = {
            "id": doc_id,
            "documents": [{"text": "The\u2028city."}],
            "question": real_model.QUESTION,
            "answer": "Big.",
        }
        answers.mkdir(exist_ok=True)
        (answers / f"answers-{name}.jsonl").write_text(json.dumps(line, ensure_ascii=False) + "\n", "utf-8")
    real_model.main(tmp_path, [corpus], None, settings, "cpu")
    first, *_, last = points()
    assert last["step"] == 3
    # Whatever the decoder is trained on, it must have learned something.
    assert last["autoencoding_memory"] < first["autoencoding_memory"]
    first, *_, last = points(answers)
    assert last["step"] == 5
    assert last["answering_memory"] < first["answering_memory"]
    memory = Reader(answers / "store-5").fetch(["0"])
    assert memory.values.isfinite().all()
