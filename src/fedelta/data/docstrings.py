"""Real English text with labels and without a download: the docstrings of the Python packages installed beside fedelta.

The task is to tell from a docstring's opening prose which of four groups of packages it belongs to. The standard library and
fedelta's own dependencies are read, so the text is there wherever fedelta is. Files are parsed, never imported. Names that
give the group away are masked, and the modules of the test set are not those of the training set.

The rows are the same for the same versions of Python and of the packages. They are kept in `$FEDELTA_CACHE`, or in
the user's cache folder; a cache that cannot be read is made again, and one that cannot be written is done without.
"""

from __future__ import annotations

import ast
import gzip
import hashlib
import importlib.metadata
import importlib.util
import json
import logging
import platform
import sysconfig
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path

from fedelta.data import prose
from fedelta.data.files import packed_rows
from fedelta.data.prose import likeness, prose_of
from fedelta.data.rows import Row
from fedelta.user_cache import cache_folder, write_whole

logger = logging.getLogger(__name__)

STDLIB = "stdlib"

ALGEBRA = (
    *(
        "assumptions",
        "calculus",
        "combinatorics",
        "concrete",
        "core",
        "functions",
        "geometry",
        "integrals",
        "logic",
        "matrices",
    ),
    *("ntheory", "polys", "series", "sets", "simplify", "solvers", "stats"),
)
INTERNET = (
    *("email", "ftplib", "html", "http", "imaplib", "ipaddress", "mailbox", "mimetypes", "poplib", "smtplib", "socket"),
    *("socketserver", "ssl", "urllib", "webbrowser", "wsgiref", "xmlrpc"),
)

GROUPS: dict[str, tuple[str, ...]] = {
    "algebra": tuple(f"sympy.{name}" for name in ALGEBRA),
    "graphs": ("networkx",),
    "internet": tuple(f"{STDLIB}.{name}" for name in INTERNET),
    "models": ("transformers", "peft"),
}
"""Label -> packages, their parts, or modules of the standard library: what CPython 3.11 to 3.13 and fedelta's dependencies,
with what these always bring, have in common."""

CAPS = {"train": 1000, "validation": 120, "test": 150}
"""The most rows of a group in each split: no group makes up more of one than its share by much."""
MODULE_CAP = 24
"""The most rows of a module, so that none makes up a group."""
LARGEST_FILE = 400_000
"""Files with more bytes are left out: generated code, slow to parse."""
SHARES = {"train": 75, "validation": 10, "test": 15}
"""Per cent of the modules."""
LEFT_OUT = frozenset({"tests", "test", "testing", "_vendor", "_pyrepl", "__pycache__", "site-packages"})


def load(cache: Path | None = None) -> dict[str, list[Row]]:
    """Returns the rows of the splits train, validation and test, each with `text`, `label`, `package` and `module`.

    Args:
        cache: the folder for the cache; `cache_folder()` if not given.

    Raises:
        ModuleNotFoundError: a package of `GROUPS` is not installed.
        FileNotFoundError: the standard library has no source files here.
    """
    file = (cache or cache_folder()) / f"docstrings-{_cache_key()}.jsonl.gz"
    rows = _read_cache(file)
    if rows is None:
        rows = build()
        _write_cache(file, rows)
    found: dict[str, list[Row]] = {split: [] for split in SHARES}
    for row in rows:
        found[row["split"]].append({name: value for name, value in row.items() if name != "split"})
    return found


def build() -> list[dict[str, str]]:
    """Returns all rows, read from the installed sources; the order is that of a hash, so labels are mixed."""
    seen: set[str] = set()
    rows = [row for label in GROUPS for row in _group_rows(label, seen)]
    return sorted(rows, key=lambda row: _hash(row["module"], row["text"]))


def _group_rows(label: str, seen: set[str]) -> list[dict[str, str]]:
    """Returns a group's rows, `CAPS` of each split; `seen` holds the likeness of all texts so far and grows."""
    room = dict(CAPS)
    rows: list[dict[str, str]] = []
    for module, file in sorted(_files(label), key=lambda found: _hash(found[0])):
        split = _split_of(module)
        if room[split]:
            texts = _texts(file, module, seen)[: room[split]]
            room[split] -= len(texts)
            same = {"label": label, "package": module.split(".")[0], "module": module, "split": split}
            rows.extend({"text": text, **same} for text in texts)
    return rows


