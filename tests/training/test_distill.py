"""Distillation: written answers, resuming, answers that are left out, and files that are refused."""

import json
import os
import shutil
import signal

import pytest
import torch

from pisco_index.configs import CompressionConfig, CorpusConfig
from pisco_index.errors import CheckpointError, InputError, PromptError, QuestionsError, TrainingError
from pisco_index.model.loading.models import load_model, load_tokenizer
from pisco_index.model.prompt import prompt_text
from pisco_index.reader.answering.continued import settings_path
from pisco_index.training import distill as module
from pisco_index.training.collators import QuestionAnswering
from pisco_index.training.data import read_conversations
from pisco_index.training.distill import Distillation, distill

CORPUS = [{"_id": f"d{n}", "title": f"T{n}", "text": "the river " * (n + 1)} for n in range(4)] + [
    {"_id": "untitled", "text": "a city"},
    {"_id": "empty", "text": " "},
]
QUESTIONS = [
    {"id": "q0", "question": "Where is it?", "doc_ids": ["d0"]},
    {"id": "q1", "question": "Who was there? ", "doc_ids": ["d3", "untitled"], "answer": "unused"},
    {"question": "What?", "doc_ids": ["d1", "d0", "d2"]},
]
SHORT = {"max_new_tokens": 6, "dtype": "float32", "device": "cpu", "batch_size": 2}


@pytest.fixture(scope="module")
def ending(tiny, tmp_path_factory):
    """The tiny decoder with other tokens that end an answer: ``ending([5, 7])``."""

    def ending(tokens):
        folder = tmp_path_factory.mktemp("teacher") / "model"
        shutil.copytree(tiny.path / "base_decoder", folder)
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": tokens}))
        return folder

    return ending


@pytest.fixture(scope="module")
def teacher(tiny, ending):
    """A teacher whose answers end with their first token."""
    return ending(list(range(len(tiny.decoder_tokenizer))))


@pytest.fixture
def files(lines):
    """The questions and the corpus."""
    return (
        lines(*map(json.dumps, QUESTIONS), name="questions.jsonl"),
        [lines(*map(json.dumps, CORPUS), name="corpus.jsonl")],
    )


def answered(question_id, question, answer="a"):
    return json.dumps({"id": question_id, "documents": [], "question": question, "answer": answer})


def records(path):
    return {record["id"]: record for record in map(json.loads, path.read_text("utf-8").splitlines())}


def test_a_line_holds_what_was_read_asked_and_answered(files, teacher, tmp_path):
    out = tmp_path / "deep" / "answers.jsonl"
    reported = []
    result = distill(*files, teacher, out, **SHORT, progress=lambda done, total: reported.append((done, total)))
    assert result == Distillation(written=3, before=0, empty=0, unfinished=0)
    assert reported == [(2, 3), (3, 3)]
    written = records(out)
    assert written.keys() == {"q0", "q1", "3"}
    assert written["q1"]["question"] == "Who was there? "
    documents = [{"title": "T3", "text": "the river " * 4}, {"title": None, "text": "a city"}]
    assert written["q1"]["documents"] == documents
    assert list(written["q1"]) == ["id", "documents", "question", "answer", "doc_ids"]


def said_greedily(folder, record, count):
    model, tokenizer = load_model(module.AutoModelForCausalLM, str(folder), torch.float32), load_tokenizer(folder)
    texts = [(f"{d['title']}\n" if d["title"] else "") + d["text"] for d in record["documents"]]
    ids = tokenizer(prompt_text(tokenizer, record["question"].strip(), texts), add_special_tokens=False)["input_ids"]
    new = []
    for _ in range(count):
        new.append(int(model(torch.tensor([ids + new])).logits[0, -1].argmax()))
    return new


def test_an_answer_is_greedy_and_ends_at_its_end_whatever_else_is_in_its_batch(files, teacher, ending, tiny, tmp_path):
    count = SHORT["max_new_tokens"]
    distill(*files, teacher, tmp_path / "short", **SHORT)
    said = {name: said_greedily(teacher, record, count) for name, record in records(tmp_path / "short").items()}
    ends = {each[-1] for each in said.values()}
    distill(*files, ending(sorted(ends)), tmp_path / "a", **SHORT)
    written = records(tmp_path / "a")
    assert written.keys() == said.keys()
    for name, record in written.items():
        end = next(i for i, token in enumerate(said[name]) if token in ends)
        assert (
            record["answer"] == tiny.decoder_tokenizer.decode(said[name][: end + 1], skip_special_tokens=True).strip()
        )


