"""Which files make up a corpus, and what they are: told by their first bytes, not by their names."""

import codecs
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import orjson

from ..errors import CorpusError
from .document import UnreadableError
from .fields import listed
from .streams import ByteStream, Encoding, TextFile, magic_compression

_HEAD_BYTES = 64 << 10

_URI = re.compile(r"([a-z][a-z0-9+.-]+):/", re.IGNORECASE)
# What stands beside the data in dumps, on the Hugging Face hub and in Spark's and Hadoop's output.
_NO_DATA = re.compile(
    r"[._].*|(?:readme|license|licence|notice|copying|changelog|citation|(?:md5|sha1|sha256)sums)(?:\..*)?"
    r"|.*\.(?:md|crc|md5|sha1|sha256|sha512|idx|lock)|(?:dataset_infos?|state)\.json|.*-(?:md5|sha1)sums\.(?:txt|json)"
    r"|.*-multistream-index\d*\.txt.*",
    re.IGNORECASE,
)

_BINARY: tuple[tuple[bytes, str], ...] = (
    (b"%PDF", "a PDF; extract its text first"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive; unpack it first"),
    (b"Rar!", "a RAR archive; unpack it first"),
    (b"\xfd7zXZ\0", "xz-compressed; recompress it with zstd, gzip or bzip2"),
    (b"\x04\x22\x4d\x18", "LZ4-compressed; recompress it with zstd, gzip or bzip2"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"\x89HDF", "an HDF5 file"),
    (b"SQLite format 3\0", "an SQLite database"),
    (b"Obj\x01", "an Avro file; convert it to Parquet"),
    (b"ORC", "an ORC file; convert it to Parquet"),
    (b"FEA1", "a Feather file of version 1; write it again as Arrow IPC"),
    (b"PARE", "an encrypted Parquet file"),
    (b"\x89PNG", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"GIF8", "a GIF image"),
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself; run git lfs pull"),
)


@dataclass(frozen=True, slots=True)
class Recognised:
    """What a file is.

    Attributes:
        format: as in ``CorpusConfig``; "empty" for a text file with nothing in it; "text" for lines without structure.
        text: how its text is read; None for Parquet and Arrow.
        first_line: the first line of a text file.
    """

    format: str
    text: TextFile | None = None
    first_line: str = ""


@dataclass(frozen=True, slots=True)
class CorpusFile:
    """A file of a corpus: its absolute path, and the name by which messages and plans call it."""

    path: Path
    name: str


def find_files(argument: str | Path) -> Iterator[CorpusFile]:
    """Yield the data files of a path in the order of their names: of the file itself, or of all in the folder.

    Hidden files and those that are known to hold no data (README, _SUCCESS, checksums) are left out.

    Raises:
        CorpusError: for a path that does not exist, is not local, or holds no data.
    """
    uri = _URI.match(str(argument))
    if uri:
        raise CorpusError(
            f"{argument}: corpora are read from local or mounted paths, not from {uri[1]}. Download or mount it first."
        )
    path = Path(argument).expanduser().absolute()
    if not path.exists():
        raise CorpusError(f"{argument}: there is no such file or folder.")
    if path.is_file():
        yield CorpusFile(path, path.name)
        return
    if not path.is_dir():
        raise CorpusError(f"{argument}: neither a file nor a folder; a corpus is read more than once.")
    # Paths are not resolved: caches of data sets hold links to blobs whose names say nothing.
    root = path.resolve().name if path.name == ".." else path.name
    saved = (path / "state.json").is_file() and (path / "dataset_info.json").is_file()
    files = list(_saved_dataset(path, str(argument)) if saved else _walk(path))
    if not files:
        raise CorpusError(f"{argument}: the folder holds no data files.")
    for file in files:
        yield CorpusFile(file, f"{root}/{file.relative_to(path).as_posix()}")


def _walk(folder: Path) -> Iterator[Path]:
    splits = folder / "dataset_dict.json"
    if splits.is_file():
        names = _load_json(splits).get("splits", [])
        raise CorpusError(
            f"{folder}: a saved data set of the splits {listed(names)}; name one of their folders, e.g."
            f" {folder / str(names[0]) if names else folder}."
        )
    entries = (entry for entry in folder.iterdir() if not _NO_DATA.fullmatch(entry.name))
    for entry in sorted(entries, key=lambda entry: entry.name):
        if entry.is_dir():
            yield from _walk(entry)
        elif entry.is_file():
            yield entry


def _saved_dataset(folder: Path, argument: str) -> Iterator[Path]:
    """Yield the files of what ``datasets.Dataset.save_to_disk`` wrote, in the order of its rows."""
    state = _load_json(folder / "state.json")
    if state.get("_indices_files") or state.get("_indices_data_files"):
        raise CorpusError(
            f"{argument}: the saved data set is a selection of rows; flatten its indices and save it again."
        )
    for entry in state.get("_data_files", []):
        file = folder / entry["filename"]
        if not file.is_file():
            raise CorpusError(f"{file}: the saved data set names this file, but it is missing; copy the folder again.")
        yield file


def _load_json(path: Path) -> Any:
    try:
        return orjson.loads(path.read_bytes())
    except orjson.JSONDecodeError as error:
        raise CorpusError(f"{path}: broken JSON ({error}).") from None


def recognise(file: CorpusFile, on_error: Literal["fail", "skip"] = "fail") -> Recognised:
    """Tell a file's format, compression and encoding.

    Args:
        file: to look at.
        on_error: whether the beginning may be damaged behind its first bytes.

    Raises:
        CorpusError: for what is no corpus, saying what it is.
    """
    path, name = str(file.path), file.name
    try:
        with file.path.open("rb") as opened:
            raw = opened.read(512)
    except OSError as error:
        raise UnreadableError(f"{name}: cannot be opened ({error.strerror}).") from None
    if raw.startswith(b"PAR1"):
        return Recognised("parquet")
    if raw.startswith((b"ARROW1", b"\xff\xff\xff\xff")):
        return Recognised("arrow")
    suffix = file.path.suffix.lower()
    if not raw and suffix in (".parquet", ".arrow", ".feather"):
        raise CorpusError(f"{name}: empty, where {suffix[1:]} begins with a signature; fetch the file again.")
    text = TextFile(path, name, magic_compression(raw))
    head = _head(text, on_error)
    _refuse_binary(head, name, text)
    encoding = _encoding(head, name)
    if encoding != "utf-8":
        text = TextFile(path, name, text.compression, encoding)
        head = _head(text, on_error)
    whole = len(head) < _HEAD_BYTES
    head = head.removeprefix(codecs.BOM_UTF8).lstrip()
    if not head and whole:
        return Recognised("empty")
    return Recognised(_text_format(head, name), text, _first_line(head))


def _head(text: TextFile, on_error: Literal["fail", "skip"]) -> bytes:
    stream = ByteStream(text)
    head = b""
    try:
        while len(head) < _HEAD_BYTES and (block := stream.read()):
            head += block
    except CorpusError as error:
        if not head or on_error == "fail" or isinstance(error, UnreadableError):
            raise
    finally:
        stream.close()
    return head[:_HEAD_BYTES]


def _first_line(head: bytes) -> str:
    return head.partition(b"\n")[0].removesuffix(b"\r").decode(errors="replace")


def _text_format(head: bytes, name: str) -> str:
    line = head.partition(b"\n")[0].rstrip()
    if head.startswith(b"["):
        return "json"
    if head.startswith(b"{"):
        # An object over several lines has a first line that goes on; an object a line closes in it.
        return "json" if line.endswith((b"{", b",", b"[")) else "jsonl"
    if re.match(rb"<!doctype html|<html|<head|<body", head, re.IGNORECASE):
        raise CorpusError(f"{name}: HTML, perhaps the error page of a download; fetch the file again.")
    if head.startswith((b"<?xml", b"<mediawiki", b"<!--", b"<!DOCTYPE")) or re.match(rb"<[A-Za-z][\w:.-]*[\s>/]", head):
        return "mediawiki"
    return "tsv" if b"\t" in line else "text"


def _encoding(head: bytes, name: str) -> Encoding:
    if head.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        raise CorpusError(f"{name}: UTF-32 text; convert it to UTF-8.")
    if head.startswith(codecs.BOM_UTF16_LE):
        return "utf-16-le"
    if head.startswith(codecs.BOM_UTF16_BE):
        return "utf-16-be"
    if re.match(rb"(?:\0[ -~]){2}|(?:[ -~]\0){2}", head):
        raise CorpusError(f"{name}: UTF-16 text without a byte order mark; convert it to UTF-8.")
    return "utf-8"


def _refuse_binary(head: bytes, name: str, text: TextFile) -> None:
    found = next((description for magic, description in _BINARY if head.startswith(magic)), None)
    inner = magic_compression(head)
    if head[257:262] == b"ustar":
        found = "a tar archive; unpack it and name its folder"
    elif head.startswith(b"PK\x03\x04"):
        found = _zip_kind(head)
    elif head.startswith((b"PAR1", b"ARROW1")):
        found = "a Parquet or Arrow file; decompress it, its columns are compressed inside"
    elif head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        found = "a Python pickle"
    elif head[8:10] == b'{"' and head[5:8] == b"\0\0\0":
        found = "safetensors weights, not a corpus"
    elif inner != "none" and text.compression != "none":
        found = f"a {inner} file; decompress it once"
    elif found is None and b"\0" in head[:64] and not re.match(rb"\xff\xfe|\xfe\xff|\0?[ -~]\0?[ -~]", head):
        found = "binary data of no format that is read"
    if found is not None:
        outer = "" if text.compression == "none" else f"{text.compression} of "
        raise CorpusError(f"{name}: {outer}{found}.")


def _zip_kind(head: bytes) -> str:
    if b"data.pkl" in head or b"/data/0" in head:
        return "torch weights (a zip file), not a corpus"
    if b"[Content_Types].xml" in head or b"word/" in head:
        return "an Office document; extract its text first"
    return "a zip archive; unpack it first"
