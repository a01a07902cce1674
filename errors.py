"""Every exception this package raises on purpose.

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
    │       ├── FingerprintMismatchError   memory made by another compressor or setting
    │       ├── MissingDocumentsError      ids that the store does not hold
    │       ├── StoreUnreachableError      a disk or object store that does not answer now
    │       └── CorruptStoreError          bytes that fail their checks
    ├── BuildIncompleteError          the build ended with failed shards or documents; exit code 3
    │   └── BuildHungError            the worker of this process hangs; exit code 3
    ├── StoreLockedError              another build writes this store; exit code 75
    ├── BuildInterruptedError         stopped by a signal, everything finished is committed; exit code 130
    └── TrainingInterruptedError      stopped by a signal, the state is saved; exit code 130

A message is one paragraph: what is wrong, where (file, line or id), and what to do. Credentials are cut out of it,
since it may repeat an address or another library's words, and ends in logs.
"""

import os
import re
from collections.abc import Sequence
from urllib.parse import quote

_SHOWN = 10

# Of an address: what stands before the host, with a colon (and no port) or without; and parameters of signed requests.
_USER = re.compile(r"(?<!abfss)(:/{1,2})(?:[^\s'\"/@:]*:(?!\d+(?:/|$))[^\s'\"@]+|[^\s'\"/@:]+)@")
_PARAMETER = re.compile(
    r"(?i)([?&](?:sig|signature|x-amz-[a-z-]+|\w*(?:access_?key|secret|token|password)\w*)=)[^&\s'\")<]+"
)
# What S3 answers when a signature is wrong.
_ANSWERED = re.compile(
    r"<(AWSAccessKeyId|AccessKeyId|StringToSign|StringToSignBytes|CanonicalRequest|CanonicalRequestBytes|"
    r"SignatureProvided|Token-0)>.*?</\1>",
    re.DOTALL,
)
_NAMES_A_SECRET = re.compile(
    r"(?:AWS|AMAZON|AZURE|GOOGLE|HF|HUGGING\w*)_(?:\w*_)?(?:\w*KEY|SECRET|TOKEN|PASSWORD|SAS)(?:_\w+)?"
)
_SHORTEST_SECRET = 8


def some(values: Sequence[object]) -> str:
    """The first ten of many values, for a message."""
    shown = ", ".join(map(repr, values[:_SHOWN]))
    return shown if len(values) <= _SHOWN else f"{shown} and {len(values) - _SHOWN:,} more"


def without_credentials(text: str) -> str:
    """A text less what may be a credential: in addresses, in answers of object stores, or by the environment."""
    text = _USER.sub(r"\1…@", text)
    text = _PARAMETER.sub(r"\1…", text)
    text = _ANSWERED.sub(r"<\1>…</\1>", text)
    for name, value in os.environ.items():
        if len(value) >= _SHORTEST_SECRET and _NAMES_A_SECRET.fullmatch(name) and not name.endswith("_FILE"):
            text = text.replace(value, "…").replace(quote(value, safe=""), "…")
    return text


def is_address(place: object) -> bool:
    """Whether the name of a folder or file is the address of something elsewhere, also as a path made of one."""
    return re.match(r"[A-Za-z][\w+.-]+:/", str(place)) is not None


class PiscoIndexError(Exception):
    """Base of all errors of this package; ``exit_code`` is what the command line exits with."""

    exit_code = 1

    def __init__(self, message: str = ""):
        super().__init__(without_credentials(str(message)))


class InputError(PiscoIndexError):
    """Something the user gave cannot be used."""

    exit_code = 2


class ConfigError(InputError):
    """A configuration key or value is not valid."""


class CorpusError(InputError):
    """A corpus cannot be read: which file, which line or row, which id."""


class CheckpointError(InputError):
    """A checkpoint folder lacks a file, or a tensor in it does not fit."""


class QuestionsError(InputError):
    """A file of questions or a retriever's run cannot be read: which file, which line, which id."""


class PromptError(InputError):
    """A question with its documents does not fit the decoder."""


class TrainingError(InputError):
    """Training data, or the state of a training that was begun, cannot be used; or the loss is no number."""


class PlanMismatchError(InputError):
    """The corpus is not the one that the store's build was planned for."""


class StoreError(InputError):
    """A store cannot be opened, created or written."""


class FingerprintMismatchError(StoreError):
    """The store's memory was made by another compressor or with other settings."""


class MissingDocumentsError(StoreError):
    """Ids that the store does not hold.

    Attributes:
        doc_ids: the missing ids, in request order.
    """

    def __init__(self, message: str, doc_ids: Sequence[str]):
        super().__init__(message)
        self.doc_ids = tuple(doc_ids)

    def __reduce__(self):
        return type(self), (self.args[0], self.doc_ids)


class StoreUnreachableError(StoreError):
    """The disk or object store that a store is on does not answer, which may pass."""


class CorruptStoreError(StoreError):
    """Stored bytes fail their checksum, header or shape check."""


class BuildIncompleteError(PiscoIndexError):
    """The build ended, but some shards failed or some documents were quarantined."""

    exit_code = 3


class BuildHungError(BuildIncompleteError):
    """The worker of this process hangs, in a thread that cannot be ended without the process.

    Attributes:
        shard: the number of the shard that it hangs at.
    """

    def __init__(self, message: str, shard: int):
        super().__init__(message)
        self.shard = shard


class StoreLockedError(PiscoIndexError):
    """Another build is writing the store."""

    exit_code = 75


class BuildInterruptedError(PiscoIndexError):
    """A signal stopped the build; what was finished is committed and a rerun resumes."""

    exit_code = 130


class TrainingInterruptedError(PiscoIndexError):
    """A signal stopped the training; its state is saved and the same command goes on."""

    exit_code = 130
