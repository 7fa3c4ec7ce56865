"""The order of the house: small files and classes, complete docstrings, extras that exist."""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("lr_gym", "agents", "examples", "experiments", "benchmarks", "tests")
FILES = sorted(
    str(file.relative_to(ROOT))
    for file in (
        *ROOT.glob("*.py"),
        *(f for folder in FOLDERS for f in ROOT.glob(f"{folder}/**/*.py")),
    )
)
TREES = {name: ast.parse((ROOT / name).read_text()) for name in FILES}
# Documented for readers; tests explain themselves by their names.
DOCUMENTED = [name for name in FILES if not name.startswith("tests/")]
# The class describes its constructor, the script its main function.
UNDOCUMENTED = ("__init__", "main")
MAX_FILE = 400
MAX_CLASS = 250

Function = ast.FunctionDef | ast.AsyncFunctionDef
SECTION = re.compile(r"^(\w[\w ]*):$")
ENTRY = re.compile(r"^    (\*{0,2}\w+)(?: \(.*?\))?: (.*)$")
# A description that begins with one of these is a fragment: "of the runs", "that are saved".
FRAGMENT = re.compile(r"(of|that|those)\b", re.IGNORECASE)

# Files that are not in order yet.


def definitions(tree: ast.AST, prefix: str = "") -> Iterator[tuple[str, Function | ast.ClassDef]]:
    """Public functions, classes and methods, and constructors, with their dotted names."""
    for node in ast.iter_child_nodes(tree):
        if not isinstance(node, Function | ast.ClassDef):
            continue
        if node.name.startswith("_") and node.name != "__init__":
            continue
        yield f"{prefix}{node.name}", node
        if isinstance(node, ast.ClassDef):
            yield from definitions(node, f"{prefix}{node.name}.")


def sections(docstring: str) -> dict[str, dict[str, str]]:
    """Section -> name -> first line of its description, of a docstring in Google's style."""
    found: dict[str, dict[str, str]] = {}
    for line in docstring.splitlines():
        if match := SECTION.match(line):
            entries = found.setdefault(match[1], {})
        elif found and (match := ENTRY.match(line)):
            entries[match[1].lstrip("*")] = match[2]
    return found


def parameters(node: Function) -> set[str]:
    """Names of the parameters that a caller can give."""
    arguments = node.args
    every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    every += [extra for extra in (arguments.vararg, arguments.kwarg) if extra is not None]
    return {argument.arg for argument in every} - {"self", "cls"}


def fields(node: ast.ClassDef) -> set[str]:
    """Names of the public fields of a NamedTuple, dataclass or protocol."""
    return {
        item.target.id
        for item in node.body
        if isinstance(item, ast.AnnAssign)
        and isinstance(item.target, ast.Name)
        and not item.target.id.startswith("_")
    }


def lacks(name: str, node: Function | ast.ClassDef) -> list[str]:
    """What the docstring of one definition lacks."""
    docstring = ast.get_docstring(node)
    if docstring is None:
        return [] if node.name in UNDOCUMENTED else [f"{name} has no docstring"]
    described = sections(docstring)
    if isinstance(node, ast.ClassDef):
        section, names = "Attributes", fields(node)
    else:
        section, names = "Args", parameters(node)
    if section not in described:
        return []
    missing = names - described[section].keys()
    unknown = described[section].keys() - names if section == "Args" else set()
    return [f"{name}: {section} lacks {n}" for n in sorted(missing)] + [
        f"{name}: {section} describes {n}, which is no parameter" for n in sorted(unknown)
    ]


@pytest.mark.parametrize("name", FILES)
def test_no_file_is_long(name):
    assert len((ROOT / name).read_text().splitlines()) <= MAX_FILE


@pytest.mark.parametrize("name", FILES)
def test_no_class_is_long(name):
    classes = [node for node in ast.walk(TREES[name]) if isinstance(node, ast.ClassDef)]
    long = [node.name for node in classes if node.end_lineno - node.lineno + 1 > MAX_CLASS]
    assert not long


@pytest.mark.parametrize("name", DOCUMENTED)
def test_every_public_docstring_is_complete(name):
    problems = [text for named in definitions(TREES[name]) for text in lacks(*named)]
    assert ast.get_docstring(TREES[name]), f"{name} has no docstring"
    assert not problems, problems


@pytest.mark.parametrize("name", DOCUMENTED)
def test_every_description_stands_on_its_own(name):
    fragments = [
        f"{defined}: {entry}: {text}"
        for defined, node in definitions(TREES[name])
        for entries in sections(ast.get_docstring(node) or "").values()
        for entry, text in entries.items()
        if FRAGMENT.match(text)
    ]
    assert not fragments, fragments


def test_every_named_extra_exists():
    """A call of `require` names the extra of pyproject.toml that installs the package."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = set()
    calls = [
        node
        for name in DOCUMENTED
        for node in ast.walk(TREES[name])
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    ]
    for call in calls:
        place = {"require": 1, "version_of": 1, "check_installed": 0}.get(call.func.id)
        if place is not None and isinstance(call.args[place], ast.Constant):
            named.add(call.args[place].value)
    assert named
    assert named <= project["optional-dependencies"].keys()
