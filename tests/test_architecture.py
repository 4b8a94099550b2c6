"""Rules that a machine can check: who imports whom, by which names, and how long files grow."""

import ast
import re
import sys
from pathlib import Path

import pytest

import model
import training

ROOT = Path(__file__).parents[1]
PACKAGES = ("model", "training", "serving")
MAY_IMPORT = {"model": {"model"}, "training": {"training", "model"}, "serving": {"serving", "model"}}
MODEL_NEEDS = {
    "torch",
    "transformers",
    "safetensors",
    "numpy",
    "PIL",
    "tokenizers",
    "huggingface_hub",
    "flash_attn",
    "liger_kernel",
}
# What transformers itself needs.
OF_TRANSFORMERS = {"tokenizers", "huggingface_hub"}
MAX_LINES, MAX_FUNCTION_LINES = 300, 50
# The rooms of training from the lowest floor up; an arrow goes to a lower floor only.
FLOORS = (
    {"tracking", "checkpoints"},
    {"data"},
    {"digits", "optimization"},
    {"registry", "tiny", "engines"},
    {"planning"},
    {"stages", "backbones", "evaluation"},
    {"launching", "cluster", "runs"},
    {"submission"},
    {"deployment"},
    {"commands"},
)
ROOMS = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
FOR_ALL = {"params", "params_file", "yaml_core", "precision", "errors", "run_context", "parent_death"}


def sources(package):
    return sorted((ROOT / package).rglob("*.py"))


def imports(path):
    """(module, name) of every import in a file, wherever it stands."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from ((node.module, alias.name) for alias in node.names)


def doors():
    """{room: names by which others may enter it} and {room: rooms it says it may import}, as rooms say it."""
    names, allowed = {}, {}
    for room in ROOMS:
        text = ast.get_docstring(ast.parse((ROOT / "training" / room / "__init__.py").read_text()))
        listed = re.findall(r"^    (\w+)(?:: (.+))?$", text, re.MULTILINE)
        names[room] = {
            (f"training.{room}.{module}", name.strip())
            for module, members in listed
            for name in members.split(",")
            if name
        } | {(f"training.{room}", module) for module, members in listed if not members}
        said = re.search(r"^May import: ([\w, \n]+)$", text, re.MULTILINE)[1]
        allowed[room] = set() if said == "no other room" else set(re.split(r",\s+", said))
    return names, allowed


def room_of(path):
    inside = path.relative_to(ROOT / "training").parts
    return inside[0] if len(inside) > 1 else None


def arrows():
    """(file, its room, other room, module, name) for every import between rooms."""
    for path in sources("training"):
        for module, name in imports(path):
            parts = module.split(".")
            if parts[0] == "training" and len(parts) > 1 and parts[1] in ROOMS and parts[1] != room_of(path):
                yield path, room_of(path), parts[1], module, name


def test_all_arrows_point_to_the_model():
    for package in PACKAGES:
        for path in sources(package):
            roots = {module.split(".")[0] for module, _ in imports(path)}
            assert not (roots & MAY_IMPORT.keys()) - MAY_IMPORT[package], path


def test_the_model_needs_torch_and_transformers_and_nothing_of_the_platform():
    for path in sources("model"):
        roots = {module.split(".")[0] for module, _ in imports(path)}
        assert roots <= MODEL_NEEDS | OF_TRANSFORMERS | {"model"} | sys.stdlib_module_names, path


def test_every_folder_of_training_is_a_room_with_a_floor():
    folders = {path.name for path in (ROOT / "training").iterdir() if (path / "__init__.py").is_file()}
    modules = {path.stem for path in (ROOT / "training").glob("*.py")} - {"__init__"}

    assert folders == set(ROOMS)
    assert modules == FOR_ALL


def test_arrows_between_rooms_go_down_and_only_where_the_room_says_so():
    _, allowed = doors()
    for path, room, other, _, _ in arrows():
        assert room is not None, f"{path} is for all and may enter no room"
        assert ROOMS[other] < ROOMS[room], f"{path} imports {other}, which does not lie below {room}"
        assert other in allowed[room], f"{path}: {room} does not say that it may import {other}"


def test_rooms_are_entered_by_their_door():
    names, _ = doors()
    entered = {}
    for path, _, other, module, name in arrows():
        assert (module, name) in names[other], f"{path}: {name} of {module} is not in the door of {other}"
        entered.setdefault(other, set()).add((module, name))
    for room, door in names.items():
        unused = door - entered.get(room, set())
        assert not unused, f"nobody enters {room} by {unused}"


def test_a_door_names_what_is_there():
    names, _ = doors()
    for module, name in set().union(*names.values()):
        path = ROOT / (module.replace(".", "/") + ".py")
        if not path.is_file():
            assert (ROOT / module.replace(".", "/") / f"{name}.py").is_file(), (module, name)
            continue
        tree = ast.parse(path.read_text())
        defined = {getattr(node, "name", None) for node in tree.body} | {
            target.id
            for node in tree.body
            if isinstance(node, ast.Assign)
            for target in ast.walk(node)
            if isinstance(target, ast.Name)
        }
        assert name in defined, (module, name)


def test_files_and_functions_stay_short():
    for path in [path for package in PACKAGES for path in sources(package)]:
        text = path.read_text()
        assert len(text.splitlines()) <= MAX_LINES, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert node.end_lineno - node.lineno < MAX_FUNCTION_LINES, f"{path}: {node.name}"


def test_every_module_says_what_it_is():
    for path in [path for package in PACKAGES for path in sources(package)]:
        assert ast.get_docstring(ast.parse(path.read_text())), path


@pytest.mark.parametrize("package", [model, training])
def test_our_packages_are_ours(package):
    assert Path(package.__file__).is_relative_to(ROOT)
