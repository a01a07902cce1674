"""The commands that answer questions: ``ask`` and ``eval``."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from ..configs.names import CodecName, Dtype, Stage
from .console import Output, Piece, bar, count, printable
from .options import (
    BatchSize,
    CheckpointDir,
    CompressorBase,
    DecoderBase,
    Device,
    Documents,
    Json,
    MaxNewTokens,
    QueryExtra,
    RepetitionPenalty,
    Run,
    Uri,
    choice_of,
)

if TYPE_CHECKING:
    from ..evaluation.results import Evaluation

Codec = choice_of(CodecName)
DecoderDtype = Annotated[Dtype, typer.Option(help="Dtype that the decoder computes in.")]


def ask(
    uri: Uri,
    question: Annotated[str, typer.Argument(metavar="QUESTION", help="Question to answer.")],
    doc: Annotated[list[str], typer.Option("--doc", "-d", metavar="ID", help="Document to answer from. Repeatable.")],
    checkpoint: CheckpointDir,
    decoder_base: DecoderBase = None,
    compressor_base: CompressorBase = None,
    query_extra: QueryExtra = 64,
    max_new_tokens: MaxNewTokens = 128,
    repetition_penalty: RepetitionPenalty = None,
    dtype: DecoderDtype = "bfloat16",
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Answer a question from the memory of documents, stored or made of their stored text with the question.

    Example: pisco-index ask index/ "Where does the Nile end?" -d doc-1 -d doc-2 -k CHECKPOINT
    """
    from ..model.families import open_checkpoint
    from ..reader.ask import ask as answer_question

    answer = answer_question(
        uri,
        open_checkpoint(
            checkpoint, decoder_base=decoder_base, compressor_base=compressor_base, query_extra=query_extra
        ),
        question,
        doc,
        dtype=dtype,
        device=device,
        max_new_tokens=max_new_tokens,
        repetition_penalty=repetition_penalty,
    )
    Output(as_json).show(answer, lambda answer: [printable(answer.text)])


def evaluate(
    uri: Uri,
    questions: Annotated[
        Path,
        typer.Option(
            "--questions", "-q", metavar="FILE", help="JSON lines with question, answer (or answers) and doc_ids."
        ),
    ],
    checkpoint: CheckpointDir,
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
        Path | None, typer.Option(metavar="FILE", help="Write each answer and its scores to FILE, as JSON lines.")
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
    """Score answers from a store's memory, and from other codecs, from the text and from nothing.

    Example: pisco-index eval index/ -q questions.jsonl -k CHECKPOINT --codec int4
    """
    from ..evaluation.evaluate import evaluate as score_answers
    from ..model.families import open_checkpoint

    if answers is not None and not answers.parent.is_dir():
        raise typer.BadParameter(f"there is no folder {answers.parent}", param_hint="--answers")
    opened = open_checkpoint(
        checkpoint, decoder_base=decoder_base, compressor_base=compressor_base, query_extra=query_extra
    )
    with bar("answers") as progress:
        evaluation = score_answers(
            uri,
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
            progress=progress,
        )
    Output(as_json).show(evaluation, lambda evaluation: _scored(evaluation, reference or uri))
    if answers is not None:
        evaluation.save_answers(answers)


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
    yield f"{asked}; KL to {reference}"
