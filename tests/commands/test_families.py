"""The released families of checkpoints, through the commands: from a corpus to answers."""

import json

import numpy as np
import pytest

from pisco_index import BuildConfig, Decoder, Reader, build, open_checkpoint

from ..released import write_base, write_cocom, write_cocom_v1, write_oscar


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    path = tmp_path_factory.mktemp("families") / "corpus.jsonl"
    lines = [{"id": f"d{n}", "title": f"T{n}", "text": "the river and the city " * n} for n in range(1, 8)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture(scope="session")
def questions(corpus):
    path = corpus.with_name("questions.jsonl")
    lines = [
        {"question": "Where is it?", "answers": ["a river"], "doc_ids": ["d2", "d1"]},
        {"question": "Who?", "answers": ["nobody"], "doc_ids": ["d7"]},
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture(scope="session")
def cocom(tmp_path_factory):
    return write_cocom(tmp_path_factory.mktemp("cocom"), base={"generation": {"repetition_penalty": 1.3}})


@pytest.fixture(scope="session")
def oscar(tmp_path_factory):
    return write_oscar(tmp_path_factory.mktemp("oscar"))


SMALL = ("--dtype", "float32", "--codec", "fp32", "--shard-documents", 3)


@pytest.mark.parametrize(
    "write",
    [write_cocom, write_cocom_v1, lambda folder: write_cocom_v1(folder, light=True, rate=4)],
    ids=["cocom", "cocom-v1", "light"],
)
def test_stored_memory_from_corpus_to_answer(write, corpus, questions, tmp_path, run):
    checkpoint = write(tmp_path / "model")
    store, base = tmp_path / "store", checkpoint.parent / "base_decoder"
    inputs = corpus, "-k", checkpoint, "--base", base, "-o", store
    built = run("build", *inputs, *SMALL)
    assert built.exit_code == 0, built.output
    shown = run("info", store, "--json")
    assert json.loads(shown.stdout)["stage"] == "embedding"
    verified = run("verify", store, "-k", checkpoint, "--base", base, "--sample", 3, "--corpus", corpus, "--json")
    assert verified.exit_code == 0, verified.output
    assert json.loads(verified.stdout)["largest_error"] < 1e-4
    assert run("get", store, "d1", "d5", "-o", tmp_path / "memory.npz").exit_code == 0
    asked = run("ask", store, "Where?", "-d", "d1", "-d", "d2", "-k", checkpoint, "--dtype", "float32", "--json")
    assert asked.exit_code == 0, asked.output
    with Reader(store) as reader:
        memory = reader.fetch(["d1", "d2"])
        assert memory.values.equal(reader.embeddings(["d1", "d2"]).values)
        assert json.loads(asked.stdout)["memory_tokens"] == len(memory.values)
        decoder = Decoder.load(open_checkpoint(checkpoint, decoder_base=str(base)), dtype=memory.values.dtype)
        assert json.loads(asked.stdout)["answer"] == decoder.answer("Where?", memory)
    options = "--dtype", "float32", "--max-new-tokens", 4, "--codec", "int8", "--json"
    scored = run("eval", store, "-q", questions, "-k", checkpoint, *options)
    assert scored.exit_code == 0, scored.output
    rows = [(row["condition"], row["stage"], row["codec"]) for row in json.loads(scored.stdout)["rows"]]
    assert rows == [("none", None, None), ("stored", "embedding", "fp32"), ("recoded", "embedding", "int8")]
    assert run("recode", store, "--codec", "int8", "-o", tmp_path / "recoded").exit_code == 0
    recoded = run("verify", tmp_path / "recoded", "-k", checkpoint)
    assert recoded.exit_code == 0, recoded.output
    exported = run("export", store, "-o", tmp_path / "exported", "--stage", "embedding", "--format", "npy")
    assert exported.exit_code == 0, exported.output
    assert "1 before" not in run("build", *inputs, *SMALL).stdout


def test_an_update_of_a_store_without_a_connector(cocom, corpus, tmp_path, run):
    (tmp_path / "corpus.jsonl").write_text(corpus.read_text())
    inputs = tmp_path / "corpus.jsonl", "-k", cocom, "-o", tmp_path / "store", *SMALL
    assert run("build", *inputs).exit_code == 0
    with (tmp_path / "corpus.jsonl").open("a") as file:
        file.write('{"id": "new", "text": "more"}\n')
    updated = run("build", *inputs, "--json")
    assert json.loads(updated.stdout)["changes"]["new"] == 1
    assert run("verify", tmp_path / "store").exit_code == 0
    with Reader(tmp_path / "store") as reader, pytest.raises(Exception, match="no connector"):
        _ = reader.connector


def test_a_calibrated_codec_at_decoder_width(cocom, corpus, tmp_path, run):
    built = run("build", corpus, "-k", cocom, "-o", tmp_path / "store", "--codec", "klt2")
    assert built.exit_code == 0, built.output
    assert run("verify", tmp_path / "store", "-k", cocom).exit_code == 0


def test_a_stage_that_a_family_lacks(cocom, oscar, corpus, tmp_path, run):
    hidden = run("build", corpus, "-k", cocom, "-o", tmp_path / "store", "--stage", "hidden")
    assert "a checkpoint of family cocom has memory at stage embedding only, not 'hidden'" in hidden.output
    fresh = run("build", corpus, "-k", oscar, "-o", tmp_path / "store", "--stage", "hidden")
    assert "memory of this checkpoint depends on the question" in fresh.output
    assert not (tmp_path / "store").exists()


def test_stores_of_another_family_are_refused_with_both_names(cocom, folder, corpus, tmp_path, run):
    """A store is neither resumed, nor verified, nor asked with a checkpoint of another family."""
    store, other = folder / "store", folder / "checkpoint"
    asked = run("ask", store, "What?", "-d", "d1", "-k", cocom)
    assert "of family pisco, not cocom" in " ".join(asked.output.split())
    assert "family: pisco | cocom" in run("build", folder / "corpus.jsonl", "-k", cocom, "-o", store).output
    assert "family: pisco | cocom" in run("verify", store, "-k", cocom).output
    assert run("build", corpus, "-k", cocom, "-o", tmp_path / "store").exit_code == 0
    asked = run("ask", tmp_path / "store", "What?", "-d", "d1", "-k", other)
    assert "of family cocom, not pisco" in " ".join(asked.output.split())


def test_a_missing_base_is_named_with_its_flag(cocom, corpus, tmp_path, run):
    refused = run("build", corpus, "-k", cocom, "-o", tmp_path / "store", "--base", tmp_path / "nowhere")
    assert refused.exit_code == 2
    assert "nowhere" in refused.output
    assert "base" in refused.output


def test_the_fingerprint_does_not_depend_on_the_place_of_the_base(cocom, corpus, tmp_path, run):
    assert run("build", corpus, "-k", cocom, "-o", tmp_path / "store").exit_code == 0
    moved = tmp_path / "moved"
    moved.symlink_to(cocom.parent / "base_decoder")
    assert run("verify", tmp_path / "store", "-k", cocom, "--base", moved).exit_code == 0
    other = write_base(tmp_path / "other", seed=5)
    assert run("verify", tmp_path / "store", "-k", cocom, "--base", other).exit_code == 3


def test_oscar_stores_text_and_makes_memory_with_the_question(oscar, corpus, questions, tmp_path, run):
    store = tmp_path / "store"
    built = run("build", corpus, "-k", oscar, "-o", store, "--keep", "nothing", "--codec", "klt2", "--dtype", "float32")
    assert built.exit_code == 0, built.output
    assert "memory is made at question time" in built.output
    assert "storing title and text" in built.output
    assert run("verify", store, "-k", oscar, "--sample", 2, "--corpus", corpus).exit_code == 0
    described = run("info", store).output
    assert "memory is made at question time" in described
    # Such a store counts no tokens, so no rate is shown.
    assert "compression" not in described.split("fingerprint")[0]
    asked = [
        run("ask", store, question, "-d", "d1", "-d", "d7", "-k", oscar, "--dtype", "float32", "--json")
        for question in ("Where is it?", "Who?")
    ]
    answers = [json.loads(each.stdout) for each in asked]
    assert [answer["memory_tokens"] for answer in answers] == [8, 8]
    assert answers[0]["answer"] != answers[1]["answer"]
    searched = run("ask", store, "The river?", "--hits", 1, "-k", oscar, "--dtype", "float32", "--json")
    assert len(json.loads(searched.stdout)["documents"]) == 1
    scored = run("eval", store, "-q", questions, "-k", oscar, "--dtype", "float32", "--max-new-tokens", 4, "--json")
    assert scored.exit_code == 0, scored.output
    assert [row["condition"] for row in json.loads(scored.stdout)["rows"]] == ["none", "text", "fresh"]
    again = run("build", corpus, "-k", oscar, "-o", store, "--dtype", "float32", "--json")
    assert json.loads(again.stdout)["committed"] == 0


def test_commands_for_stored_memory_refuse_a_store_of_texts(oscar, corpus, tmp_path, run):
    store = tmp_path / "store"
    assert run("build", corpus, "-k", oscar, "-o", store).exit_code == 0
    for command in (
        ("get", store, "d1"),
        ("export", store, "-o", tmp_path / "exported"),
        ("recode", store, "--codec", "int8"),
        ("eval", store, "-q", corpus, "-k", oscar, "--codec", "int8"),
    ):
        refused = run(*command)
        assert refused.exit_code == 2, refused.output
    assert "holds texts and no memory" in run("get", store, "d1").output
    estimate = run("build", corpus, "-k", oscar, "-o", tmp_path / "other", "--dry-run", "--json")
    assert json.loads(estimate.stdout)["memory_tokens"] == 0


def test_memory_with_the_question_in_the_layout_of_2026(folder, questions, tmp_path, run):
    """A pisco checkpoint makes fresh memory if the store was built for that."""
    store, checkpoint = tmp_path / "store", folder / "checkpoint"
    built = run("build", folder / "corpus.jsonl", "-k", checkpoint, "-o", store, "--stage", "question")
    assert built.exit_code == 0, built.output
    scored = run("eval", store, "-q", questions, "-k", checkpoint, "--max-new-tokens", 4, "--json")
    assert [row["condition"] for row in json.loads(scored.stdout)["rows"]] == ["none", "text", "fresh"]


def test_the_bases_repetition_penalty_applies_and_can_be_overridden(cocom, corpus, tmp_path, run):
    assert run("build", corpus, "-k", cocom, "-o", tmp_path / "store", "--dtype", "float32").exit_code == 0
    options = "ask", tmp_path / "store", "Where?", "-d", "d3", "-k", cocom, "--dtype", "float32", "--json"
    own, plain, same = (
        json.loads(run(*options, *penalty).stdout)["answer"]
        for penalty in ((), ("--repetition-penalty", 1), ("--repetition-penalty", 1.3))
    )
    assert own == same
    assert own != plain


def test_workers_of_a_pool_are_given_the_base(cocom, corpus, tmp_path, monkeypatch):
    """The working directory of a worker may be another one."""
    monkeypatch.chdir(cocom.parent)
    (cocom.parent / "base_decoder").rename(cocom.parent / "elsewhere")
    try:
        config = BuildConfig.parse({"store": {"codec": "fp32"}}, "test")
        build([corpus], cocom, tmp_path / "store", config, decoder_base="elsewhere")
    finally:
        (cocom.parent / "elsewhere").rename(cocom.parent / "base_decoder")
    with Reader(tmp_path / "store") as reader:
        assert np.isfinite(reader.fetch(["d1"]).values.numpy()).all()