def _texts(file: Path, module: str, seen: set[str]) -> list[str]:
    """Returns up to `MODULE_CAP` texts of a module that are like none seen before, chosen by hash."""
    texts = filter(None, map(prose_of, _docstrings(file)))
    chosen: list[str] = []
    for text in sorted(set(texts), key=lambda text: _hash(module, text)):
        if len(chosen) < MODULE_CAP and likeness(text) not in seen:
            seen.add(likeness(text))
            chosen.append(text)
    return chosen


def _docstrings(file: Path) -> Iterator[str]:
    """Yields the docstrings in a source file; none if it does not parse (templates, other Python versions)."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)  # about the other packages' escapes
            tree = ast.parse(file.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError, ValueError) as error:
        logger.debug("%s is left out: %s", file, error)
        return
    for node in _statements(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            found = ast.get_docstring(node)
            if found:
                yield found


def _statements(tree: ast.AST) -> Iterator[ast.AST]:
    """Yields the tree's statements, itself first; expressions, most of the nodes, hold no docstrings and are not walked."""
    yield tree
    for block in ("body", "handlers", "orelse", "finalbody"):
        inner = getattr(tree, block, None)
        for statement in inner if isinstance(inner, list) else ():
            yield from _statements(statement)


def _files(label: str) -> Iterator[tuple[str, Path]]:
    """Yields dotted module names and source files of a group."""
    found = [pair for package in GROUPS[label] for pair in _source_files(package)]
    if not found:
        raise FileNotFoundError(
            f"no source files for the docstrings group {label!r} ({', '.join(GROUPS[label])}): this Python has none installed"
        )
    yield from found


def _source_files(package: str) -> Iterator[tuple[str, Path]]:
    root = _root(package)
    if root.is_file():
        yield package, root
    for file in root.rglob("*.py"):
        parts = file.relative_to(root).with_suffix("").parts
        if LEFT_OUT.isdisjoint(parts) and file.stat().st_size <= LARGEST_FILE:
            yield ".".join((package, *parts)).removesuffix(".__init__"), file


def _root(package: str) -> Path:
    """Returns a package's folder, or a module's file; nothing is imported, since only top-level names are looked up."""
    top, *inner = package.split(".")
    path = _top_folder(top).joinpath(*inner)
    return path if path.is_dir() else path.with_suffix(".py")


def _top_folder(name: str) -> Path:
    if name == STDLIB:
        return Path(sysconfig.get_path("stdlib"))
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.origin:
        raise ModuleNotFoundError(f"the docstrings data set reads package {name!r}, which is not installed: pip install {name}")
    return Path(spec.origin).parent


def _split_of(module: str) -> str:
    """Returns the split that a module's texts go to: whole modules, so that no text of a training module is tested."""
    place = int(_hash("split", module)[:8], 16) % 100
    for split, share in SHARES.items():
        place -= share
        if place < 0:
            return split
    raise AssertionError("SHARES must sum to 100")


def _hash(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def versions() -> dict[str, str]:
    """Returns all that settles the rows: the rules (this module's text and that of `prose`), Python, each package's version."""
    packages = {name.split(".")[0] for names in GROUPS.values() for name in names} - {STDLIB}
    installed = {name: importlib.metadata.version(name) for name in sorted(packages)}
    rules = [Path(file).read_text(encoding="utf-8") for file in (__file__, prose.__file__)]
    return {"rules": _hash(*rules), "python": platform.python_version(), **installed}


def _cache_key() -> str:
    return _hash(json.dumps(versions(), sort_keys=True))[:16]


def _read_cache(file: Path) -> list[dict[str, str]] | None:
    """Returns the cached rows, or None if there are none or they cannot be read."""
    try:
        with gzip.open(file, "rt", encoding="utf-8") as stream:
            return [json.loads(line) for line in stream]
    except FileNotFoundError:
        return None
    except (OSError, EOFError, zlib.error, ValueError) as error:
        logger.warning("the cache %s cannot be read (%s) and is made again", file, error)
        return None


def _write_cache(file: Path, rows: list[dict[str, str]]) -> None:
    """Writes the cache; warns where that cannot be done."""
    try:
        write_whole(file, packed_rows(rows))
    except OSError as error:
        logger.warning("the docstrings are not cached: %s cannot be written (%s)", file, error)
