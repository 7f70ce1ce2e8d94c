"""Selective search over a whole source, kept on disk by what an image holds and how it was searched.

`<cache>/proposals/<fingerprint of the settings>/<hash of the image's bytes>.npy`: float32 [P, 4] xyxy in
pixels of the original image, best first. An image that two datasets share is searched once. A file is there
whole or not at all; one that is damaged is made again.
"""

import contextlib
import dataclasses
import functools
import hashlib
import operator
import os
import pathlib
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed

import cv2
import numpy as np
import rich.progress

from hardmine_jax.data import cache, prepared
from hardmine_jax.data.code_hash import code_hash
from hardmine_jax.data.images import decode_image
from hardmine_jax.data.problems import DataError, Skipped, UnreadableImage, gather
from hardmine_jax.data.records import Records
from hardmine_jax.detection import proposals as search
from hardmine_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class SearchConfig:
    """How an image is searched; but for `scale` see `detection.proposals.selective_search`.

    Attributes:
      scale: the search sees the image at this scale, 1 or less: half the side is a quarter of the time, and
        loses what is small.
      min_size: in pixels of the original.

    Raises:
      UserError: a scale outside 0..1 (0 excluded), an unknown mode, a number below 1.
    """

    mode: str = "fast"
    max_proposals: int = 2000
    min_size: float = 0.0
    base_k: int = 150
    scale: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.scale <= 1:
            raise UserError(f"scale={self.scale} must be above 0 and at most 1")
        if self.mode not in search.MODES:
            raise UserError(f"mode={self.mode!r}: choose one of {', '.join(search.MODES)}")
        if self.max_proposals < 1 or self.base_k < 1:
            raise UserError(f"max_proposals={self.max_proposals} and base_k={self.base_k} must be 1 or more")


class SourceProposals:
    """The proposals of each record of a source: `[i]` -> float32 [P, 4] in pixels of the original image.

    Attributes:
      counts: int32 [length], how many proposals each record has.
      skipped: what was noted: images with no proposal, and such as cannot be read (they have none either).
    """

    def __init__(self, source: Records, config: SearchConfig, folder: pathlib.Path, hashes: np.ndarray):
        self._source = source
        self._config = config
        self._folder = folder
        self._hashes = hashes
        self.counts = np.zeros(len(hashes), np.int32)
        self.skipped = Skipped()

    def __len__(self) -> int:
        return len(self._hashes)

    def __getitem__(self, index: int) -> np.ndarray:
        index = operator.index(index)
        if not -len(self) <= index < len(self):
            raise IndexError(f"proposals {index} of {len(self)} records")
        file = _file(self._folder, self._hashes[index])
        found = _read(file)
        if found is None:
            # Removed or damaged since the source was gone through.
            found = _make(_record(self._source, index)["image"], file, self._config)
        return found


def prepare(
    source: Records,
    config: SearchConfig = SearchConfig(),  # noqa: B008 (frozen)
    *,
    cache_dir: str | os.PathLike | None = None,
    threads: int | None = None,
) -> SourceProposals:
    """Searches the images that were not searched yet, with a bar on a terminal.

    Threads, not processes: OpenCV lets go of Python's lock while it searches.

    Args:
      source: records by position, see `data/detection/records.py`; "image" and "name" are read.
      cache_dir: see `cache.cache_root`.
      threads: images searched at once; by default as many as there are cores.

    Raises:
      UserError: OpenCV without its contrib modules.
      DataError: the cache cannot be written.
    """
    folder = _folder(config, cache_dir)
    with ThreadPoolExecutor(threads or os.cpu_count()) as pool:
        images = (_record(source, index)["image"] for index in range(len(source)))
        hashes = np.array([_hash(image) for image in images], "S32")
        # The same picture twice is one file.
        first = {key: index for index, key in reversed(list(enumerate(hashes.tolist())))}
        missing = [index for key, index in first.items() if _read(_file(folder, key)) is None]
        make = functools.partial(_make_indexed, source=source, folder=folder, hashes=hashes, config=config)
        waiting = [pool.submit(make, index) for index in sorted(missing)]
        try:
            with _progress(len(missing), folder) as advance:
                for done in as_completed(waiting):
                    done.result()
                    advance()
        finally:
            for future in waiting:
                future.cancel()
    found = SourceProposals(source, config, folder, hashes)
    found.counts[:] = [len(found[index]) for index in range(len(found))]
    empty = [_record(source, int(index)) for index in np.flatnonzero(found.counts == 0)]
    found.skipped = gather((), [(_why_none(record), record["name"]) for record in empty])
    return found


