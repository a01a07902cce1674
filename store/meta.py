"""The description of a store, kept as JSON in its assets."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..configs.names import MEMORY_AT_QUESTION, Stage
from ..errors import StoreError
from .codecs import codec_by_name
from .codecs.record import MAX_DIM
from .fingerprint import Fingerprint
from .schema import FORMAT_VERSION, memory_schema


class StoreMeta(BaseModel):
    """The description that a store is created with and that never changes.

    Attributes:
        fingerprint: identity of everything that determined the memory.
        stage: stage of the stored memory: ``"hidden"`` before the connector, ``"embedding"`` after it.
        dim: width of the stored memory at that stage.
        codec: name of the codec that new payloads use.
        checkpoint: readable description of the checkpoint, such as its name, rate and maximum length.
        package_version: version of the package that created the store.
        created_at: time of creation, in UTC.
        optional_columns: names of the optional columns (``title``, ``text``) that the table ``memory`` has.
        format_version: version of the on-disk format.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    fingerprint: Fingerprint
    stage: Stage
    dim: int = Field(gt=0, le=MAX_DIM)
    codec: str
    checkpoint: Mapping[str, Any]
    package_version: str
    created_at: datetime = Field(default_factory=lambda: datetime.now(UTC))
    optional_columns: tuple[str, ...] = ()
    format_version: int = FORMAT_VERSION

    def model_post_init(self, _context: Any, /) -> None:
        """Check that the codec and the optional columns exist.

        Raises:
            StoreError: a name is unknown.
        """
        codec_by_name(self.codec)
        memory_schema(self.optional_columns)

    @property
    def holds_memory(self) -> bool:
        """False if the store holds texts only, because memory is made with each question."""
        return self.fingerprint.components.get("memory") != MEMORY_AT_QUESTION

    @property
    def has_connector(self) -> bool:
        """True if the store keeps the checkpoint's connector. Some families have none."""
        return self.holds_memory and bool(self.checkpoint.get("connector", True))

    def require_memory(self, origin: str) -> None:
        """Check that the store holds memory.

        Args:
            origin: address of the store for the message.

        Raises:
            StoreError: it holds texts only.
        """
        if not self.holds_memory:
            raise StoreError(
                f"The store at {origin} holds texts and no memory: its checkpoint compresses a document together with "
                "the question. Ask a question (`pisco-index ask`, `eval`)."
            )

    def to_json(self) -> bytes:
        """Return the description as JSON in UTF-8."""
        return self.model_dump_json().encode()

    @classmethod
    def from_json(cls, data: bytes, origin: str) -> Self:
        """Read a description that ``to_json`` wrote.

        Args:
            data: the JSON.
            origin: name of the store for messages.

        Raises:
            StoreError: the store has a newer format, or the description is not valid.
        """
        try:
            values = json.loads(data)
            version = int(values["format_version"])
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise StoreError(f"{origin}: the store's description cannot be read: {error!r}.") from None
        # The version is checked first, because a newer description may have other keys.
        if version > FORMAT_VERSION:
            raise StoreError(
                f"{origin}: the store has format version {version}; this version of pisco-index reads up to "
                f"{FORMAT_VERSION}. Install a newer pisco-index."
            )
        try:
            return cls.model_validate_json(data)
        except ValidationError as error:
            raise StoreError(f"{origin}: the store's description is not valid: {error}.") from None
