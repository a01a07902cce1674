"""Addresses of a store, its tables and its files, in a local folder or an object store."""

import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

from ...errors import StoreError

MEMORY, REJECTED, ASSETS = "memory", "rejected", "assets"
TABLES = (MEMORY, REJECTED, ASSETS)

# Schemes of the object stores in which Lance commits by a conditional put, which fails if the object exists.
OBJECT_STORES = ("s3", "gs", "az", "abfss")

_ONE_SLASH = re.compile(rf"(?:{'|'.join(OBJECT_STORES)}|https?):/(?!/)")

# Limits on the retries of Lance's client. Lance repeats the whole series six times, so it gives up a store that refuses
# after about 20 s, and one that is silent after some minutes. The environment overrides these values.
_RETRIES = {"client_max_retries": "10", "client_retry_timeout": "30"}


def resolve_uri(uri: str | Path) -> str:
    """Return an address in its only form: an absolute local path, or the URI of an object store.

    Object stores (``s3://``, ``gs://``, …) take their credentials and options from the environment.

    Raises:
        StoreError: a store cannot be at this address, or the address holds credentials. The message does not repeat it.
    """
    text = str(uri)
    if _ONE_SLASH.match(text):
        # A Path has made one slash of two. Taken for a local path, it would become a folder with this name.
        raise StoreError("an object store's address has two slashes after its scheme. Pass it as a string, not a Path.")
    if text.startswith("file://"):
        text = unquote(urlsplit(text).path)
    if "://" in text:
        _require_object_store(text)
        return text.rstrip("/")
    try:
        return str(Path(text).expanduser().absolute())
    except RuntimeError as error:
        raise StoreError(f"{text}: {error} Write the whole path instead of ~.") from error


def _require_object_store(uri: str) -> None:
    scheme, _, rest = uri.partition("://")
    if scheme not in OBJECT_STORES:
        places = ", ".join(f"{each}://" for each in OBJECT_STORES)
        raise StoreError(f"a store cannot be at an address that begins with {scheme}://. Name a folder, or {places}.")
    # A secret may contain slashes, so its @ can be anywhere. Only a secret has a colon before the first slash.
    bucket = rest.partition("/")[0]
    if ":" in bucket or ("@" in bucket and scheme != "abfss"):
        raise StoreError(
            f"a store's {scheme}:// address must not hold credentials, because addresses are shown and kept. Set them "
            "in the environment (docs/object-stores.md), and name only bucket and path."
        )
    if not bucket:
        raise StoreError(f"{uri} names no bucket. A store's address is {scheme}://BUCKET/PATH.")
    if "?" in rest or "#" in rest:
        raise StoreError(
            f"a store's {scheme}:// address must not contain '?' or '#'. Set options and tokens in the environment "
            "(docs/object-stores.md)."
        )


def local_folder(uri: str) -> Path | None:
    """Return the folder at a resolved address; None for an object store."""
    return None if "://" in uri else Path(uri)


def table_uri(uri: str, table: str) -> str:
    """Return the address of a table, which is where ``lancedb.connect(uri)`` looks for it too."""
    return f"{uri}/{table}.lance"


def data_file_uri(uri: str, table: str, name: str) -> str:
    """Return the address of a data file of a table."""
    return f"{table_uri(uri, table)}/data/{name}"


def storage_options(uri: str) -> dict[str, str] | None:
    """Return the storage options for an address. Lance reads the remaining ones from the environment."""
    return dict(_RETRIES) if local_folder(uri) is None else None
