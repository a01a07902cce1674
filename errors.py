"""Every exception that this package raises on purpose.

::

    PiscoIndexError
    ├── InputError                    something the user gave is wrong; exit code 2
    │   ├── ConfigError               a configuration key or value
    │   ├── CorpusError               a corpus file, record or id
    │   ├── CheckpointError           a checkpoint folder, file or tensor
    │   ├── QuestionsError            a file of questions, or a retriever's run
    │   ├── PromptError               a question or documents that do not fit the decoder
    │   ├── TrainingError             training data or a training state that cannot be used
    │   ├── PlanMismatchError         a corpus that changed since the build was planned
    │   └── StoreError                a store's folder, table or version
    │       ├── FingerprintMismatchError   memory made by another compressor or with other settings
    │       ├── MissingDocumentsError      ids that the store does not hold
    │       │   └── FailedDocumentsError   documents that failed in the build, and have no memory
    │       ├── MissingTextError           texts that the store does not keep
    │       ├── MachineError               a full disk or another lack of the machine; exit code 74
    │       │   └── StoreUnreachableError  a disk or object store that does not answer now
    │       └── CorruptStoreError          bytes that fail their checks
    ├── BuildIncompleteError          the build ended with failed shards or documents; exit code 3
    │   └── BuildHungError            the worker in this process hangs; exit code 3
    ├── LiveError                     a server does not answer a question; exit code 1
    │   ├── QueueFullError            too many questions wait
    │   ├── DeadlineError             the answer took too long
    │   └── EngineError               the engine that generates failed or cannot be reached
    ├── StoreLockedError              another build writes this store; exit code 75
    ├── BuildInterruptedError         stopped by a signal, finished shards are committed; exit code 130
    ├── AnsweringInterruptedError     stopped by a signal, the answers so far are written; exit code 130
    └── TrainingInterruptedError      stopped by a signal, the state is saved; exit code 130

A message is one paragraph: what is wrong, where (file, line or id), and what to do. Credentials are removed from it,
because it may quote an address or another library's message, and is often logged. An error that the operating system
causes, such as a full disk, has exit code 74 whatever its class.
"""

import errno
from collections.abc import Sequence

from .redaction import without_credentials

SUMMARY_CHARACTERS = 500
"""Limit of an error's summary that is stored in a row, because an error may quote megabytes."""


def some(values: Sequence[object], most: int = 10) -> str:
    """Return the first values as text, and the number of the remaining ones, so that a message stays one paragraph."""
    shown = ", ".join(map(repr, values[:most]))
    return shown if len(values) <= most else f"{shown} and {len(values) - most:,} more"


def error_summary(error: BaseException, limit: int | None = None) -> str:
    """Return an error's class and message, without credentials.

    Args:
        error: error to summarise.
        limit: largest number of characters; with a limit, only the first line of the message is kept.
    """
    message = str(error)
    if limit is not None:
        message = next(iter(message.strip().splitlines()), "")
    return f"{type(error).__name__}: {without_credentials(message)}"[:limit]


# Errors of the operating system that no other input mends.
_MACHINE_ERRNOS = frozenset(
    (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ESTALE)
)


def exit_code(error: BaseException) -> int:
    """Return the exit code of the command line for an error of this package or of the operating system."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in _MACHINE_ERRNOS:
            return MachineError.exit_code
        cause = cause.__cause__
    return error.exit_code if isinstance(error, PiscoIndexError) else InputError.exit_code


class PiscoIndexError(Exception):
    """Base of all errors of this package.

    Attributes:
        exit_code: exit code of the command line.
    """

    exit_code = 1

    def __init__(self, message: str = ""):
        super().__init__(without_credentials(str(message)))


class InputError(PiscoIndexError):
    """Something the user gave cannot be used."""

    exit_code = 2


class ConfigError(InputError):
    """A configuration key or value is not valid."""


class CorpusError(InputError):
    """A corpus cannot be read. The message names the file, the line or row, and the id."""


class CheckpointError(InputError):
    """A checkpoint folder lacks a file, or one of its tensors does not fit."""


class QuestionsError(InputError):
    """A file of questions or a retriever's run cannot be read. The message names the file, the line and the id."""


class PromptError(InputError):
    """A question and its documents do not fit the decoder."""


class TrainingError(InputError):
    """Training data or the state of an unfinished training cannot be used, or the loss is not a number."""


class PlanMismatchError(InputError):
    """The corpus differs from the one that the store's build was planned for."""


class StoreError(InputError):
    """A store cannot be opened, created or written."""


class FingerprintMismatchError(StoreError):
    """The store's memory was made by another compressor or with other settings."""


class MissingDocumentsError(StoreError):
    """The store does not hold some of the requested ids.

    Attributes:
        doc_ids: missing ids, in request order.
    """

    def __init__(self, message: str, doc_ids: Sequence[str]):
        super().__init__(message)
        self.doc_ids = tuple(doc_ids)

    def __reduce__(self):
        return type(self), (self.args[0], self.doc_ids)


class FailedDocumentsError(MissingDocumentsError):
    """Some of the requested documents failed in the build: the store holds them without memory."""


class MissingTextError(StoreError):
    """The store does not keep the text of a document."""


class MachineError(StoreError):
    """The machine lacks something that a store requires: room on a disk, a file system to write to, open files."""

    # EX_IOERR of sysexits.h
    exit_code = 74


class StoreUnreachableError(MachineError):
    """The disk or object store that holds the store does not answer. A later attempt may succeed."""


class CorruptStoreError(StoreError):
    """Stored bytes fail their checksum, header or shape check."""


class BuildIncompleteError(PiscoIndexError):
    """The build ended, but some shards failed or some documents were quarantined."""

    exit_code = 3


class BuildHungError(BuildIncompleteError):
    """The worker in this process hangs, in a thread that ends only with the process.

    Attributes:
        shard: number of the shard that hangs.
    """

    def __init__(self, message: str, shard: int):
        super().__init__(message)
        self.shard = shard


class LiveError(PiscoIndexError):
    """A question that came to a server is not answered, for a reason that is not in the question."""


class QueueFullError(LiveError):
    """Too many questions wait. A later attempt may succeed."""


class DeadlineError(LiveError):
    """The answer was not finished in the time that a question has."""


class EngineError(LiveError):
    """The engine that generates answers failed, or cannot be reached."""


class StoreLockedError(PiscoIndexError):
    """Another build is writing the store."""

    exit_code = 75


class BuildInterruptedError(PiscoIndexError):
    """A signal stopped the build. Finished shards are committed, and the same command resumes it."""

    exit_code = 130


class AnsweringInterruptedError(PiscoIndexError):
    """A signal stopped the answering of questions. The answers so far are written; the same command resumes it."""

    exit_code = 130


class TrainingInterruptedError(PiscoIndexError):
    """A signal stopped the training. Its state is saved, and the same command resumes it."""

    exit_code = 130
