"""The rooms of the bundle's code, the packages of ``scripts``, lie on floors: a room knows those below it alone."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import sys

import grimp
import pytest

from tests.helpers.workflows import BUNDLE, ROOT

# from the ground up; rooms of one floor do not know one another
FLOORS = (
    {"descriptions", "entries", "errors", "files", "inert", "setting_kinds", "shell"},
    {"arguments", "console", "places", "unused_options", "weights"},
    {"networks", "data", "overrides", "prior_settings"},
    {"training", "segmentation", "prepare", "standalone", "next_steps"},
    {"inference", "automedsam", "pretraining"},
    {"output", "command"},
)


@pytest.fixture(scope="module")
def graph() -> grimp.ImportGraph:
    """Of every import, those inside functions and those for types alone too."""
    return grimp.build_graph("scripts", include_external_packages=True, cache_dir=None)


def room_of(module: str) -> str:
    return module.split(".")[1] if module.startswith("scripts.") else ""


def test_every_module_is_in_a_room_that_has_a_floor():
    rooms = {
        path.stem for path in (BUNDLE / "scripts").iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()
    }
    assert rooms - {"__init__"} == set().union(*FLOORS)


def test_no_room_knows_one_beside_or_above_it(graph):
    floor = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
    arrows = {
        (importer, imported)
        for importer in graph.modules
        for imported in graph.find_modules_directly_imported_by(importer)
        if room_of(importer) and room_of(imported) and room_of(importer) != room_of(imported)
    }

    upward = [arrow for arrow in arrows if floor[room_of(arrow[1])] >= floor[room_of(arrow[0])]]

    assert len(arrows) > 30  # the graph was found
    assert sorted(upward) == []


def test_sam2_is_touched_where_it_is_built_and_used_alone(graph):
    modules = {"scripts.networks.sam2_memories", "scripts.networks.sam2_releases"}
    assert graph.find_modules_that_directly_import("sam2") == modules


def imported_libraries(*folders: str) -> set[str]:
    """Top modules that the code of these folders imports, anywhere, and that are neither Python's nor the project's."""
    paths = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    names = set()
    for node in (node for path in paths for node in ast.walk(ast.parse(path.read_text("utf-8")))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.add(node.module.split(".")[0])
    return names - sys.stdlib_module_names - {"scripts", "diffusam", "benchmarks", "tests", "docs"}


def named_in_pyproject(*lists: str) -> set[str]:
    """Distributions in lists of pyproject.toml, by their keys, and those that the extras of MONAI there stand for."""
    text = (ROOT / "pyproject.toml").read_text("utf-8")
    found = [re.search(rf"^{each} = \[(.*?)\]$", text, re.DOTALL | re.MULTILINE)[1] for each in lists]
    named = {re.match(r"[\w.-]+", word)[0] for each in found for word in re.findall(r'"([^"]+)"', each)}
    extras = set(re.search(r"monai\[(.*?)\]", text)[1].split(","))
    required = [word for word in importlib.metadata.requires("monai") if "extra ==" in word]
    named |= {re.match(r"[\w.-]+", word)[0] for word in required if extras & set(re.findall(r'"([\w-]+)"', word))}
    return {each.lower().replace("_", "-") for each in named}


@pytest.mark.parametrize(
    "folders, lists",
    [
        (("bundle/scripts", "diffusam"), ("dependencies",)),
        (("benchmarks",), ("dependencies", "benchmarks")),
        (("tests", "docs"), ("dependencies", "test")),
    ],
    ids=["the bundle", "benchmarks", "tests"],
)
def test_every_library_that_is_imported_is_named(folders, lists):
    """Not only brought along by another one, which may stop to."""
    providers = importlib.metadata.packages_distributions()
    named = named_in_pyproject(*lists)

    imported = imported_libraries(*folders)
    assert len(imported) > 10
    assert {each for each in imported if named.isdisjoint(d.lower() for d in providers.get(each, []))} == set()


@pytest.mark.parametrize("outside", ["tests", "benchmarks"])
def test_the_bundle_stands_by_itself(graph, outside):
    assert outside not in graph.modules


@pytest.mark.parametrize("folder", ["bundle/scripts", "benchmarks", "diffusam", "docs"])
def test_modules_and_functions_can_be_read_at_once(folder):
    texts = {path: path.read_text(encoding="utf-8") for path in (ROOT / folder).rglob("*.py")}
    lines = {str(path.relative_to(ROOT)): text.count("\n") for path, text in texts.items()}
    functions = {
        f"{path.relative_to(ROOT)}: {each.name}": each.end_lineno - each.lineno + 1
        for path, text in texts.items()
        for each in ast.walk(ast.parse(text))
        if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef)
    }

    assert functions
    assert {name: number for name, number in lines.items() if number > 400} == {}
    assert {name: number for name, number in functions.items() if number > 60} == {}
