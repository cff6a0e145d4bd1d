"""Draws the rooms of the code and counts them, for docs/architecture.md.

From the repository's root:

    python docs/make_architecture.py                   writes docs/rooms.svg, and the table of the page
    python docs/make_architecture.py --count CHECKOUT  prints what it counts in another checkout

A room is a package or a module directly below ``bundle/scripts``; ``benchmarks`` is one more. An arrow leads from a
room to one that it imports, wherever in a file the import stands. A room lies one floor above the highest of those that
it imports. Lines of a function are counted from its ``def`` to its end, with the docstring.
"""

from __future__ import annotations

import argparse
import ast
import itertools
import sys
from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import astuple, dataclass
from pathlib import Path

import grimp

ROOT = Path(__file__).resolve().parents[1]
PAGE, DRAWING = ROOT / "docs/architecture.md", ROOT / "docs/rooms.svg"
BOUNDS = "<!-- counted -->\n", "<!-- end -->\n"
LONG_MODULE, LONG_FUNCTION = 400, 60
WIDTH, STEP, BOX = 980, 112, (128, 38)  # of the drawing, of a floor, of a room, in pixels
DARK, PALE = "#3d5a80", "#c3cad3"
Arrows = Mapping[str, Set[str]]


@dataclass(frozen=True)
class Counts:
    """What can be counted of a checkout; see the module's first lines."""

    rooms: int
    floors: int
    arrows: int
    longest_module: int
    long_modules: str
    longest_function: int
    long_functions: str


# of commit e9794a9, the last one before the modules moved into rooms:
# git archive e9794a9 | tar -x -C CHECKOUT; python docs/make_architecture.py --count CHECKOUT
BEFORE = Counts(
    rooms=38,
    floors=9,
    arrows=110,
    longest_module=692,
    long_modules="5: `phantoms.py` (692), `datalists.py` (567), `sam2_backbone.py` (547), `dicom.py` (419), "
    "`volumes.py` (406)",
    longest_function=78,
    long_functions="2: `make_segmentation` (78), `draw_view` (69)",
)
ROWS = (
    "rooms",
    "floors",
    "arrows between rooms",
    "longest module, lines",
    f"modules of more than {LONG_MODULE} lines",
    "longest function, lines",
    f"functions of more than {LONG_FUNCTION} lines",
)


def arrows_of(checkout: Path) -> dict[str, set[str]]:
    """The rooms of a checkout, and the rooms that each imports."""
    sys.path.insert(0, str(checkout / "bundle"))
    try:
        graph = grimp.build_graph("scripts", cache_dir=None)
    finally:
        sys.path.remove(str(checkout / "bundle"))
    rooms = sorted({module.split(".")[1] for module in graph.modules if "." in module})
    arrows: dict[str, set[str]] = {room: set() for room in rooms}
    for importer, imported in itertools.permutations(rooms, 2):
        if graph.direct_import_exists(importer=f"scripts.{importer}", imported=f"scripts.{imported}", as_packages=True):
            arrows[importer].add(imported)
    # not by grimp, for which they were no package before
    benchmarks = [ast.parse(path.read_text("utf-8")) for path in (checkout / "benchmarks").rglob("*.py")]
    arrows["benchmarks"] = {room for tree in benchmarks for room in _rooms_imported(tree)} & set(rooms)
    return arrows


