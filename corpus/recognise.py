"""Recognise the format of a file by its first bytes; its name is ignored."""

import codecs
import re
from dataclasses import dataclass

from ..configs.corpus import CorpusConfig, OnError
from ..errors import CorpusError
from .compression import magic_compression
from .files import DataFile
from .formats.json.layout import SEPARATOR, layout_of
from .framing import without_mark
from .rejected import UnreadableError, unreadable
from .streams import ByteStream, Encoding, TextFile

HEAD_BYTES = 64 << 10
"""Bytes of text that formats are recognised by: enough for the first line of most records."""
# First lines that are kept: enough to tell a header from the rows below it.
_FIRST_LINES = 32

TEXT_FORMATS = ("jsonl", "json", "tsv", "mediawiki")
"""Formats of text, any of which a file of text is read as if it is configured."""

_BINARY: tuple[tuple[bytes, str], ...] = (
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
)
_TEXT = (
    (b"%PDF-", "a PDF. Extract its text first"),
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself. Run git lfs pull"),
)
_BINARY += _TEXT
_CONTROL = re.compile(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f]")


@dataclass(frozen=True, slots=True)
class Recognised:
    """A file and its format.

    Attributes:
        file: file that was read.
        format: format as in ``CorpusConfig``, the configured one if the file can have it; "empty" for a text file
            without content; "text" for plain lines.
        text_file: compression and encoding of a text file; None for Parquet and Arrow.
        lines: first lines of a text file that are not blank, without their ends and byte order marks.
        guess: format that the first bytes look like.
    """

    file: DataFile
    format: str
    text_file: TextFile | None = None
    lines: tuple[str, ...] = ()
    guess: str = ""

    @property
    def text(self) -> TextFile:
        """Compression and encoding of the file, which must be a text file."""
        assert self.text_file is not None
        return self.text_file

    @property
    def first_line(self) -> str:
        """First line of a text file that is not blank, without white space around it."""
        return self.lines[0].strip() if self.lines else ""


def recognise(file: DataFile, config: CorpusConfig = CorpusConfig()) -> Recognised:  # noqa: B008
    """Return the format, compression and encoding of a file. A configured format of text is believed.

    Args:
        file: file to read.
        config: format and encoding, if they are set. If errors are skipped, a file may be damaged after its first
            bytes.

    Raises:
        CorpusError: if the file is not a corpus. The message says what it is.
    """
    path, name = str(file.path), file.name
    try:
        with file.path.open("rb") as opened:
            raw = opened.read(512)
    except OSError as error:
        raise unreadable(name, error) from None
    is_text = _is_text(raw)
    if raw.startswith(b"PAR1") and not is_text:
        return Recognised(file, "parquet")
    if raw.startswith((b"ARROW1", b"\xff\xff\xff\xff")) and not is_text:
        return Recognised(file, "arrow")
    suffix = file.path.suffix.lower()
    if not raw and suffix in (".parquet", ".arrow", ".feather"):
        raise CorpusError(f"{name}: the file is empty, but {suffix[1:]} begins with a signature. Download it again.")
    text = TextFile(path, name, magic_compression(raw))
    head = _head(text, config.on_error)
    if not config.encoding.startswith("utf-16"):
        _refuse_binary(head, name, text, config.format)
    encoding = _encoding(head, name) if config.encoding == "auto" else config.encoding
    if encoding != "utf-8":
        text = TextFile(path, name, text.compression, encoding)
        head = _head(text, config.on_error)
    whole = len(head) < HEAD_BYTES
    head = without_mark(head)
    lines = _first_lines(head, whole)
    if not lines and whole:
        return Recognised(file, "empty")
    if not lines:
        raise CorpusError(f"{name}: the first {len(head):,} bytes are blank lines. Remove them.")
    guess = _text_format(head)
    chosen = config.format if config.format in TEXT_FORMATS else guess
    if chosen == "html":
        raise CorpusError(f"{name}: the file is HTML, perhaps the error page of a download. Download it again.")
    if chosen in ("tsv", "text"):
        _refuse_carriage_returns(head, name, whole)
    return Recognised(file, chosen, text, lines, guess)


