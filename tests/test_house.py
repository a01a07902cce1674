"""The rules of the house: which room may import what, what an import costs, and what a wheel holds."""

import ast
import configparser
import shutil
import subprocess
import sys
import zipfile
from collections import Counter
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

import pisco_index

ROOT = Path(__file__).parents[1]
ROOMS = ("commands", "configs", "corpus", "evaluation", "model", "pipeline", "reader", "serving", "store", "training")

BASE = {"children", "configs", "errors", "interrupt", "noise", "places", "redaction"}
GROUND = {"model", "store", "corpus"} | BASE
WORK = {"pipeline", "reader"} | GROUND
MAY_IMPORT = {
    "redaction": set(),
    "errors": {"redaction"},
    "places": {"errors"},
    "configs": {"errors", "places"},
    "interrupt": {"errors"},
    "children": {"errors"},
    "noise": set(),
    "corpus": BASE,
    "model": BASE,
    "store": BASE,
    "pipeline": GROUND,
    "reader": GROUND,
    "evaluation": {"reader"} | GROUND,
    "serving": {"reader"} | GROUND,
    "training": {"reader", "model", "corpus"} | BASE,
    "commands": {"evaluation", "serving", "training"} | WORK,
    "cli": {"commands"} | BASE,
    "__init__": set(),
}

# Folders, ending in a slash, or files that may import a package; nobody else may.
ONLY_IN = {
    "transformers": ("model/", "training/"),
    "tokenizers": ("model/",),
    "peft": ("model/",),
    "lance": ("store/",),
    "lancedb": ("store/",),
    "zstandard": ("store/", "corpus/compression.py"),
    "typer": ("cli.py", "commands/"),
    "prometheus_client": ("pipeline/watch/prometheus.py", "serving/metrics.py"),
    "starlette": ("serving/",),
    "uvicorn": ("serving/",),
    "httpx": ("reader/live/vllm.py",),
}

HEAVY = ("torch", "ray", "lance", "lancedb", "transformers", "tokenizers", "pyarrow", "numpy")

SOURCES = sorted([*ROOT.glob("*.py"), *(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))])
PUBLIC = sorted(
    alias.asname or alias.name
    for node in ast.parse((ROOT / "__init__.pyi").read_text("utf-8")).body
    if isinstance(node, ast.ImportFrom)
    for alias in node.names
)


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def room_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imports(path: Path) -> Iterator[tuple[str, int]]:
    """What a file imports anywhere in it, inside functions too: dotted names, from the package's root if relative."""
    package = path.relative_to(ROOT).parts[:-1]
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module or "", node.lineno
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1]
            names = [node.module] if node.module else [alias.name for alias in node.names]
            yield from ((".".join(("", *base, name)), node.lineno) for name in names)


def run(code: str, folder: Path) -> str:
    """Run Python in a fresh process, away from the source tree."""
    finished = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def test_imports_point_down():
    wrong = [
        f"{name_of(path)}:{line} imports {room}, which is not below {own}"
        for path in SOURCES
        for own in [room_of(path)]
        for module, line in imports(path)
        if module.startswith(".")
        for room in [module.split(".")[1]]
        if room not in {own, *MAY_IMPORT[own]}
    ]
    assert not wrong


def test_imports_inside_the_package_are_relative():
    absolute = {"pisco_index", *ROOMS, "children", "errors", "interrupt", "places", "redaction", "cli"}
    wrong = [
        f"{name_of(path)}:{line} imports {module}; import it relatively"
        for path in SOURCES
        for module, line in imports(path)
        if module.split(".")[0] in absolute
    ]
    assert not wrong


def test_rooms_are_small_enough_to_be_read():
    """At most 14 modules in a folder and 400 lines in a module."""
    folders = Counter(path.parent for path in SOURCES if path.name != "__init__.py" and path.parent != ROOT)
    assert not {name_of(folder): count for folder, count in folders.items() if count > 14}
    lengths = {name_of(path): len(path.read_text("utf-8").splitlines()) for path in SOURCES}
    assert not {name: lines for name, lines in lengths.items() if lines > 400}
    assert lengths["cli.py"] < 150
    assert lengths["pipeline/build.py"] < 150


def test_a_package_is_imported_in_its_room_only():
    strangers = {
        (package, name_of(path))
        for path in SOURCES
        for module, _ in imports(path)
        for package in [module.split(".")[0]]
        if package in ONLY_IN and not name_of(path).startswith(ONLY_IN[package])
    }
    assert not strangers


