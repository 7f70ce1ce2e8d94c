"""Where prepared data lies and what it is keyed by.

`<cache>/<dataset>/<fingerprint>/`: the fingerprint hashes everything the data was made from (paths, names,
sizes and times of files, contents of annotation files, options, code), so another folder or a changed one is
another entry. An entry is built in a hidden folder beside it and renamed when complete: it is there whole or
not at all.
"""

import contextlib
import errno
import hashlib
import json
import os
import pathlib
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator

from hardmine_jax.data.problems import DataError
from hardmine_jax.file_lock import open_locked

# Of a file system without locks.
_ABANDONED_AFTER_SECONDS = 2 * 24 * 3600
# Who makes a folder locks it at once.
_LOCKED_AFTER_SECONDS = 60
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
_ADVICE = "set HARDMINE_CACHE to a folder you may write"


def cache_root(cache_dir: str | os.PathLike | None = None) -> pathlib.Path:
    """`cache_dir` if given, else $HARDMINE_CACHE, else ~/.cache/hardmine_jax.

    Raises:
      DataError: there is no home folder, or the name is not in UTF-8, which array_record needs.
    """
    given = cache_dir or os.environ.get("HARDMINE_CACHE")
    try:
        root = pathlib.Path(given or "~/.cache/hardmine_jax").expanduser().absolute()
    except RuntimeError as error:
        raise DataError(f"no folder for the cache ({error}): {_ADVICE}") from error
    try:
        os.fspath(root).encode()
    except UnicodeEncodeError as error:
        raise DataError(f"the cache cannot lie in {root}, a name that is not in UTF-8: {_ADVICE}") from error
    return root


def file_hash(path: str | os.PathLike) -> str:
    """BLAKE2 of a file's contents, in hexadecimal."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error


def folder_hash(folder: str | os.PathLike) -> str:
    """Hash of every file's path, size, mtime and ctime under `folder`; contents are not read.

    ctime is there because a tool may set mtime back after a change (`cp -p`, `rsync -t`, `touch -d`), and
    none can set ctime. Links are followed.
    """
    try:
        return _hash(_listing(os.fspath(folder)))
    except OSError as error:
        raise DataError(f"cannot list {folder}: {error}") from error


def files_hash(paths: Iterable[str | os.PathLike]) -> str:
    """As `folder_hash`, of these files only, there or not: other files beside them may come and go."""
    return _hash(_line(os.fspath(path), path) for path in set(paths))


def _hash(lines: Iterable[str]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for line in sorted(lines):
        digest.update(line.encode(errors="surrogateescape"))
    return digest.hexdigest()


def _line(name: str, path: str | os.PathLike) -> str:
    try:
        status = os.stat(path)
    except OSError:  # Absent, a link to nothing, or a name that no file can have.
        return f"{name}\0absent\n"
    return f"{name}\0{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}\n"


def _listing(folder: str) -> Iterator[str]:
    waiting, seen = [(folder, "")], set()
    while waiting:  # No recursion: folders can be nested deeper than Python's stack.
        path, prefix = waiting.pop()
        status = os.stat(path)
        if (status.st_dev, status.st_ino) in seen:
            continue
        seen.add((status.st_dev, status.st_ino))
        with os.scandir(path) as entries:
            for entry in entries:
                if entry.is_dir():
                    waiting.append((entry.path, f"{prefix}{entry.name}/"))
                else:
                    yield _line(f"{prefix}{entry.name}", entry.path)


def fingerprint(made_from: dict) -> str:
    """Hash of a JSON-able description.

    >>> fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1}) != fingerprint({"a": 1, "b": 3})
    True
    """
    text = json.dumps(made_from, sort_keys=True)
    return hashlib.blake2b(text.encode(errors="surrogateescape"), digest_size=12).hexdigest()


def build_once(folder: pathlib.Path, build: Callable[[pathlib.Path], None]) -> None:
    """Fills `folder` by `build(temporary folder)` unless it is there: atomic, also with several processes.

    Processes that start at once each build; the first to finish gives the folder its name, the others' work,
    which is the same, is thrown away.
    """
    if folder.exists():
        return
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(folder.parent)
        temporary = pathlib.Path(tempfile.mkdtemp(".tmp", f".{folder.name}.", folder.parent))
        lock = _lock(temporary)
    except OSError as error:
        raise DataError(f"cannot write the cache {folder.parent} ({error}): {_ADVICE}") from error
    try:
        build(temporary)
        # mkdtemp gives 0700; a shared cache needs what the user's umask would have given.
        temporary.chmod(folder.parent.stat().st_mode & 0o777)
        temporary.rename(folder)
    except OSError as error:
        if not folder.exists():
            room = f": make room there, or {_ADVICE}" if error.errno in _NO_ROOM else ""
            raise DataError(f"cannot prepare data in {folder.parent}: {error}{room}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def _remove_abandoned(parent: pathlib.Path) -> None:
    """Removes what killed processes left; a folder still written to is young, or locked."""
    for left in parent.glob(".*.tmp"):
        newest = max((path.stat().st_mtime for path in (left, *left.rglob("*")) if path.exists()), default=0)
        age = time.time() - newest
        lock = _lock(left) if age > _LOCKED_AFTER_SECONDS else None
        if lock is not None or age > _ABANDONED_AFTER_SECONDS:
            shutil.rmtree(left, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def _lock(folder: pathlib.Path) -> int | None:
    """The number of the opened folder; None where another process holds it, or it cannot be locked."""
    with contextlib.suppress(OSError):
        return open_locked(folder, os.O_RDONLY)
    return None
