"""The commands that answer files of questions and score the answers: ``answer`` and ``eval``."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from ..configs.names import CodecName, Stage
from ..errors import BuildIncompleteError, some
from ..places import is_local_file, local_path
from .console import Output, Piece, bar, count, duration, err, say, say_warnings
from .options import (
    BatchSize,
    CheckpointDir,
    CompressorBase,
    DecoderBase,
    DecoderDtype,
    Device,
    Documents,
    Json,
    MaxNewTokens,
    QueryExtra,
    Questions,
    RepetitionPenalty,
    Run,
    Uri,
    choice_of,
)

if TYPE_CHECKING:
    from ..evaluation.results import Evaluation
    from ..evaluation.scoring import AnswerScores
    from ..reader.answering import AnswerReport

Codec = choice_of(CodecName)


def answer(
    uri: Uri,
    questions: Questions,
    to: Annotated[
        Path, typer.Option("--out", "-o", metavar="FILE", help="JSON lines of answers: a new file, or one to continue.")
    ],
    checkpoint: CheckpointDir,
    run: Run = None,
    search: Annotated[
        bool, typer.Option("--search", help="Search the store for documents, even if the questions name some.")
    ] = False,
    documents: Documents = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Drop the answers in the file, and begin anew.")
    ] = False,
    decoder_base: DecoderBase = None,
    compressor_base: CompressorBase = None,
    query_extra: QueryExtra = 64,
    max_new_tokens: MaxNewTokens = 128,
    repetition_penalty: RepetitionPenalty = None,
    token_budget: Annotated[
        int | None, typer.Option(min=1, help="Largest number of tokens in a batch, prompts and new tokens together.")
    ] = None,
    dtype: DecoderDtype = "bfloat16",
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Answer a file of questions: from a run, the documents they name, or a search. Run it again after a stop.

    Example: pisco-index answer index/ -q questions.jsonl -o answers.jsonl -k CHECKPOINT
    """
    from ..model.families import open_checkpoint
    from ..reader.answering import AnswerSettings, answer_file

    settings = AnswerSettings(
        documents=documents,
        search=search,
        dtype=dtype,
        device=device,
        max_new_tokens=max_new_tokens,
        repetition_penalty=repetition_penalty,
        token_budget=token_budget,
    )
    opened = open_checkpoint(
        checkpoint, decoder_base=decoder_base, compressor_base=compressor_base, query_extra=query_extra
    )
    with bar("questions") as progress:
        report = answer_file(
            uri,
            opened,
            questions,
            to,
            run=run,
            settings=settings,
            overwrite=overwrite,
            progress=progress,
        )
    Output(as_json).show(report, _answered)
    say_warnings([*report.warnings, *_left_out(report)])
    if report.failed:
        raise typer.Exit(BuildIncompleteError.exit_code)


def _answered(report: "AnswerReport") -> Iterator[Piece]:
    asked = f"{count(report.questions, 'question')} ({report.form}), documents from {report.documents_from}"
    if report.before == report.questions:
        yield f"{report.path}: finished before: {asked}. Begin anew with --overwrite."
        return
    before = f", {report.before:,} of them before" if report.before else ""
    tokens = f"{report.memory_tokens:,} memory tokens"
    # A store of texts does not count their tokens.
    if report.text_tokens:
        tokens += f" for {report.text_tokens:,} tokens of text"
    speed = f"{duration(report.seconds)}, {report.questions_per_second:,.1f} questions/s"
    yield f"{report.path}: {asked}{before}; {tokens}; {speed}. See: pisco-index eval {report.path} -q FILE"


def _left_out(report: "AnswerReport") -> Iterator[str]:
    if report.missing:
        yield f"the store holds no memory of {count(len(report.missing), 'document')}: {some(report.missing)}."
    if report.failed:
        yield f"{count(len(report.failed), 'question')} without an answer, each with its error: {some(report.failed)}."