def test_one_file_of_the_pipeline_imports_ray():
    (user,) = {name_of(path) for path in SOURCES for module, _ in imports(path) if module.split(".")[0] == "ray"}
    assert user.startswith("pipeline/")


def test_nobody_prints_but_through_a_console():
    calls = [
        (path, node)
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Call)
    ]
    wrong = [(name_of(p), c.lineno) for p, c in calls if isinstance(c.func, ast.Name) and c.func.id == "print"]
    assert not wrong


def test_every_package_is_listed():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    listed = setup["options"]["packages"].split()
    folders = [ROOT, *(path.parent for room in ROOMS for path in (ROOT / room).rglob("__init__.py"))]
    found = [".".join(("pisco_index", *folder.relative_to(ROOT).parts)) for folder in folders]
    assert sorted(listed) == sorted(found)
    others = {p.name for p in ROOT.iterdir() if (p / "__init__.py").is_file()}
    assert others == set(ROOMS)


def test_importing_the_package_loads_nothing_heavy(tmp_path):
    loaded = run(f"import sys, pisco_index; print([m for m in {HEAVY} if m in sys.modules])", tmp_path)
    assert loaded.strip() == "[]"


def test_help_loads_nothing_heavy(tmp_path):
    code = f"""
import sys
import typer
from pisco_index.cli import app

def walk(command, words):
    yield words
    for name, inner in getattr(command, "commands", {{}}).items():
        yield from walk(inner, [*words, name])

for words in list(walk(typer.main.get_command(app), [])):
    try:
        app([*words, "--help"])
    except SystemExit as ended:
        assert not ended.code, words
    loaded = [m for m in {HEAVY} if m in sys.modules]
    assert not loaded, (words, loaded)
print("none")
"""
    assert run(code, tmp_path).splitlines()[-1] == "none"


def test_presets_are_listed_without_anything_heavy(tmp_path):
    code = f"import sys; from pisco_index import presets; presets(); print([m for m in {HEAVY} if m in sys.modules])"
    assert run(code, tmp_path).strip() == "[]"


def test_public_names_are_there_and_documented():
    assert set(PUBLIC) <= set(dir(pisco_index))
    assert not [name for name in PUBLIC if not getattr(pisco_index, name).__doc__]
    assert len(PUBLIC) <= 30


def test_the_public_names_are_all():
    assert sorted(pisco_index.__all__) == PUBLIC


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """A wheel of the working tree, built beside it, so that nothing is left in it."""
    for needed in ("build", "setuptools"):
        if find_spec(needed) is None:
            pytest.skip(f"{needed} is not installed")
    source, out = tmp_path_factory.mktemp("source") / "tree", tmp_path_factory.mktemp("wheel")
    ignored = shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "__pycache__", "demo-index", "golden")
    shutil.copytree(ROOT, source, ignore=ignored)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(source)]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    (path,) = out.glob("*.whl")
    return path


def test_a_wheel_holds_the_package_its_documents_and_examples(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    content = {name for name in names if ".dist-info/" not in name}
    expected = {f"pisco_index/{name_of(path)}" for path in SOURCES}
    expected |= {f"pisco_index/{name_of(path)}" for path in (ROOT / "configs/presets").rglob("*.yaml")}
    expected |= {"pisco_index/py.typed", "pisco_index/__init__.pyi", "pisco_index/pipeline/watch/events.schema.json"}
    expected.add("pisco_index/corpus/formats/wiki/names.json")
    expected |= {"pisco_index/reader/answering/__init__.pyi"}
    expected |= {f"pisco_index/{name_of(path)}" for path in (ROOT / "serving/page").iterdir()}
    # The documents, and a checkpoint to try.
    expected |= {f"pisco_index/{name_of(path)}" for path in (*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"))}
    examples = [path for path in (ROOT / "examples").rglob("*") if path.is_file() and path.parent.name != "__pycache__"]
    expected |= {f"pisco_index/{name_of(path)}" for path in examples}
    assert content == expected
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_a_wheel_works_away_from_the_source_tree(wheel, tmp_path):
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    code = f"""
import sys
sys.path.insert(0, {str(tmp_path / "site")!r})
import pisco_index
assert pisco_index.__file__.startswith({str(tmp_path / "site")!r}), pisco_index.__file__
assert pisco_index.load_config("wikipedia").corpus.format == "mediawiki"
assert pisco_index.PiscoIndexError
"""
    run(code, tmp_path)
