"""Words that several rooms share: stages, codecs, dtypes, and the choices of a build."""

from typing import Literal

Stage = Literal["hidden", "embedding"]
"""Stage at which memory is taken: before the connector (compressor width) or after it (decoder width)."""

MEMORY_AT_QUESTION = "at question time"
"""Value of the component ``memory`` in the fingerprint of a store of texts, whose memory is made with each question."""

DEFAULT_FAMILY = "pisco"
"""Family of checkpoints whose identity names none: fingerprints of their stores are older than other families."""

CodecName = Literal["fp32", "bf16", "bf16z", "int8", "int4", "klt3", "klt2", "fisher4", "fisher3", "fisher2"]
"""Codec that turns memory into bytes, from the largest to the smallest; then those that are fitted to a decoder."""

Dtype = Literal["bfloat16", "float32"]
"""Dtypes that compressors and decoders are loaded in."""

AttentionName = Literal["auto", "torch", "flash-attn", "padded"]
"""Attention kernels of the compressor; ``auto`` is the fastest one that computes correctly on the device."""

CorpusFormat = Literal["auto", "jsonl", "json", "parquet", "arrow", "tsv", "mediawiki"]
"""Formats of corpus files; ``auto`` recognises the format from the first bytes."""

TextEncoding = Literal["auto", "utf-8", "utf-16-le", "utf-16-be", "cp1252", "latin-1"]
"""Encodings of text files; ``auto`` is UTF-16 if a file begins with its byte order mark, otherwise UTF-8."""

Keep = Literal["title", "text"]
"""Fields of a document that a store can keep with its memory."""

MissingIds = Literal["error", "skip"]
"""Treatment of ids that a store does not hold: reported in one error, or left out."""

ExportFormat = Literal["parquet", "arrow", "safetensors", "npy"]
"""Formats of exported files."""

ExportDtype = Literal["float32", "float16", "bfloat16"]
"""Dtypes of exported numbers. Only ``safetensors`` files hold all three."""

DOCUMENTS = 5
"""Number of documents that a question is answered from by default, the best of a run or search."""
