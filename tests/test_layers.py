"""The house: who may import whom, what is packed, and that nothing stands twice. docs/developing.md shows it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import build

ROOT = Path(build.__file__).parent
# A module may import from the lines above its own, and from no other. hardware/ and fleet/ never meet.
LAYERS = (
    ("node_pb2", "node_pb2_grpc"),
    ("edge.text", "edge.limits", "edge.keyboard", "edge.state_folder", "edge.credentials", "edge.backoff"),
    ("edge.program", "edge.files", "edge.errors"),
    ("edge.protocol",),
    ("edge.history", "edge.event_log"),
    ("edge.command_line", "edge.drawing", "edge.summary", "edge.fleet.checks"),
    ("edge.terminal", "edge.panels", "edge.trust"),
    ("edge.hardware.base", "edge.hardware.export", "edge.hardware.screen", "edge.hardware.round_trips", "edge.hardware.energy"),
    ("edge.hardware.identity", "edge.hardware.disks", "edge.hardware.network"),
    ("edge.hardware.servers", "edge.hardware.host", "edge.hardware.nvml", "edge.hardware.simulated"),
    ("edge.hardware.machine",),
    ("edge.hardware.options",),
    ("edge.fleet.row", "edge.fleet.counters", "edge.fleet.listening", "edge.fleet.joining", "edge.fleet.certificates"),
    ("edge.fleet.intake", "edge.fleet.admission", "edge.fleet.tokens", "edge.fleet.extremes"),
    ("edge.fleet.entry", "edge.fleet.guard", "edge.fleet.source", "edge.fleet.health"),
    ("edge.fleet.wire",),
    ("edge.fleet.watch", "edge.fleet.mirror", "edge.fleet.moments"),
    ("edge.fleet.recall", "edge.fleet.journal"),
    ("edge.fleet.service", "edge.fleet.attach"),
    ("edge.fleet.metrics",),
    ("edge.fleet.columns",),
    ("edge.fleet.filters", "edge.fleet.users", "edge.fleet.groups"),
    ("edge.fleet.times", "edge.fleet.lookup"),
    ("edge.fleet.lens", "edge.fleet.events"),
    ("edge.fleet.replay",),
    ("edge.fleet.keys", "edge.fleet.export"),
    ("edge.fleet.screen", "edge.fleet.headless"),
    ("edge.fleet.token_command", "edge.fleet.options"),
    ("edge.fleet.check_command",),
    ("edge.web.site",),
    ("edge.web.slices", "edge.web.packing"),
    ("edge.web.selection", "edge.web.files", "edge.web.gate"),
    ("edge.web.stream", "edge.web.exposition", "edge.web.prometheus_config"),
    ("edge.web.api", "edge.web.scrape"),
    ("edge.web.listener",),
    ("node", "server"),
)
RANKS = {module: rank for rank, layer in enumerate(LAYERS) for module in layer}
PROGRAM = [ROOT / f"{name}.py" for name in build.PROGRAMS] + sorted(ROOT.glob("edge/**/*.py")) + sorted(ROOT.glob("pyz/*.py"))


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports_of(path: Path) -> set[str]:
    """The modules of this repository that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: say from where, not relative to here"
            for alias in node.names:  # a name of a package may be a module
                module = f"{node.module}.{alias.name}"
                found.add(module if (ROOT / module.replace(".", "/")).with_suffix(".py").exists() else node.module or "")
    tops = {path.stem for path in ROOT.glob("*.py")} | {"edge", "pyz", "bench", "tests"}
    return {module for module in found if module.partition(".")[0] in tops}


@pytest.mark.parametrize("path", PROGRAM, ids=module_of)
def test_imports_go_downward(path: Path) -> None:
    module, imports = module_of(path), imports_of(path)
    if path.stem == "__init__":
        assert not imports
    elif module.startswith("pyz."):
        assert all(other.startswith("pyz") for other in imports)  # nothing is unpacked yet when it runs
    else:
        assert module in RANKS, f"{module} has no place in LAYERS yet"
        assert not {other for other in imports if RANKS.get(other, len(LAYERS)) >= RANKS[module]}
        strangers = {"edge.fleet": "edge.hardware", "edge.hardware": "edge.fleet", "node": "edge.fleet", "server": "edge.hardware"}
        for here, there in strangers.items():
            if module.startswith(here):
                assert not {other for other in imports if other.startswith(there)}


def test_all_layers_are_there() -> None:
    assert set(RANKS) == {module_of(path) for path in PROGRAM if path.stem != "__init__" and path.parent.name != "pyz"} | {
        "node_pb2", "node_pb2_grpc",
    }  # fmt: skip


@pytest.mark.parametrize("name", build.PROGRAMS)
def test_all_that_is_packed_is_reached_from_its_script(name: str) -> None:
    paths = [ROOT / file.path for file in build.read_program(name, ROOT)]
    packed = {module_of(path) for path in paths if path.suffix == ".py" and path.stem != "__init__"}
    reached, waiting = set(), [name]
    while waiting:
        module = waiting.pop()
        if module not in reached:
            reached.add(module)
            waiting += imports_of(ROOT / f"{module.replace('.', '/')}.py")
    assert reached == packed
    others = [f"edge.{folder}" for program, folders in build.PROGRAMS.items() if program != name for folder in folders]
    assert not [module for module in packed if module.startswith((*others, "tests", "bench"))]


def test_nothing_stands_twice() -> None:
    """No six lines in a row in two files, imports and blank lines aside."""
    seen: dict[tuple[str, ...], Path] = {}
    for path in PROGRAM:
        lines = [line.strip() for line in path.read_text().splitlines()]
        lines = [line for line in lines if line and not line.startswith(("import ", "from "))]
        for run in {tuple(lines[start : start + 6]) for start in range(len(lines) - 5)}:
            assert seen.setdefault(run, path) == path, "\n".join([f"{seen[run]} and {path}:", *run])


def test_no_file_is_too_long_to_read() -> None:
    lengths = {module_of(path): len(path.read_text().splitlines()) for path in PROGRAM}
    assert not {module: length for module, length in lengths.items() if length > 750}


def test_the_picture_of_the_house_names_every_file() -> None:
    text = (ROOT / "docs/developing.md").read_text()
    assert not [path.name for path in PROGRAM if path.stem != "__init__" and path.stem not in text]
