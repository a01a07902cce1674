"""The table of faults in docs/reliability.md, made from the tests' own markers.

A test that shows how a fault is handled carries ``@pytest.mark.fault(FAULT, OUTCOME)``. Several tests may carry the
same pair. ``python tests/fault_table.py`` writes the table; a test compares it with the markers.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

TESTS = Path(__file__).parent
DOCUMENT = TESTS.parent / "docs" / "reliability.md"
PLACE = re.compile(r"(?<=<!-- faults: begin -->\n).*?(?=<!-- faults: end -->)", re.DOTALL)


def markers() -> Iterator[tuple[str, str]]:
    """Yield fault and outcome of every marker in the tests, in the order of files and lines."""
    for path in sorted(TESTS.rglob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            for decorator in getattr(node, "decorator_list", ()):
                if ast.unparse(decorator).startswith("pytest.mark.fault("):
                    fault, outcome = map(ast.literal_eval, decorator.args)
                    yield fault, outcome


def table() -> str:
    """Return the table as Markdown, one row a fault, sorted by fault."""
    rows = sorted(set(markers()))
    lines = ["| fault | what happens |", "|---|---|", *(f"| {fault} | {outcome} |" for fault, outcome in rows)]
    return "".join(f"{line}\n" for line in lines)


if __name__ == "__main__":
    text = DOCUMENT.read_text("utf-8")
    DOCUMENT.write_text(PLACE.sub(lambda _: table(), text), "utf-8")
