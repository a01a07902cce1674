"""An evaluation asks the same questions of a store, of recoded memory, of the text and of nothing."""

import json
import shutil

import pytest
import torch

from pisco_index import Decoder, Reader, evaluate, new_tiny_checkpoint
from pisco_index.errors import FingerprintMismatchError, InputError, MissingDocumentsError, PromptError, StoreError
from pisco_index.evaluation import conditions
from pisco_index.evaluation.evaluate import _Evaluator
from pisco_index.model.decoding.sensitivity import kl_divergence
from pisco_index.store import CODECS, uses_sensitivity

QUESTIONS = [
    {"id": "long", "question": "What is told of the city?", "answers": ["its history", "x"], "doc_ids": ["doc-4"]},
    {"id": "two", "question": "Who?", "answer": "nobody", "doc_ids": ["doc-9", "doc-0"]},
    {"id": "many", "question": "Which?", "answer": "13", "doc_ids": ["doc-13", "doc-2", "doc-4", "doc-1", "doc-7"]},
]
DEFAULT = [codec for codec in CODECS if not uses_sensitivity(codec)]
FAST = {"dtype": "float32", "max_new_tokens": 6, "device": "cpu"}


def write(path, questions):
    path.write_text("".join(json.dumps(question) + "\n" for question in questions))
    return path


@pytest.fixture(scope="session")
def questions(tmp_path_factory):
    return write(tmp_path_factory.mktemp("questions") / "questions.jsonl", QUESTIONS)


@pytest.fixture(scope="session")
def kept_evaluation(kept, checkpoint, questions):
    return evaluate(kept, checkpoint, questions, **FAST)


@pytest.fixture(scope="module")
def decoder(checkpoint):
    return Decoder.load(checkpoint, dtype=torch.float32)


def rows_of(evaluation):
    return {(row.condition, row.stage, row.codec): row for row in evaluation.rows}


class TestRows:
    @pytest.mark.parametrize("stage", ["hidden", "embedding"])
    def test_the_store_comes_before_what_it_could_hold(self, store_of, checkpoint, questions, stage):
        store = store_of("fp32", stage)
        evaluation = evaluate(store, checkpoint, questions, **FAST)
        recoded = [(s, c.name) for s in ("hidden", "embedding") for c in DEFAULT if stage in ("hidden", s)]
        recoded.remove((stage, "fp32"))
        expected = [("none", None, None), ("stored", stage, "fp32"), *(("recoded", *each) for each in recoded)]
        assert list(rows_of(evaluation)) == expected
        assert (evaluation.questions, evaluation.documents, evaluation.uri) == (3, 7, str(store))

    def test_text_is_asked_with_where_it_is_kept(self, kept, kept_evaluation, checkpoint, questions):
        assert [row.condition for row in kept_evaluation.rows] == [
            "none",
            "text",
            "stored",
            *["recoded"] * (2 * len(DEFAULT) - 1),
        ]
        without = evaluate(kept, checkpoint, questions, text=False, codecs=["fp32"], stage="embedding", **FAST)
        assert list(rows_of(without)) == [
            ("none", None, None), ("stored", "hidden", "bf16"), ("recoded", "embedding", "fp32")
        ]  # fmt: skip

    def test_sizes_are_those_of_the_payloads_and_the_text(self, kept_evaluation, documents, kept):
        read = {doc_id for question in QUESTIONS for doc_id in question["doc_ids"]}
        with Reader(kept) as reader:
            vectors = sum(reader.fetch(sorted(read)).lengths)
        sizes = {key: row.bytes_per_document for key, row in rows_of(kept_evaluation).items()}
        header, count = 24, len(read)
        assert sizes["none", None, None] is None
        assert sizes["text", None, None] == pytest.approx(sum(len(f"T {d}\n{documents[d]}") for d in read) / count)
        assert sizes["stored", "hidden", "bf16"] == pytest.approx(header + vectors * 64 * 2 / count)
        assert sizes["recoded", "hidden", "fp32"] == pytest.approx(header + vectors * 64 * 4 / count)
        assert sizes["recoded", "embedding", "bf16"] == pytest.approx(header + vectors * 96 * 2 / count)

    def test_what_the_store_cannot_give(self, store_of, checkpoint, questions):
        embedding = store_of("fp32", "embedding")
        with pytest.raises(StoreError, match="stored at stage 'embedding'; stage 'hidden' cannot be computed"):
            evaluate(embedding, checkpoint, questions, stage="hidden", **FAST)
        with pytest.raises(StoreError, match="no codec is called 'zip'"):
            evaluate(embedding, checkpoint, questions, codecs=["zip"], **FAST)


