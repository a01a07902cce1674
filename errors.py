"""Every exception this package raises on purpose.

::

    PiscoIndexError
    ├── InputError                    something the user gave is wrong; exit code 2
    │   ├── ConfigError               a configuration key or value
    │   ├── CorpusError               a corpus file, record or id
    │   ├── CheckpointError           a checkpoint folder, file or tensor
    │   ├── PromptError               a question or documents that do not fit the decoder
    │   ├── PlanMismatchError         a corpus that changed since the build was planned
    │   └── StoreError                a store's folder, table or version
    │       ├── FingerprintMismatchError   memory made by another compressor or setting
    │       ├── MissingDocumentsError      ids that the store does not hold
    │       └── CorruptStoreError          bytes that fail their checks
    ├── BuildIncompleteError          the build ended with failed shards or documents; exit code 3
    ├── StoreLockedError              another build writes this store; exit code 75
    └── BuildInterruptedError         stopped by a signal, everything finished is committed; exit code 130

A message is one paragraph: what is wrong, where (file, line or id), and what to do.
"""

from collections.abc import Sequence


class PiscoIndexError(Exception):
    """Base of all errors of this package; ``exit_code`` is what the command line exits with."""

    exit_code = 1


class InputError(PiscoIndexError):
    """Something the user gave cannot be used."""

    exit_code = 2


class ConfigError(InputError):
    """A configuration key or value is not valid."""


class CorpusError(InputError):
    """A corpus cannot be read: which file, which line or row, which id."""


class CheckpointError(InputError):
    """A checkpoint folder lacks a file, or a tensor in it does not fit."""


class PromptError(InputError):
    """A question with its documents does not fit the decoder."""


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


class CorruptStoreError(StoreError):
    """Stored bytes fail their checksum, header or shape check."""


class BuildIncompleteError(PiscoIndexError):
    """The build ended, but some shards failed or some documents were quarantined."""

    exit_code = 3


class StoreLockedError(PiscoIndexError):
    """Another build is writing the store."""

    exit_code = 75


class BuildInterruptedError(PiscoIndexError):
    """A signal stopped the build; what was finished is committed and a rerun resumes."""

    exit_code = 130
