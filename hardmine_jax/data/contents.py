"""What a prepared folder held when it was made, by which later damage is seen before anything is read wrong.

`contents.json` is `{path: [bytes, CRC-32 or None]}`: array_record's own files have checksums of their own.
"""

import json
import os
import pathlib
import zlib

_NAME = "contents.json"


def write_contents(folder: pathlib.Path) -> None:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    described = {path.relative_to(folder).as_posix(): _describe(path) for path in files}
    (folder / _NAME).write_text(json.dumps(described))


def check_contents(folder: pathlib.Path) -> None:
    """Raises ValueError naming the first file that is not as it was; nothing where none are written down."""
    if not (folder / _NAME).exists():
        return
    described = json.loads((folder / _NAME).read_text())
    if not isinstance(described, dict):
        raise ValueError(f"{_NAME} is not what was written")
    for name, before in described.items():
        try:
            same = _describe(folder / name) == before
        except (FileNotFoundError, IsADirectoryError):
            same = False
        if not same:
            raise ValueError(f"{name} is not what was written")


def _describe(path: pathlib.Path) -> list[int | None]:
    if ".array_record" in path.name:
        if not path.is_file():
            raise FileNotFoundError(path)
        return [os.path.getsize(path), None]
    content = path.read_bytes()
    return [len(content), zlib.crc32(content)]