def test_answers_without_an_end_are_left_out_and_counted(files, teacher, ending, tmp_path):
    """The answer to q1 ends with the last token that it may have; the other answers do not end."""
    distill(*files, teacher, tmp_path / "short", **SHORT)
    said = {
        name: said_greedily(teacher, record, SHORT["max_new_tokens"])
        for name, record in records(tmp_path / "short").items()
    }
    ends = [said["q1"][-1]]
    finished = {name for name, tokens in said.items() if ends[0] in tokens}
    result = distill(*files, ending(ends), tmp_path / "a", **SHORT)
    assert records(tmp_path / "a").keys() == finished
    assert result == Distillation(written=len(finished), before=0, empty=0, unfinished=3 - len(finished))
    reported = []
    never = ending([load_tokenizer(teacher).pad_token_id])
    result = distill(*files, never, tmp_path / "b", **SHORT, progress=lambda *done: reported.append(done))
    assert (result, reported[-1]) == (Distillation(written=0, before=0, empty=0, unfinished=3), (3, 3))
    assert (tmp_path / "b").read_bytes() == b""


def test_what_is_written_can_be_trained_on(files, teacher, tiny, tmp_path):
    distill(*files, teacher, tmp_path / "a", **SHORT)
    batch = QuestionAnswering(tiny, CompressionConfig())([r for _, r in read_conversations([str(tmp_path / "a")])])
    assert batch["labels"].shape[0] == 3


def test_the_first_documents_of_a_run_are_read(files, teacher, lines, tmp_path):
    run = lines(*(f"{qid} Q0 d{n} {n + 1} {9 - n} x" for qid in ("q0", "q1", "3") for n in range(3)), name="run")
    distill(*files, teacher, tmp_path / "a", **SHORT, run=run, documents=2)
    assert [[d["title"] for d in r["documents"]] for r in records(tmp_path / "a").values()] == [["T0", "T1"]] * 3


def test_any_corpus_of_a_build_is_read(files, teacher, lines, tmp_path):
    corpus = lines("d0,x,one", *(f"d{n}\tx\tmore" for n in range(4)), "untitled\tx\tone", name="corpus.tsv")
    config = CorpusConfig(format="tsv", columns=("id", "title", "text"))
    corpus.write_text(corpus.read_text().partition("\n")[2])
    distill(files[0], [corpus], teacher, tmp_path / "a", **SHORT, corpus_config=config)
    assert records(tmp_path / "a")["q0"]["documents"] == [{"title": "x", "text": "more"}]


def test_answers_are_kept_and_a_torn_line_is_cut_off(files, teacher, tmp_path):
    distill(*files, teacher, tmp_path / "whole", **SHORT)
    whole = (tmp_path / "whole").read_bytes().splitlines(keepends=True)
    out = tmp_path / "out"
    kept = whole[1].replace(b'"answer":"', b'"answer":"kept ')
    for torn in (b"", b'{"id":"q0","documents":[{"tit', b'{"id":"q', b"{"):
        out.write_bytes(kept + torn)
        assert distill(*files, teacher, out, **SHORT) == Distillation(written=2, before=1, empty=0, unfinished=0)
        assert sorted(out.read_bytes().splitlines(keepends=True)) == sorted([whole[0], kept, whole[2]])
        again = distill(*files, "no teacher is needed", out, **SHORT)
        assert again == Distillation(written=0, before=3, empty=0, unfinished=0)


def stopped(files, teacher, out, **options):
    """Distil until the first batch of one question is written."""

    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        distill(*files, teacher, out, **SHORT | {"batch_size": 1} | options, progress=stop)
    return out.read_bytes()


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ("teacher", "teacher"),
        ("corpus", "corpus"),
        ("dtype", "dtype 'float32', not 'bfloat16'"),
        ("corpus_config", "corpus_settings"),
    ],
)
def test_other_settings_do_not_continue_a_file(files, teacher, ending, lines, tmp_path, changed, named):
    out, options = tmp_path / "out", {"documents": 2}
    ranks = [f"{qid} Q0 d{n} {n + 1} {9 - n} x" for qid in ("q0", "q1", "3") for n in range(3)]
    options["run"] = lines(*ranks, name="run")
    written = stopped(files, teacher, out, **options)
    assert len(written.splitlines()) == 1
    match changed:
        case "teacher":
            teacher = ending([5])
        case "corpus":
            lines(*map(json.dumps, [{**each, "text": "else"} for each in CORPUS[:4]]), name="corpus.jsonl")
        case "corpus_config":
            options["corpus_config"] = CorpusConfig(passage_words=10)
        case _:
            options["dtype"] = "bfloat16"
    with pytest.raises(InputError, match=f"out: the file was begun with other settings: {named}.* name another file"):
        distill(*files, teacher, out, **SHORT | options)
    assert out.read_bytes() == written


