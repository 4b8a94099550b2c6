"""The rules of the house that a machine can check: who imports whom, and how long a file may grow."""

import ast
from pathlib import Path

import model
import training

ROOT = Path(__file__).parents[1]
PACKAGES = ("model", "training", "serving")
MAY_IMPORT = {"model": {"model"}, "training": {"training", "model"}, "serving": {"serving", "model"}}
PLATFORM = {
    "bentoml",
    "deepspeed",
    "dvc",
    "kubeflow",
    "kubernetes",
    "mlflow",
    "sklearn",
    "yaml",
    "accelerate",
}
MAX_LINES, MAX_FUNCTION_LINES = 300, 50


def sources(package):
    return sorted((ROOT / package).rglob("*.py"))


def imported_roots(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module.split(".")[0]


def test_all_arrows_point_to_the_model():
    for package in PACKAGES:
        for path in sources(package):
            roots = set(imported_roots(path))
            assert not (roots & MAY_IMPORT.keys()) - MAY_IMPORT[package], path
            assert package != "model" or not roots & PLATFORM, path


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


def test_our_packages_are_ours():
    for package in (model, training):
        assert Path(package.__file__).is_relative_to(ROOT)