def evaluate(
    ctx: typer.Context,
    target: Annotated[
        str,
        typer.Argument(metavar="ANSWERS|URI", help="Answers as JSON lines with id and answer, or a store."),
    ],
    questions: Questions,
    qrels: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Answers: judgements (TREC, BEIR) of documents. Default: doc_ids."),
    ] = None,
    measure: Annotated[
        list[str] | None, typer.Option(help="Answers: measure of retrieval, for example R@5 or nDCG@10. Repeatable.")
    ] = None,
    checkpoint: Annotated[Path | None, typer.Option("--checkpoint", "-k", help="Store: checkpoint folder.")] = None,
    run: Run = None,
    documents: Documents = None,
    reference: Annotated[
        str | None, typer.Option(metavar="URI", help="Store of uncompressed memory to compare with. Default: URI.")
    ] = None,
    codec: Annotated[
        list[Codec] | None,  # pyrefly: ignore[invalid-annotation]
        typer.Option(help="Recode the memory to this codec only. Repeatable. Default: all."),
    ] = None,
    stage: Annotated[
        Stage | None, typer.Option(help="Recode the memory at this stage only. Default: at each that is available.")
    ] = None,
    no_text: Annotated[bool, typer.Option("--no-text", help="Do not answer from the documents' stored text.")] = False,
    answers: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Store: write each answer and its scores to FILE, as JSON lines; a stopped command then continues.",
        ),
    ] = None,
    decoder_base: DecoderBase = None,
    compressor_base: CompressorBase = None,
    query_extra: QueryExtra = 64,
    max_new_tokens: MaxNewTokens = 128,
    repetition_penalty: RepetitionPenalty = None,
    batch_size: BatchSize = 32,
    dtype: DecoderDtype = "bfloat16",
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Score a file of answers; or answers from a store, compared with other codecs, the text and nothing.

    Answers and runs belong to questions by their id, which without a field for it is the number of the line.

    Examples: pisco-index eval answers.jsonl -q FILE; pisco-index eval index/ -q FILE -k CHECKPOINT --codec int4
    """
    given = {name for name in ctx.params if getattr(ctx.get_parameter_source(name), "name", "") == "COMMANDLINE"}
    if is_local_file(target):
        _require_only(given & ({*ctx.params} - _FOR_BOTH - _FOR_ANSWERS), "a store, not of a file of answers")
        _score(target, questions, qrels, run, measure, as_json)
        return
    _require_only(given & _FOR_ANSWERS, "a file of answers, not of a store")
    if checkpoint is None:
        raise typer.BadParameter(
            f"{target} is no file of answers; if it is a store, give its checkpoint.",
            param_hint="--checkpoint",
        )
    from ..evaluation.evaluate import evaluate as evaluate_store
    from ..evaluation.results import require_replaceable
    from ..model.families import open_checkpoint
    from ..reader.answering.answers_file import part_path

    if answers is not None and not (parent := local_path(answers).parent).is_dir():
        raise typer.BadParameter(f"there is no folder {parent}", param_hint="--answers")
    if answers is not None:
        require_replaceable(answers)
    opened = open_checkpoint(
        checkpoint, decoder_base=decoder_base, compressor_base=compressor_base, query_extra=query_extra
    )
    part = None if answers is None else part_path(local_path(answers))
    with _saying_what_is_kept(part), bar("answers") as progress:
        evaluation = evaluate_store(
            target,
            opened,
            questions,
            run=run,
            documents=documents,
            reference=reference,
            codecs=[each.value for each in codec or ()],
            stage=stage,
            text=not no_text,
            dtype=dtype,
            device=device,
            max_new_tokens=max_new_tokens,
            repetition_penalty=repetition_penalty,
            batch_size=batch_size,
            keep=part,
            progress=progress,
        )
    if answers is not None and part is not None:
        evaluation.save_answers(answers)
        part.unlink(missing_ok=True)
    Output(as_json).show(evaluation, lambda evaluation: _scored(evaluation, reference or target))
    say_warnings(evaluation.warnings)


@contextmanager
def _saying_what_is_kept(part: Path | None) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        if part is not None and part.exists():
            say(f"{part} keeps what was answered; the same command continues.", console=err)
        raise


# Options of `eval` that a file of answers takes, and those that a store takes too.
_FOR_ANSWERS = frozenset({"qrels", "measure"})
_FOR_BOTH = frozenset({"target", "questions", "run", "as_json"})


def _require_only(strange: Collection[str], kind: str) -> None:
    for name in strange:
        raise typer.BadParameter(f"this is an option of {kind}.", param_hint=f"--{name.replace('_', '-')}")


def _score(
    answers: str, questions: Path, qrels: Path | None, run: Path | None, measures: list[str] | None, as_json: bool
) -> None:
    from ..evaluation.scoring import MEASURES, score_answers

    scores = score_answers(answers, questions, qrels=qrels, run=run, measures=measures or MEASURES)
    Output(as_json).show(scores, _scores)
    say_warnings(scores.warnings)
    if scores.unanswered:
        absent = f"{count(len(scores.unanswered), 'question')} of {questions} not in {answers}"
        say_warnings([f"{absent}: {some(scores.unanswered)}. Run pisco-index answer again."])


def _scores(scores: "AnswerScores") -> Iterator[Piece]:
    table = Table("measure", box=None)
    table.add_column("value", justify="right")
    table.add_column("questions", justify="right")
    named = {"match %": scores.match, "EM %": scores.exact_match, "F1 %": scores.f1}
    for name, value in named.items():
        if value is not None:
            table.add_row(name, f"{100 * value:.1f}", f"{scores.answered_by_reference:,}")
    for name, value in scores.retrieval.items():
        table.add_row(name, f"{value:.4f}", f"{scores.judged:,}")
    yield table
    judged = f"; documents of the {scores.documents_from} judged by the {scores.judged_by}" if scores.judged_by else ""
    ignored = f"; {count(scores.ignored, 'answer')} to other questions" if scores.ignored else ""
    failed = f"; {scores.failed:,} without an answer" if scores.failed else ""
    yield f"{scores.path}: {count(scores.questions, 'question')}{failed}{ignored}{judged}; {scores.form}"


def _scored(evaluation: "Evaluation", reference: str) -> Iterator[Piece]:
    table = Table("condition", "stage", "codec", box=None)
    for heading in ("B/doc", "match %", "EM %", "F1 %", "NLL", "KL"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in evaluation.rows:
        payload = "-" if row.bytes_per_document is None else f"{row.bytes_per_document:,.0f}"
        percent = (f"{100 * share:.1f}" for share in (row.match, row.exact_match, row.f1))
        nats = f"{row.nll:.3f}", f"{row.kl:.2g}"
        table.add_row(row.condition, row.stage or "-", row.codec or "-", payload, *percent, *nats)
    yield table
    ignored = evaluation.ignored_queries
    left_out = f"; {ignored:,} of the run's queries are not among them" if ignored else ""
    asked = f"{count(evaluation.questions, 'question')}, {count(evaluation.documents, 'document')}{left_out}"
    yield f"{asked}; KL to {reference}; {evaluation.form}"
