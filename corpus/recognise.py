"""Recognise the format of a file by its first bytes; its name is ignored."""

import codecs
import re
from dataclasses import dataclass

from ..configs.corpus import OnError
from ..errors import CorpusError
from .compression import magic_compression
from .files import DataFile
from .formats.json.layout import SEPARATOR, layout_of
from .rejected import UnreadableError, unreadable
from .streams import ByteStream, Encoding, TextFile

HEAD_BYTES = 64 << 10
"""Bytes of text that formats are recognised by: enough for the first line of most records."""

_BINARY: tuple[tuple[bytes, str], ...] = (
    (b"%PDF", "a PDF. Extract its text first"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive. Unpack it first"),
    (b"Rar!", "a RAR archive. Unpack it first"),
    (b"\xfd7zXZ\0", "xz-compressed data. Recompress it with zstd, gzip or bzip2"),
    (b"\x04\x22\x4d\x18", "LZ4-compressed data. Recompress it with zstd, gzip or bzip2"),
    (b"\x93NUMPY", "a NumPy array, not a corpus"),
    (b"\x89HDF", "an HDF5 file, not a corpus"),
    (b"SQLite format 3\0", "an SQLite database. Export its records as JSONL"),
    (b"Obj\x01", "an Avro file. Convert it to Parquet"),
    (b"ORC", "an ORC file. Convert it to Parquet"),
    (b"FEA1", "a Feather file of version 1. Write it again as Arrow IPC"),
    (b"PARE", "an encrypted Parquet file. Decrypt it first"),
    (b"\x89PNG", "a PNG image, not a corpus"),
    (b"\xff\xd8\xff", "a JPEG image, not a corpus"),
    (b"GIF8", "a GIF image, not a corpus"),
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself. Run git lfs pull"),
)


@dataclass(frozen=True, slots=True)
class Recognised:
    """A file and its format.

    Attributes:
        file: file that was read.
        format: format as in ``CorpusConfig``; "empty" for a text file without content; "text" for plain lines.
        text_file: compression and encoding of a text file; None for Parquet and Arrow.
        first_line: first line of a text file.
    """

    file: DataFile
    format: str
    text_file: TextFile | None = None
    first_line: str = ""

    @property
    def text(self) -> TextFile:
        """Compression and encoding of the file, which must be a text file."""
        assert self.text_file is not None
        return self.text_file


def recognise(file: DataFile, on_error: OnError = "fail") -> Recognised:
    """Return the format, compression and encoding of a file.

    Args:
        file: file to read.
        on_error: "skip" accepts a file whose beginning is damaged after its first bytes.

    Raises:
        CorpusError: if the file is not a corpus. The message says what it is.
    """
    path, name = str(file.path), file.name
    try:
        with file.path.open("rb") as opened:
            raw = opened.read(512)
    except OSError as error:
        raise unreadable(name, error) from None
    if raw.startswith(b"PAR1"):
        return Recognised(file, "parquet")
    if raw.startswith((b"ARROW1", b"\xff\xff\xff\xff")):
        return Recognised(file, "arrow")
    suffix = file.path.suffix.lower()
    if not raw and suffix in (".parquet", ".arrow", ".feather"):
        raise CorpusError(f"{name}: the file is empty, but {suffix[1:]} begins with a signature. Download it again.")
    text = TextFile(path, name, magic_compression(raw))
    head = _head(text, on_error)
    _refuse_binary(head, name, text)
    encoding = _encoding(head, name)
    if encoding != "utf-8":
        text = TextFile(path, name, text.compression, encoding)
        head = _head(text, on_error)
    is_whole = len(head) < HEAD_BYTES
    head = head.removeprefix(codecs.BOM_UTF8).lstrip()
    if not head and is_whole:
        return Recognised(file, "empty")
    return Recognised(file, _text_format(head, name), text, _first_line(head))


def _head(text: TextFile, on_error: OnError) -> bytes:
    stream = ByteStream(text)
    head = b""
    try:
        while len(head) < HEAD_BYTES and (block := stream.read()):
            head += block
    except CorpusError as error:
        if not head or on_error == "fail" or isinstance(error, UnreadableError):
            raise
    finally:
        stream.close()
    return head[:HEAD_BYTES]


def _first_line(head: bytes) -> str:
    return head.partition(b"\n")[0].removesuffix(b"\r").decode(errors="replace")


def _text_format(head: bytes, name: str) -> str:
    line = head.partition(b"\n")[0].rstrip()
    if head.startswith((b"[", b"{", SEPARATOR)):
        return "jsonl" if layout_of(head) == "lines" else "json"
    if re.match(rb"<!doctype html|<html|<head|<body", head, re.IGNORECASE):
        raise CorpusError(f"{name}: the file is HTML, perhaps the error page of a download. Download it again.")
    if head.startswith((b"<?xml", b"<mediawiki", b"<!--", b"<!DOCTYPE")) or re.match(rb"<[A-Za-z][\w:.-]*[\s>/]", head):
        return "mediawiki"
    return "tsv" if b"\t" in line else "text"


def _encoding(head: bytes, name: str) -> Encoding:
    if head.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        raise CorpusError(f"{name}: the text is UTF-32. Convert it to UTF-8.")
    if head.startswith(codecs.BOM_UTF16_LE):
        return "utf-16-le"
    if head.startswith(codecs.BOM_UTF16_BE):
        return "utf-16-be"
    if re.match(rb"(?:\0[ -~]){2}|(?:[ -~]\0){2}", head):
        raise CorpusError(f"{name}: the text is UTF-16 without a byte order mark. Convert it to UTF-8.")
    return "utf-8"


def _refuse_binary(head: bytes, name: str, text: TextFile) -> None:
    found = next((description for magic, description in _BINARY if head.startswith(magic)), None)
    inner = magic_compression(head)
    if head[257:262] == b"ustar":
        found = "a tar archive. Unpack it and name its folder"
    elif head.startswith(b"PK\x03\x04"):
        found = _zip_kind(head)
    elif head.startswith((b"PAR1", b"ARROW1")):
        found = "a Parquet or Arrow file. Decompress it; its columns are compressed inside"
    elif head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        found = "a Python pickle, not a corpus"
    elif head[8:10] == b'{"' and head[5:8] == b"\0\0\0":
        found = "safetensors weights, not a corpus"
    elif inner != "none" and text.compression != "none":
        found = f"a {inner} file. Decompress the file once"
    elif found is None and b"\0" in head[:64] and not re.match(rb"\xff\xfe|\xfe\xff|\0?[ -~]\0?[ -~]", head):
        found = "binary data in an unknown format. Write its records as JSONL"
    if found is not None:
        subject = "the file is" if text.compression == "none" else f"the {text.compression} file contains"
        raise CorpusError(f"{name}: {subject} {found}.")


def _zip_kind(head: bytes) -> str:
    if b"data.pkl" in head or b"/data/0" in head:
        return "torch weights (a zip file), not a corpus"
    if b"[Content_Types].xml" in head or b"word/" in head:
        return "an Office document. Extract its text first"
    return "a zip archive. Unpack it first"
