"""Where a store's tables and files lie: a local folder or an object store."""

import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

from ...errors import StoreError

MEMORY = "memory"

REJECTED = "rejected"

ASSETS = "assets"

TABLES = (MEMORY, REJECTED, ASSETS)

# The schemes of object stores in which Lance commits by a put that fails where the object is there already.
OBJECT_STORES = ("s3", "gs", "az", "abfss")

_ONE_SLASH = re.compile(rf"(?:{'|'.join(OBJECT_STORES)}|https?):/(?!/)")

# How long Lance's client tries. Lance tries everything six times over, so that a store that refuses is given up after
# some 20 s, and one that is silent after some minutes. What the environment says of these goes before them.
_PATIENCE = {"client_max_retries": "10", "client_retry_timeout": "30"}


def resolve_uri(uri: str | Path) -> str:
    """The form in which the store keeps an address: an absolute local path, or an object-store URI.

    Object stores (``s3://``, ``gs://``, …) take their credentials and options from the environment.

    Raises:
        StoreError: it is the address of something else, or holds credentials; what it says is not repeated then.
    """
    text = str(uri)
    if _ONE_SLASH.match(text):
        # A Path of an address: it would become a folder, whatever is in its name.
        raise StoreError("an object store's address has two slashes behind its scheme; give it as a string, no Path.")
    if text.startswith("file://"):
        text = unquote(urlsplit(text).path)
    if "://" in text:
        _require_object_store(text)
        return text.rstrip("/")
    return str(Path(text).expanduser().absolute())


def _require_object_store(uri: str) -> None:
    scheme, _, rest = uri.partition("://")
    if scheme not in OBJECT_STORES:
        places = ", ".join(f"{each}://" for each in OBJECT_STORES)
        raise StoreError(f"a store cannot be at an address that begins with {scheme}://; name a folder, or {places}.")
    # A secret may hold slashes, so that its @ is anywhere; but nothing else has a colon here.
    bucket = rest.partition("/")[0]
    if ":" in bucket or ("@" in bucket and scheme != "abfss"):
        raise StoreError(
            f"a store's {scheme}:// address must not hold credentials, because it is shown and kept. Set them in the "
            "environment (docs/object-stores.md), and name the bucket and path only."
        )
    if not bucket:
        raise StoreError(f"{uri} names no bucket; a store's address is {scheme}://BUCKET/PATH.")
    if "?" in rest or "#" in rest:
        raise StoreError(
            f"a store's {scheme}:// address must have no '?' or '#'. Set options and tokens in the environment "
            "(docs/object-stores.md)."
        )


def local_folder(uri: str) -> Path | None:
    """The folder of a resolved address, or None in an object store."""
    return None if "://" in uri else Path(uri)


def table_uri(uri: str, table: str) -> str:
    """The address of one table: where ``lancedb.connect(uri)`` looks for it too."""
    return f"{uri}/{table}.lance"


def data_file_uri(uri: str, table: str, name: str) -> str:
    """The address of one data file of a table."""
    return f"{table_uri(uri, table)}/data/{name}"


def storage_options(uri: str) -> dict[str, str] | None:
    """What Lance is to be told of the place of an address; it takes all else from the environment by itself."""
    return dict(_PATIENCE) if local_folder(uri) is None else None