def test_other_documents_do_not_continue_a_file_but_more_questions_do(files, teacher, lines, tmp_path):
    out, ids = tmp_path / "out", ("q0", "q1", "3")
    ranks = [f"{qid} Q0 d{n} {n + 1} {9 - n} x" for qid in ids for n in range(3)]
    options = {"documents": 2, "run": lines(*ranks, name="run")}
    written = stopped(files, teacher, out, **options)
    (answered,) = records(out)
    for changed in ({"documents": 1}, {"run": lines(*(r for r in ranks if "d0" not in r), name="other")}):
        with pytest.raises(
            TrainingError, match=f"line 1: answers '{answered}' from 'd0', 'd1', but its documents are now"
        ):
            distill(*files, teacher, out, **SHORT | options | changed)
    assert out.read_bytes() == written
    asked = [*QUESTIONS, {"id": "new", "question": "Why?"}]
    lines(*map(json.dumps, asked), name="questions.jsonl")
    lines(*ranks, "new Q0 d0 1 9 x", name="run")
    assert distill(*files, teacher, out, **SHORT | options | {"max_new_tokens": 7}).written == 3
    assert out.read_bytes().startswith(written)


def test_the_settings_of_a_file_without_answers_are_replaced(files, teacher, tmp_path):
    out = tmp_path / "out"
    stopped(files, teacher, out)
    out.unlink()
    stopped(files, teacher, out, dtype="bfloat16")
    with pytest.raises(InputError, match="dtype 'bfloat16', not 'float32'"):
        distill(*files, teacher, out, **SHORT)


def test_a_file_of_an_earlier_version_goes_on_and_gets_settings(files, teacher, tmp_path):
    out = tmp_path / "out"
    stopped(files, teacher, out)
    settings_path(out).unlink()
    stopped(files, teacher, out, dtype="bfloat16")
    with pytest.raises(InputError, match="dtype 'bfloat16', not 'float32'"):
        distill(*files, teacher, out, **SHORT)


def test_damaged_settings_are_refused(files, teacher, tmp_path):
    out = tmp_path / "out"
    stopped(files, teacher, out)
    settings_path(out).write_text("{")
    with pytest.raises(InputError, match=r"out\.settings\.json, .* is damaged\. Name another file\."):
        distill(*files, teacher, out, **SHORT)


def test_two_distillations_do_not_write_one_file(files, teacher, tmp_path):
    out = tmp_path / "out"
    refused = []

    def another(done, total):
        with pytest.raises(InputError, match="another run is writing this file"):
            distill(*files, teacher, out, **SHORT)
        refused.append(done)

    assert distill(*files, teacher, out, **SHORT, progress=another).written == 3
    assert (refused, len(records(out))) == ([2, 3], 3)
    assert {path.name for path in tmp_path.iterdir()} == {
        "questions.jsonl", "corpus.jsonl", "out", "out.settings.json",
    }  # fmt: skip


def test_answers_in_the_folder_of_the_corpus_go_on(files, teacher, tmp_path):
    folder = tmp_path / "corpus"
    folder.mkdir()
    shutil.move(files[1][0], folder)
    stopped((files[0], [folder]), teacher, folder / "out.jsonl")
    assert distill(files[0], [folder], teacher, folder / "out.jsonl", **SHORT).written == 2


def test_an_interrupted_call_keeps_what_it_wrote(files, teacher, tmp_path):
    def stop(done, total):
        os.kill(os.getpid(), signal.SIGINT)

    # A process that a shell starts in the background ignores the signal.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            distill(*files, teacher, tmp_path / "a", **SHORT, progress=stop)
    finally:
        signal.signal(signal.SIGINT, before)
    assert len(records(tmp_path / "a")) == 2
    assert distill(*files, teacher, tmp_path / "a", **SHORT).written == 1


