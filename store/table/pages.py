"""The page layout of large values in Lance's data files."""

import re
from pathlib import Path

import numpy as np

from .addresses import local_folder
from .datasets import open_data_file
from .failures import lance_errors

# In how Lance prints the encoding of a page of large values, each found by an offset.
_FULL_ZIP = re.compile(r"FullZipLayout \{.*?num_items: (?P<items>\d+)", re.DOTALL)


def row_index_problem(address: str) -> str | None:
    """What is wrong with the offsets by which Lance finds large values in a local data file; None if nothing is.

    Lance believes them, and asks for as much memory as a damaged one says, until there is none left. How they lie
    in a file is Lance's own affair: what is not recognised passes.

    Raises:
        StoreError: the file cannot be opened.
    """
    if local_folder(address) is None:
        return None
    with lance_errors(f"cannot open {address}"):
        pages = [page for column in open_data_file(address).metadata().columns for page in column.pages]
        layouts = [(page.buffers, _FULL_ZIP.search(page.encoding)) for page in pages]
    with Path(address).open("rb") as file:
        for buffers, layout in layouts:
            if layout is None or len(buffers) != 2:
                continue
            values, index = buffers
            width, rest = divmod(index.size, int(layout["items"]) + 1)
            if rest or width not in (1, 2, 4, 8):
                continue
            file.seek(index.position)
            offsets = np.frombuffer(file.read(index.size), dtype=f"<u{width}")
            if (offsets[1:] < offsets[:-1]).any() or offsets[-1] > values.size:
                return "has damaged offsets of values"
    return None