class TestScores:
    def test_rows_are_means_over_the_answers(self, kept_evaluation):
        for row in kept_evaluation.rows:
            own = [
                a
                for a in kept_evaluation.answers
                if (a.condition, a.stage, a.codec) == (row.condition, row.stage, row.codec)
            ]
            assert [answer.id for answer in own] == [question["id"] for question in QUESTIONS]
            assert row.questions == 3
            for name in ("match", "exact_match", "f1"):
                assert getattr(row, name) == pytest.approx(sum(getattr(answer, name) for answer in own) / 3)
            tokens = sum(answer.answer_tokens for answer in own)
            for name in ("nll", "kl"):
                total = sum(getattr(answer, name) * answer.answer_tokens for answer in own)
                assert getattr(row, name) == pytest.approx(total / tokens)

    def test_an_answer_that_is_a_reference_scores(self, kept, checkpoint, kept_evaluation, tmp_path):
        said = {a.id: a.answer for a in kept_evaluation.answers if a.condition == "stored"}
        known = write(tmp_path / "known.jsonl", [QUESTIONS[0] | {"answers": ["no", said["long"]]}, QUESTIONS[1]])
        row = rows_of(evaluate(kept, checkpoint, known, codecs=["bf16"], stage="hidden", **FAST))[
            "stored", "hidden", "bf16"
        ]
        assert (row.match, row.exact_match) == (0.5, 0.5)
        assert row.f1 == pytest.approx(0.5, abs=1e-6)

    def test_answers_and_likelihoods_are_the_decoders(self, kept, kept_evaluation, decoder):
        found = {(a.condition, a.stage, a.codec, a.id): a for a in kept_evaluation.answers}
        with Reader(kept) as reader:
            for question in QUESTIONS:
                memory = reader.fetch(question["doc_ids"])
                answer = found["stored", "hidden", "bf16", question["id"]]
                assert answer.answer == decoder.answer(question["question"], memory, max_new_tokens=6)
                ids, count = decoder.answered_ids(question["question"], memory.lengths, answer.references[0])
                labels = [-100] * (len(ids) - count) + ids[-count:]
                assert answer.nll == pytest.approx(float(decoder.loss(ids, labels, memory)), abs=1e-4)

    def test_text_and_nothing_stand_in_the_prompt(self, kept, kept_evaluation, decoder, documents):
        found = {(a.condition, a.id): a for a in kept_evaluation.answers}
        with Reader(kept) as reader:
            nothing = reader.fetch([])
        for question in QUESTIONS:
            texts = [f"T {doc_id}\n{documents[doc_id]}" for doc_id in question["doc_ids"]]
            for condition, shown in (("none", []), ("text", texts)):
                (ids,) = decoder.generate(
                    [decoder.prompt_ids(question["question"], shown)], [nothing], max_new_tokens=6
                )
                expected = decoder.tokenizer.decode(ids, skip_special_tokens=True).strip()
                assert found[condition, question["id"]].answer == expected

    def test_divergence_is_measured_along_the_answer(self, kept, kept_evaluation, decoder):
        question, answer = (
            QUESTIONS[2],
            next(a for a in kept_evaluation.answers if (a.condition, a.id) == ("none", "many")),
        )
        with Reader(kept) as reader:
            memory = reader.fetch(question["doc_ids"])
        rows = []
        for shown in (memory, memory.select([])):
            ids, count = decoder.answered_ids("Which?", shown.lengths, "13")
            rows.append(decoder.logits(ids, shown)[-1 - count : -1])
        assert answer.kl == pytest.approx(float(kl_divergence(*rows).mean()), rel=1e-3)
        assert answer.kl > 1e-4


