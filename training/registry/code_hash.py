"""Hashes of the code by room, without comments and docstrings: `python -m training.registry.code_hash OUT`.

The pipeline's stages depend on these instead of on files, so that only a change of meaning in a room that
decides what a stage makes runs it anew.
"""

import ast
import hashlib
import io
import json
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

# Modules that lie in model/ itself.
NETWORK = "network"


def room_hashes(root: Path) -> dict[str, dict[str, str]]:
    """SHA-256 of every room of `model` and `training` below a repository, {package: {room: hash}}."""
    return {
        "model": _hashes(root / "model", NETWORK),
        "training": {path.stem: sha256_of([path]) for path in sorted((root / "training").glob("[!_]*.py"))}
        | _hashes(root / "training", None),
    }


def _hashes(package: Path, own: str | None) -> dict[str, str]:
    rooms = {path.parent.name: sorted(path.parent.glob("*.py")) for path in package.glob("*/__init__.py")}
    if own is not None:
        rooms[own] = sorted(package.glob("*.py"))
    return {name: sha256_of(files) for name, files in sorted(rooms.items())}


def sha256_of(files: list[Path]) -> str:
    """The hash of what these files mean, by name and content."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.name}\n{meaning(file.read_text(encoding='utf-8'))}\n".encode())
    return digest.hexdigest()


def meaning(source: str) -> str:
    """Python source without comments, docstrings and empty lines; the same whatever version of Python reads
    it.
    """
    lines = source.splitlines()
    for start, end in _docstrings(ast.parse(source)):
        lines[start - 1 : end] = [""] * (end - start + 1)
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        row, column = token.start
        if token.type == tokenize.COMMENT and lines[row - 1]:
            lines[row - 1] = lines[row - 1][:column]
    return "\n".join(stripped for line in lines if (stripped := line.rstrip()))


def _docstrings(tree: ast.Module) -> Iterator[tuple[int, int]]:
    """First and last line of every docstring."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                yield first.lineno, first.end_lineno or first.lineno


def main(arguments: list[str]) -> None:
    """Write the hashes of the code in the working directory."""
    out = Path(arguments[0])
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(room_hashes(Path()), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
