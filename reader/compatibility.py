"""Check that a store and a checkpoint belong together."""

from ..errors import FingerprintMismatchError
from ..model.families import Checkpoint
from ..model.identity import identity_as_stored
from ..store import Fingerprint
from .reader import Reader


def require_checkpoint(reader: Reader, checkpoint: Checkpoint) -> None:
    """Check that a store's memory was made by a checkpoint.

    The store's fingerprint must hold every component of the checkpoint's identity, with the same value or the same
    meaning.

    Raises:
        FingerprintMismatchError: showing both values of each component that differs.
    """
    stored = reader.meta.fingerprint.components
    identity = identity_as_stored(checkpoint, stored)
    made_by = Fingerprint({name: stored.get(name, "") for name in identity})
    given, family = Fingerprint(identity), reader.meta.fingerprint.family
    if differences := made_by.differences(given):
        families = "" if family == given.family else f", of family {family}, not {given.family}"
        raise FingerprintMismatchError(
            f"{checkpoint.path}: the store's memory was made by another checkpoint{families}. They differ in "
            f"{'; '.join(differences)} (store | checkpoint). Load the checkpoint that the store was built with."
        )