class TestReference:
    def test_the_reference_is_at_no_distance_from_itself(self, kept_evaluation):
        rows = rows_of(kept_evaluation)
        assert rows["stored", "hidden", "bf16"].kl == 0
        # fp32 holds every number that bf16 holds.
        assert rows["recoded", "hidden", "fp32"].kl == 0
        assert rows["none", None, None].kl > 1e-4

    @pytest.mark.parametrize("stage", ["hidden", "embedding"])
    def test_a_lossy_codec_shows(self, store_of, checkpoint, questions, stage):
        evaluation = evaluate(store_of("fp32", stage), checkpoint, questions, codecs=["bf16"], **FAST)
        stored, *recoded = [row for row in evaluation.rows if row.condition != "none"]
        assert stored.kl == 0
        assert all(0 < row.kl < 1e-4 for row in recoded)

    @pytest.mark.parametrize("name", ["stored", "recoded"])
    def test_a_calibrated_codec_loses_the_same_stored_or_recoded(self, store_of, kept, checkpoint, questions, name):
        """The store's calibration is fitted to the corpus, the evaluation's to the reference: here that is the same."""
        measured = store_of("int4", "hidden", ("title", "text")) if name == "stored" else kept
        evaluation = evaluate(measured, checkpoint, questions, reference=kept, codecs=["int4"], stage="hidden", **FAST)
        rows = rows_of(evaluation)
        assert 1e-9 < rows[name, "hidden", "int4"].kl < 1e-2
        assert (
            rows[name, "hidden", "int4"].bytes_per_document
            < rows_of(evaluate(kept, checkpoint, questions, codecs=["bf16"], stage="hidden", text=False, **FAST))[
                "stored", "hidden", "bf16"
            ].bytes_per_document
            / 2
        )

    def test_a_codec_that_is_asked_for_is_fitted_to_the_decoder(self, kept, checkpoint, questions, monkeypatch):
        matrices, fit = [], conditions.fisher_matrix
        monkeypatch.setattr(conditions, "fisher_matrix", lambda *given: matrices.append(fit(*given)) or matrices[-1])
        rows = rows_of(evaluate(kept, checkpoint, questions, codecs=["fisher3"], **FAST))
        widths = [Decoder.load(checkpoint).connector.dim(stage) for stage in ("hidden", "embedding")]
        assert [matrix.shape for matrix in matrices] == [(width, width) for width in widths]
        assert all(0 < rows["recoded", stage, "fisher3"].kl < 0.1 for stage in ("hidden", "embedding"))

    def test_a_decoder_that_can_read_nothing_leaves_a_codec_fitted_without_it(
        self, kept, checkpoint, questions, monkeypatch, caplog
    ):
        def reads_nothing(*_):
            raise PromptError("no document can be read")

        monkeypatch.setattr(conditions, "fisher_matrix", reads_nothing)
        rows = rows_of(evaluate(kept, checkpoint, questions, codecs=["fisher3"], stage="hidden", **FAST))
        assert 0 < rows["recoded", "hidden", "fisher3"].kl < 0.1
        assert "fisher3 is fitted without the decoder" in caplog.text

    def test_the_connector_may_be_applied_before_or_after_storing(self, store_of, checkpoint, questions):
        hidden = store_of("fp32", "hidden")
        rows = rows_of(evaluate(hidden, checkpoint, questions, codecs=["fp32"], **FAST))
        stored, connected = rows["stored", "hidden", "fp32"], rows["recoded", "embedding", "fp32"]
        assert connected.nll == pytest.approx(stored.nll, abs=1e-5)
        assert connected.kl < 1e-9

    def test_another_store_can_be_the_reference(self, store_of, kept, checkpoint, questions, kept_evaluation):
        exact = store_of("fp32", "hidden")
        codecs = ["fp32", "bf16"]
        evaluation = evaluate(kept, checkpoint, questions, reference=exact, codecs=codecs, **FAST)
        rows, alone = rows_of(evaluation), rows_of(evaluate(exact, checkpoint, questions, codecs=codecs, **FAST))
        assert evaluation.reference == str(exact)
        assert 0 < rows["stored", "hidden", "bf16"].kl < 1e-4
        assert rows["recoded", "hidden", "fp32"].kl == 0
        # Here the store equals the reference recoded to the store's codec.
        assert rows["stored", "hidden", "bf16"].kl == alone["recoded", "hidden", "bf16"].kl
        assert rows["recoded", "embedding", "bf16"].kl == alone["recoded", "embedding", "bf16"].kl

    def test_a_store_of_another_checkpoint_is_refused(self, kept, checkpoint, questions, tmp_path):
        other = new_tiny_checkpoint(tmp_path / "other", rate=8, seed=7).path
        with pytest.raises(FingerprintMismatchError, match="another checkpoint"):
            evaluate(kept, other, questions, **FAST)


def test_batches_change_nothing_but_rounding(kept, checkpoint, questions, kept_evaluation):
    reported = []
    one = evaluate(kept, checkpoint, questions, batch_size=1, progress=lambda *each: reported.append(each), **FAST)
    assert [answer.answer for answer in one.answers] == [answer.answer for answer in kept_evaluation.answers]
    for found, expected in zip(one.rows, kept_evaluation.rows, strict=True):
        assert found.nll == pytest.approx(expected.nll, abs=1e-4)
        assert found.bytes_per_document == expected.bytes_per_document
    answers = len(kept_evaluation.rows) * len(QUESTIONS)
    assert reported == [(n, answers) for n in range(answers + 1)]


def test_a_run_names_the_documents(kept, checkpoint, tmp_path):
    path = write(tmp_path / "bare.jsonl", [{k: v for k, v in q.items() if k != "doc_ids"} for q in QUESTIONS])
    run = tmp_path / "run.trec"
    lines = [f"{q['id']} Q0 {d} {n} {9 - n} x\n" for q in QUESTIONS for n, d in enumerate(q["doc_ids"])]
    run.write_text("".join([*lines, "other Q0 doc-1 1 1 x\n"]))
    listed = write(tmp_path / "listed.jsonl", QUESTIONS)
    found = evaluate(kept, checkpoint, path, run=run, documents=2, text=False, codecs=["bf16"], **FAST)
    expected = evaluate(kept, checkpoint, listed, documents=2, text=False, codecs=["bf16"], **FAST)
    assert found.rows == expected.rows
    assert (found.ignored_queries, found.documents) == (1, 5)