def _record(source: Records, index: int) -> dict:
    """A record; without a picture where it cannot be read, so that it has no proposals."""
    try:
        return source[index]
    except UnreadableImage:
        return {"image": b"", "name": f"record {index}"}


def _folder(config: SearchConfig, cache_dir: str | os.PathLike | None) -> pathlib.Path:
    settings = {**dataclasses.asdict(config), "code": code_hash(__file__), "opencv": cv2.__version__}
    folder = cache.cache_root(cache_dir) / "proposals" / cache.fingerprint(settings)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        advice = "set HARDMINE_CACHE to a folder you may write"
        raise DataError(f"cannot write the cache {folder} ({error}): {advice}") from error
    return folder


def _hash(image: bytes) -> bytes:
    return hashlib.blake2b(image, digest_size=16).hexdigest().encode()


def _file(folder: pathlib.Path, key: bytes) -> pathlib.Path:
    return folder / f"{key.decode()}.npy"


def _why_none(record: dict) -> str:
    return "image unreadable" if decode_image(record["image"]) is None else "image with no proposal"


def _read(file: pathlib.Path) -> np.ndarray | None:
    """The boxes in a file, or None where it is absent or damaged."""
    try:
        with open(file, "rb") as stream:
            boxes = np.lib.format.read_array(stream, allow_pickle=False)
    except Exception:  # numpy raises what broken bytes lead to: MemoryError, tokenize.TokenError ...
        return None
    if boxes.dtype != np.float32 or boxes.ndim != 2 or boxes.shape[1] != 4:
        return None
    return boxes if np.isfinite(boxes).all() and (boxes[:, 2:] > boxes[:, :2]).all() else None


def _make_indexed(
    index: int, *, source: Records, folder: pathlib.Path, hashes: np.ndarray, config: SearchConfig
) -> None:
    _make(_record(source, index)["image"], _file(folder, hashes[index]), config)


def _make(encoded: bytes, file: pathlib.Path, config: SearchConfig) -> np.ndarray:
    boxes = search_image(encoded, config)
    temporary = file.with_name(f".{file.stem}.{os.getpid()}.{threading.get_ident()}.tmp")
    try:
        with open(temporary, "wb") as stream:
            np.save(stream, boxes, allow_pickle=False)
        temporary.replace(file)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise DataError(f"cannot write proposals to {file.parent}: {error}") from error
    return boxes


def search_image(encoded: bytes, config: SearchConfig) -> np.ndarray:
    """Encoded image -> proposals float32 [P, 4] in its pixels; none where it cannot be read.

    Raises:
      UserError: OpenCV without its contrib modules.
    """
    image = decode_image(encoded)
    if image is None:
        return np.zeros((0, 4), np.float32)
    height, width = image.shape[:2]
    small = (max(round(width * config.scale), 1), max(round(height * config.scale), 1))
    if small != (width, height):
        image = cv2.resize(image, small, interpolation=cv2.INTER_AREA)
    try:
        boxes = search.selective_search(
            image,
            mode=config.mode,
            max_proposals=config.max_proposals,
            min_size=config.min_size * config.scale,
            base_k=config.base_k,
        )
    except ImportError as error:
        # It says which package to install.
        raise UserError(str(error)) from error
    return boxes * np.tile(np.array([width / small[0], height / small[1]], np.float32), 2)


@contextlib.contextmanager
def _progress(total: int, folder: pathlib.Path) -> Iterator[Callable[[], None]]:
    console = rich.console.Console(file=sys.stderr)
    if not total or not console.is_terminal:
        yield prepared.Progress("proposals", folder)
        return
    with rich.progress.Progress(*_columns(), console=console) as bar:
        task = bar.add_task("proposals", total=total)
        yield lambda: bar.advance(task)


def _columns() -> list[rich.progress.ProgressColumn]:
    columns = rich.progress
    return [
        columns.TextColumn("selective search"),
        columns.BarColumn(),
        columns.MofNCompleteColumn(),
        columns.TextColumn("images, ETA"),
        columns.TimeRemainingColumn(),
    ]