def test_empty_answers_are_left_out_and_counted(files, teacher, tmp_path, monkeypatch):
    answer = module._Teacher.answer

    def silent(self, questions):
        return ["" if q.id == "q0" else said for q, said in zip(questions, answer(self, questions), strict=True)]

    monkeypatch.setattr(module._Teacher, "answer", silent)
    assert distill(*files, teacher, tmp_path / "a", **SHORT) == Distillation(written=2, before=0, empty=1, unfinished=0)
    assert records(tmp_path / "a").keys() == {"q1", "3"}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("x", "line 1: not a line that a distillation wrote. Name another file"),
        ("[]", "line 1: not a line that a distillation wrote"),
        ('{"id": "q0"}', "line 1: not a line that a distillation wrote"),
        ('{"id": "q0", "question": "Where is it?"}', "line 1: not a line that a distillation wrote"),
        ('{"id": "q0", "question": "Where is it?", "answer": "a"}', "line 1: not a line that a distillation wrote"),
        (answered("q0", "Where is it?", None), "line 1: not a line that a distillation wrote"),
        (answered(["q0"], "Where is it?"), "line 1: not a line that a distillation wrote"),
        (answered("q0", "Else?"), "line 1: answers 'Else\\?' as 'q0', which the questions do not ask"),
        (answered("q9", "Where is it?"), "line 1: answers 'Where is it\\?' as 'q9', which"),
    ],
)
def test_a_file_of_something_else_is_refused_and_left_as_it_is(files, teacher, tmp_path, line, message):
    out = tmp_path / "out.jsonl"
    for end in ("\n", "\n{", ""):
        out.write_text(line + end)
        with pytest.raises(TrainingError, match=message if end else "line 1: not a line that a distillation wrote"):
            distill(*files, teacher, out, **SHORT)
        assert out.read_text() == line + end


def test_a_torn_line_of_something_else_is_not_cut_off(files, teacher, tmp_path):
    out = tmp_path / "out"
    distill(*files, teacher, out, **SHORT)
    written = out.read_bytes()
    for torn in (b"x", b'{"id":"q9","documents":[', b'{"id":"q0","question":', b'{"id": "q0"'):
        out.write_bytes(written + torn)
        with pytest.raises(TrainingError, match="line 4: not a line that a distillation wrote"):
            distill(*files, teacher, out, **SHORT)
        assert out.read_bytes() == written + torn


@pytest.mark.parametrize("read", ["questions", "corpus", "run"])
def test_a_file_to_read_is_not_written(files, teacher, lines, tmp_path, read):
    run = lines("q0 Q0 d0 1 1 x", name="run")
    out = tmp_path / "link"
    out.symlink_to({"questions": files[0], "corpus": files[1][0], "run": run}[read])
    content = out.read_bytes()
    with pytest.raises(TrainingError, match="is one of the files to read, so it cannot be written"):
        distill(*files, teacher, out, **SHORT, run=run)
    assert out.read_bytes() == content


def test_questions_are_not_overwritten_by_settings(files, teacher, tmp_path):
    questions = files[0].rename(tmp_path / "out.settings.json")
    with pytest.raises(TrainingError, match="is one of the files to read"):
        distill(questions, files[1], teacher, tmp_path / "out", **SHORT)


@pytest.mark.parametrize("absent", ["nothing", "empty"])
def test_missing_documents_are_named(files, teacher, lines, tmp_path, absent):
    questions = lines(json.dumps({"question": "Why?", "doc_ids": ["d0", absent]}), name="q")
    with pytest.raises(
        TrainingError, match=f"1 of the 2 documents .* are not in the corpus, or have no text: '{absent}'"
    ):
        distill(questions, files[1], teacher, tmp_path / "a", **SHORT)
    assert not (tmp_path / "a").exists()


def test_a_prompt_that_does_not_fit_is_named_before_the_first_answer(files, teacher, tmp_path):
    message = r"'q1' with its 2 documents is a prompt of \d+ tokens, .* context of 4096 together with .* up to 4\d{3}"
    options = {**SHORT, "max_new_tokens": 4097 - prompt_length(teacher)}
    with pytest.raises(PromptError, match=message):
        distill(*files, teacher, tmp_path / "a", **options)
    assert not (tmp_path / "a").exists()


def prompt_length(teacher):
    """Tokens of the longest prompt, which is that of q1."""
    tokenizer = load_tokenizer(teacher)
    text = prompt_text(tokenizer, "Who was there?", ["T3\n" + "the river " * 4, "a city"])
    return len(tokenizer(text, add_special_tokens=False)["input_ids"])


def test_a_missing_teacher_is_named(files, tmp_path):
    with pytest.raises(CheckpointError, match="nothing: neither a model folder nor"):
        distill(*files, tmp_path / "nothing", tmp_path / "a", **SHORT)


def test_questions_need_documents_but_no_answers(files, teacher, lines, tmp_path):
    questions = lines('{"question": "Why?"}', name="q")
    with pytest.raises(QuestionsError, match="line 1: the question has no documents"):
        distill(questions, files[1], teacher, tmp_path / "a", **SHORT)