def _head(text: TextFile, on_error: OnError) -> bytes:
    stream = ByteStream(text)
    head = b""
    try:
        while len(head) < HEAD_BYTES and (block := stream.read()):
            head += block
    except CorpusError as error:
        if not without_mark(head).strip() or on_error == "fail" or isinstance(error, UnreadableError):
            raise
    finally:
        stream.close()
    return head[:HEAD_BYTES]


def _is_text(head: bytes) -> bool:
    return not _CONTROL.search(head)


def _first_lines(head: bytes, whole: bool) -> tuple[str, ...]:
    *before, last = map(without_mark, head.split(b"\n"))
    kept = [line for line in before if line.strip()]
    # The last line may continue after the head.
    if last.strip() and (whole or not kept):
        kept.append(last)
    return tuple(line.removesuffix(b"\r").decode(errors="replace") for line in kept[:_FIRST_LINES])


def _text_format(head: bytes) -> str:
    blank, head = head[: len(head) - len(head.lstrip())], head.lstrip()
    line = head.partition(b"\n")[0]
    # A name that is missing in a header leaves its tab. An id may begin with a bracket too: then a tab is in the line,
    # and no record or list behind the bracket.
    is_table = b"\t" in blank.rpartition(b"\n")[2] + line
    is_list = head.startswith(b"[") and not (is_table and not re.match(rb'\[\s*(?:[\[{\]"]|\Z)', head))
    is_object = head.startswith(b"{") and not (is_table and not re.match(rb'\{\s*(?:["}]|\Z)', head))
    if is_list or is_object or head.startswith(SEPARATOR):
        return "jsonl" if layout_of(head) == "lines" else "json"
    if re.match(rb"<!doctype html|<(?:html|head|body)[\s>]", head, re.IGNORECASE):
        return "html"
    if head.startswith((b"<?xml", b"<mediawiki", b"<page>", b"<!--", b"<!DOCTYPE")):
        return "mediawiki"
    if re.match(rb"<[A-Za-z][\w:.-]*(?:\s|/?>)", head) and not re.match(rb"<[^<>\t]*>\t[^<]*$", line):
        return "mediawiki"
    return "tsv" if is_table else "text"


def _refuse_carriage_returns(head: bytes, name: str, whole: bool) -> None:
    if b"\n" in head or b"\r" not in head:
        return
    found = head.split(b"\r")
    tabs = {line.count(b"\t") for line in (found if whole else found[:-1]) if line.strip()}
    rows = sum(bool(line.strip()) for line in found)
    # In a table of one row, a text may have carriage returns.
    if rows > 1 and (tabs == {0} or (len(tabs) == 1 and 0 not in tabs)):
        raise CorpusError(
            f"{name}: the lines of the file end in carriage returns (\\r) alone, as old Mac programs write them. End"
            " them in line feeds, e.g. with: tr '\\r' '\\n'."
        )


def _encoding(head: bytes, name: str) -> Encoding:
    if head.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        raise CorpusError(f"{name}: the text is UTF-32. Convert it to UTF-8.")
    if head.startswith(codecs.BOM_UTF16_LE):
        return "utf-16-le"
    if head.startswith(codecs.BOM_UTF16_BE):
        return "utf-16-be"
    if re.match(rb"(?:\0[ -~]){2}|(?:[ -~]\0){2}", head):
        raise CorpusError(
            f"{name}: the text is UTF-16 without a byte order mark. Convert it to UTF-8, or set encoding."
        )
    return "utf-8"


def _refuse_binary(head: bytes, name: str, text: TextFile, wanted: str) -> None:
    # Some magic numbers are words: in a file of text, they may begin the first id.
    is_text = _is_text(head[:512])
    magics = _BINARY if not is_text else () if wanted in TEXT_FORMATS else _TEXT
    found = next((description for magic, description in magics if head.startswith(magic)), None)
    inner = magic_compression(head)
    if head[257:262] == b"ustar" and not is_text:
        found = "a tar archive. Unpack it and name its folder"
    elif head.startswith(b"PK\x03\x04"):
        found = _zip_kind(head)
    elif head.startswith((b"PAR1", b"ARROW1")) and not is_text:
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