def _rooms_imported(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            for name in node.names:
                yield f"{node.module}.{name.name}".removeprefix("scripts.").split(".")[0]


def floors_of(arrows: Arrows) -> list[list[str]]:
    """The rooms from the ground up, those of a floor in the order of the alphabet."""
    floor: dict[str, int] = {}
    while len(floor) < len(arrows):
        ready = {room for room in arrows if room not in floor and arrows[room] <= floor.keys()}
        if not ready:
            raise ValueError(f"Rooms import one another in a circle: {sorted(arrows.keys() - floor.keys())}.")
        floor |= {room: max((floor[below] + 1 for below in arrows[room]), default=0) for room in ready}
    return [sorted(room for room in floor if floor[room] == number) for number in range(max(floor.values()) + 1)]


def functions(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Lines and name of each function and method, those within others too."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield node.end_lineno - node.lineno + 1, node.name


def count(checkout: Path) -> Counts:
    arrows, bundle = arrows_of(checkout), checkout / "bundle"
    modules, lengths = [], []
    for path in sorted((bundle / "scripts").rglob("*.py")):
        text, name = path.read_text("utf-8"), path.relative_to(bundle / "scripts").as_posix()
        modules.append((len(text.splitlines()), f"`{name}`"))
        lengths += [(lines, f"`{function}`") for lines, function in functions(ast.parse(text))]
    return Counts(
        rooms=len(arrows),
        floors=len(floors_of(arrows)),
        arrows=sum(map(len, arrows.values())),
        longest_module=max(modules)[0],
        long_modules=_longer(modules, LONG_MODULE),
        longest_function=max(lengths)[0],
        long_functions=_longer(lengths, LONG_FUNCTION),
    )


def _longer(lengths: Iterable[tuple[int, str]], limit: int) -> str:
    """How many are longer, and which, the longest first."""
    longer = sorted((-lines, name) for lines, name in lengths if lines > limit)
    return f"{len(longer)}: " + ", ".join(f"{name} ({-lines})" for lines, name in longer) if longer else "none"


def drawing(arrows: Arrows) -> str:
    """An SVG: a row of boxes for each floor, the lowest at the bottom, and a line for each arrow.

    Arrows that also follow from others, by way of a room between, are pale.
    """
    floors = floors_of(arrows)
    height = STEP * len(floors)
    places = {
        room: ((index + 0.5) * WIDTH / len(rooms), height - (number + 0.5) * STEP)
        for number, rooms in enumerate(floors)
        for index, room in enumerate(rooms)
    }
    pairs = [(room, below) for room in sorted(arrows) for below in sorted(arrows[room])]
    pale = [pair for pair in pairs if any(pair[1] in reached(arrows, between) for between in arrows[pair[0]])]
    size = f'viewBox="0 0 {WIDTH} {height}"'
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="15">',
        f'<rect width="{WIDTH}" height="{height}" fill="#fff"/>',
    ]
    for colour, chosen in ((PALE, pale), (DARK, [pair for pair in pairs if pair not in pale])):
        tip = f'<path d="M0 0 8 4 0 8z" fill="{colour}"/>'
        size = 'viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto"'
        lines.append(f'<marker id="tip{colour[1:]}" {size}>{tip}</marker>')
        lines += [_line(room, below, places, colour) for room, below in chosen]
    for room, (x, y) in places.items():
        corner = f'x="{x - BOX[0] / 2:.0f}" y="{y - BOX[1] / 2:.0f}"'
        lines.append(f'<rect {corner} width="{BOX[0]}" height="{BOX[1]}" rx="6" fill="#eef3f8" stroke="{DARK}"/>')
        lines.append(f'<text x="{x:.0f}" y="{y + 5:.0f}" text-anchor="middle">{room}</text>')
    return "\n".join([*lines, "</svg>", ""])


def _line(room: str, below: str, places: Mapping[str, tuple[float, float]], colour: str) -> str:
    (x, y), (to_x, to_y) = places[room], places[below]
    # side by side where several leave or reach a box
    lean = max(-50.0, min(50.0, (to_x - x) * 0.1))
    x, to_x, y, to_y = x + lean, to_x - lean, y + BOX[1] / 2, to_y - BOX[1] / 2
    curve = f"M{x:.0f} {y:.0f}C{x:.0f} {y + 45:.0f} {to_x:.0f} {to_y - 45:.0f} {to_x:.0f} {to_y:.0f}"
    style = f'fill="none" stroke="{colour}" stroke-width="1.4" marker-end="url(#tip{colour[1:]})"'
    return f'<path d="{curve}" {style}><title>{room} imports {below}</title></path>'


def reached(arrows: Arrows, room: str) -> set[str]:
    """All rooms below a room, however far."""
    return {each for below in arrows[room] for each in (below, *reached(arrows, below))}


def table(now: Counts, before: Counts = BEFORE) -> str:
    rows = [f"| {name} | {old} | {new} |" for name, old, new in zip(ROWS, astuple(before), astuple(now))]
    return "\n".join(["| | before | now |", "| --- | --- | --- |", *rows, ""])


def page(text: str, counts: Counts) -> str:
    """The page with its table as it should be."""
    start, end = (text.index(bound) for bound in BOUNDS)
    return text[: start + len(BOUNDS[0])] + "\n" + table(counts) + "\n" + text[end:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=Path, metavar="CHECKOUT", help="print the counts of this checkout alone")
    arguments = parser.parse_args()
    if arguments.count:
        print(count(arguments.count))
        return
    DRAWING.write_text(drawing(arrows_of(ROOT)), encoding="utf-8")
    PAGE.write_text(page(PAGE.read_text("utf-8"), count(ROOT)), encoding="utf-8")


if __name__ == "__main__":
    main()
