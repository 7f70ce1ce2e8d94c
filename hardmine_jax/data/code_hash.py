"""What code data was made by: a hash of a module and of everything of this package that it imports.

Who changes a reader, or something that it reads with, gets data of the new code and not yesterday's. Only
this package counts: with other packages' versions every upgrade would prepare everybody's data anew.
"""

import ast
import functools
import hashlib
import pathlib
from collections.abc import Iterator

_PACKAGE = pathlib.Path(__file__).parents[1]


def code_hash(*files: str) -> str:
    """BLAKE2 over the sources of these files of the package and of those that they import, near or far.

    A name that a package's `__init__` only passes on counts as the module that defines it, so that a reader
    which needs one class of `hardmine_jax.pose` does not depend on all of it.

    Args:
      files: `__file__` of modules.
    """
    waiting, seen = [pathlib.Path(file) for file in files], set()
    while waiting:
        path = waiting.pop()
        if path not in seen:
            seen.add(path)
            waiting += imported(path)
    digest = hashlib.blake2b(digest_size=16)
    for path in sorted(seen):
        # By name too: where two files swap their contents, other code runs.
        digest.update(f"{path.relative_to(_PACKAGE)}\0{len(source(path))}\0".encode() + source(path))
    return digest.hexdigest()


def source(path: pathlib.Path) -> bytes:
    """What is hashed of a file."""
    return path.read_bytes()


def imported(path: pathlib.Path) -> set[pathlib.Path]:
    """Files of this package that a file imports, wherever in it."""
    return {found for name in _names(path) if (found := _file(name)) is not None}


@functools.cache
def _names(path: pathlib.Path) -> tuple[str, ...]:
    """Dotted names of the modules that a file imports, and of the names that it takes from modules."""
    return tuple(_imports(ast.parse(path.read_bytes())))


def _imports(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _file(name: str) -> pathlib.Path | None:
    """The file that a dotted name is a module of, or is defined in; None outside the package."""
    package, *parts = name.split(".")
    if package != _PACKAGE.name:
        return None
    path = _PACKAGE.joinpath(*parts)
    if (module := path.with_suffix(".py")).is_file():
        return module
    if (module := path / "__init__.py").is_file():
        return module
    if path.parent.is_dir():
        passed_on = {full.rpartition(".")[2]: full for full in _names(path.parent / "__init__.py")}
        full = passed_on.get(parts[-1], name)
        return path.parent / "__init__.py" if full == name else _file(full)
    # A name that a module defines, or has from another, which then is among that module's own imports.
    return path.parent.with_suffix(".py")
