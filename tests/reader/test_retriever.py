"""A retriever finds the documents of questions, best first; a TREC run is one."""

import gzip
import tracemalloc

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from pisco_index.errors import QuestionsError
from pisco_index.reader.questions import RunFile
from pisco_index.reader.retriever import FakeRetriever, Hit, Retriever


@pytest.fixture
def run(tmp_path):
    """Write a run and return its path."""

    def write(*lines):
        path = tmp_path / "run.trec"
        path.write_text("".join(f"{line}\n" for line in lines), "utf-8")
        return path

    return write


@pytest.fixture(params=["run", "fake"])
def retriever(request, run):
    """Each retriever, with two documents for question q1 and one for q2."""
    if request.param == "run":
        return RunFile(run("q1 Q0 a 1 1 x", "q1 Q0 b 2 0.5 x", "q2 Q0 c 1 1 x"))
    return FakeRetriever({"Who?": ["a", "b"], "Where?": ["c"]})


def test_documents_come_best_first_question_by_question(retriever: Retriever):
    found = retriever.retrieve({"q2": "Where?", "q1": "Who?", "q3": "Why?"}, hits=2)
    assert list(found.items()) == [("q2", (Hit("c", 1.0),)), ("q1", (Hit("a", 1.0), Hit("b", 0.5))), ("q3", ())]
    assert retriever.retrieve({"q1": "Who?"}, hits=1) == {"q1": (Hit("a", 1.0),)}


def test_a_run_is_ordered_by_falling_score_and_then_rank(run):
    path = run(
        "q1 Q0 low 1 0.5 x", "q1 Q0 tie-2 4 2 x", "q2\tQ0\tdoc#0\t1\t-3\tx", "q1 Q0 tie-1 3 2.0 x",
        "", "q1 Q0 high 9 1e2 x", "q1 Q0 a\u00a0b 8 -1 x\r",
    )  # fmt: skip
    found = RunFile(path)
    assert found.queries == {"q1", "q2"}
    ranked = found.retrieve({"q1": "", "q2": ""}, hits=9)
    scores = [("high", 100), ("tie-1", 2), ("tie-2", 2), ("low", 0.5), ("a\u00a0b", -1)]
    assert ranked == {"q1": tuple(scores), "q2": (("doc#0", -3),)}


@pytest.mark.parametrize(
    ("line", "score"),
    [
        ("q1\tQ0\td\t1.0\t1.25e+01\tdense", 12.5),
        ("q1 Q0 d 1 .5E1 bm25 k1=0.9 b=0.4", 5),
        ("q1\vQ0\fd 1 2", 2),
        ("q1\td\t3", -3),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_lines_are_read_as_trec_eval_and_ms_marco_write_them(tmp_path, line, score, encoding):
    (tmp_path / "run").write_text(f"\n{line}\r\n \n", encoding)
    assert RunFile(tmp_path / "run").retrieve({"q1": ""}, hits=9) == {"q1": (Hit("d", score),)}


def test_ids_may_have_blanks_between_tabs(run):
    found = RunFile(run("q 1\tQ0\td 7\t1\t2\tx", "q 1\td 8\t3", "q\tQ0 d 1 0.5 my\ttag"))
    assert found.retrieve({"q 1": "", "q": ""}, hits=9) == {
        "q 1": (Hit("d 7", 2), Hit("d 8", -3)),
        "q": (Hit("d", 0.5),),
    }


def test_a_doubled_document_keeps_its_best_place(run):
    found = RunFile(run("q1 Q0 a 1 1 x", "q1 Q0 b 2 5 x", "q1 Q0 a 3 9 x", "q1 Q0 b 4 2 x"))
    assert found.retrieve({"q1": ""}, hits=9) == {"q1": (Hit("a", 9), Hit("b", 5))}
    assert found.doubled == 2
    assert (
        "lines that repeat a document of their query: 2 ('q1 a', 'q1 b'). The best place counts." in found.warnings[0]
    )


@given(
    lines=st.lists(
        st.tuples(st.sampled_from(["q1", "q2"]), st.integers(0, 60), st.integers(0, 9), st.integers(0, 2)), max_size=200
    ),
    depth=st.integers(1, 5),
)
def test_the_best_documents_are_kept_whatever_the_order_of_lines(tmp_path_factory, lines, depth):
    path = tmp_path_factory.mktemp("run") / "run"
    path.write_text("q0 Q0 d 1 1\n" + "".join(f"{q} Q0 d{doc} {rank} {score}\n" for q, doc, score, rank in lines))
    wanted = {"q1": "", "q2": ""}
    assert RunFile(path, depth=depth).retrieve(wanted, hits=depth) == RunFile(path).retrieve(wanted, hits=depth)


def test_a_run_keeps_few_documents_and_knows_its_bytes(tmp_path):
    text = "".join(f"q1 Q0 d{n} {n} {n % 97}\n" for n in range(20_000)).encode()
    text += b"q1 Q0 d3 1 3\n" * 12
    for name, content in ("plain", text), ("packed", gzip.compress(text)):
        (tmp_path / name).write_bytes(content)
        tracemalloc.start()
        found = RunFile(tmp_path / name, depth=5)
        held = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        assert held < 2 << 20
        assert found.digest == xxhash.xxh3_128_hexdigest(text)
        assert [hit.doc_id for hit in found.retrieve({"q1": ""}, hits=3)["q1"]] == ["d96", "d193", "d290"]
        assert "of their query: 12 ('q1 d3'" in found.warnings[0]
        assert "and 2 more)" in found.warnings[0]
    with pytest.raises(ValueError, match="at most the depth of the run, 5, not 6"):
        found.retrieve({"q1": ""}, hits=6)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("q1 0 d 1", "line 2: a line of a run has the fields .* this one has 4"),
        (
            "q1 Q0 New York 1 1 x",
            "line 2: rank 'York' and score '1' must be finite numbers. Ids with white space do not fit",
        ),
        ("q1 Q0 d one 1 x", "line 2: rank 'one' and score '1' must be"),
        ("q1 Q0 d 1 nan x", "line 2: rank '1' and score 'nan' must be"),
        ("q1 Q0 d 1 -inf x", "line 2: rank '1' and score '-inf' must be finite"),
        ("q1 d inf", "line 2: rank 'inf' must be finite"),
        ("q1 d one", "line 2: rank 'one' must be"),
    ],
)
def test_a_bad_line_is_named(run, line, message):
    with pytest.raises(QuestionsError, match=r"run\.trec, " + f".*{message}"):
        RunFile(run("q1 Q0 c 1 1 x", line))
