"""The fingerprint: the identity of everything that determines memory."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from ..configs.names import DEFAULT_FAMILY
from ..errors import FingerprintMismatchError, StoreError


@dataclass(frozen=True)
class Fingerprint:
    """The settings and weights that determine memory, as named strings.

    Memory from two sources may be mixed, and read by the same decoder, only if their fingerprints are equal.

    Attributes:
        components: a short string for each name, for example a hash of weights, a rate or a version.
    """

    components: Mapping[str, str]

    def __hash__(self) -> int:
        return hash(self.digest)

    @property
    def digest(self) -> str:
        """Hash of the fingerprint: BLAKE2b-128 of the components as canonical JSON, in 32 hexadecimal digits."""
        canonical = json.dumps(dict(self.components), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return hashlib.blake2b(canonical.encode(), digest_size=16).hexdigest()

    @property
    def family(self) -> str:
        """Family of the checkpoint that made the memory."""
        return self.components.get("family", DEFAULT_FAMILY)

    def differences(self, other: Self) -> list[str]:
        """Return a line ``name: mine | theirs`` for each component that differs; a missing one is ``(absent)``."""
        keys = sorted(self.components.keys() | other.components.keys())
        changed = [key for key in keys if self.components.get(key) != other.components.get(key)]
        unstated = {"family": DEFAULT_FAMILY}
        mine, theirs = ({**dict.fromkeys(changed, "(absent)"), **unstated, **each.components} for each in (self, other))
        return [f"{key}: {mine[key]} | {theirs[key]}" for key in changed]

    def require_equal(self, other: Self, what: str) -> None:
        """Check that another fingerprint equals this one, which is a store's.

        Args:
            other: the fingerprint to compare with.
            what: owner of the other fingerprint for the message, for example ``"this build"``.

        Raises:
            FingerprintMismatchError: they differ; the message has both digests and every component that differs.
        """
        if lines := self.differences(other):
            raise FingerprintMismatchError(
                f"the store's memory has fingerprint {self.digest} but {what} has {other.digest}. "
                f"They differ in {'; '.join(lines)}. Use what the store was built with, or build another store."
            )

    def to_json(self) -> str:
        """Return the components as a JSON object."""
        return json.dumps(dict(self.components), sort_keys=True, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read a fingerprint that ``to_json`` wrote.

        Raises:
            StoreError: the text is no JSON object of strings.
        """
        try:
            components = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise StoreError(f"a fingerprint is not JSON: {error}.") from None
        if not isinstance(components, dict) or not all(isinstance(v, str) for v in components.values()):
            raise StoreError("a fingerprint must be a JSON object of strings.")
        return cls(components)