class TestRefusals:
    def test_missing_documents_are_all_named(self, kept, checkpoint, tmp_path):
        wrong = [q | {"doc_ids": [*q["doc_ids"], f"no-{i}", "no"]} for i, q in enumerate(QUESTIONS)]
        with pytest.raises(MissingDocumentsError, match=r"4 of the documents .*'no-0', 'no', 'no-1', 'no-2'") as caught:
            evaluate(kept, checkpoint, write(tmp_path / "q.jsonl", wrong), **FAST)
        assert caught.value.doc_ids == ("no-0", "no", "no-1", "no-2")

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"doc_ids": ["doc-4"] * 700}, "'two', condition 'text': .* context of 4096.*--no-text"),
            ({"question": "Who? " * 4000}, "'two', condition 'none': .* context of 4096"),
            ({"answer": "word " * 4096}, "'two', condition 'none': .* context of 4096"),
        ],
    )
    def test_a_question_that_does_not_fit_is_named(self, kept, checkpoint, tmp_path, change, message):
        path = write(tmp_path / "q.jsonl", [QUESTIONS[0], QUESTIONS[1] | change])
        with pytest.raises(PromptError, match=message):
            evaluate(kept, checkpoint, path, **FAST)


FEW = {"batch_size": 1, "codecs": ["int8"], "stage": "hidden", "text": False}


class TestAStop:
    @pytest.fixture
    def whole(self, kept, checkpoint, questions):
        return evaluate(kept, checkpoint, questions, **FAST, **FEW)

    def test_the_same_call_continues(self, kept, checkpoint, questions, whole, tmp_path, monkeypatch):
        answer, begun = _Evaluator._answer, []

        def answer_one_batch(evaluator, batch):
            begun.append(batch[0].id)
            if len(begun) == 2:
                raise KeyboardInterrupt
            return answer(evaluator, batch)

        part = tmp_path / "answers.part"
        monkeypatch.setattr(_Evaluator, "_answer", answer_one_batch)
        with pytest.raises(KeyboardInterrupt):
            evaluate(kept, checkpoint, questions, keep=part, **FAST, **FEW)
        with part.open("a") as file:
            file.write('{"first": 1, "batch": [{"ans')
        said = []
        again = evaluate(
            kept, checkpoint, questions, keep=part, progress=lambda *done: said.append(done), **FAST, **FEW
        )
        assert again == whole
        assert begun == ["many", "two", "two", "long"]
        assert (said[0], said[-1]) == ((0, 9), (9, 9))
        assert [json.loads(line)["first"] for line in part.read_text().splitlines()[1:]] == [2, 1, 0]

    def test_other_settings_and_files_are_refused(self, kept, checkpoint, questions, tmp_path):
        part = tmp_path / "answers.part"
        evaluate(kept, checkpoint, questions, keep=part, **FAST, **FEW)
        with pytest.raises(InputError, match=r"batch_size 1, not 2.* delete this file"):
            evaluate(kept, checkpoint, questions, keep=part, **FAST, **FEW | {"batch_size": 2})
        part.write_text('{"id": "1", "answer": "a"}\n')
        with pytest.raises(InputError, match="something else than an evaluation"):
            evaluate(kept, checkpoint, questions, keep=part, **FAST, **FEW)

    def test_another_base_decoder_is_refused(self, kept, checkpoint, questions, tmp_path):
        base, part = shutil.copytree(checkpoint / "base_decoder", tmp_path / "base"), tmp_path / "answers.part"
        settings = FAST | FEW | {"decoder_base": str(base), "keep": part}
        evaluate(kept, checkpoint, questions, **settings)
        weights = base / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
        with pytest.raises(InputError, match="other settings: decoder_base_digest"):
            evaluate(kept, checkpoint, questions, **settings)


def test_answers_are_written_as_json_lines(kept_evaluation, tmp_path):
    kept_evaluation.save_answers(tmp_path / "answers.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text("utf-8").splitlines()]
    assert len(lines) == len(kept_evaluation.rows) * len(QUESTIONS)
    assert lines[0]["id"] == "long"
    assert lines[0]["references"] == ["its history", "x"]
    assert {"condition", "stage", "codec", "answer", "match", "exact_match", "f1", "nll", "kl"} <= lines[0].keys()
    with pytest.raises(InputError, match="cannot be written"):
        kept_evaluation.save_answers(tmp_path / "no" / "answers.jsonl")
