"""Numbered examples of scenes, encoded, rendered by as many processes as there are cores.

Threads gain nothing here: a scene is thousands of short array operations under Python's lock. The
processes are plain interpreters that call `serve`, not `multiprocessing`'s, which run the caller's script
again and so break scripts without a `__main__` guard.
"""

import contextlib
import io
import os
import pathlib
import subprocess
import sys
from collections.abc import Iterator
from typing import IO, NamedTuple

import cv2
import numpy as np

from hardmine_jax.data.pose import scenes
from hardmine_jax.data.workers import starting_workers

IMAGE_SIZE = 160
JPEG_QUALITY = 92
# Starting an interpreter costs as much as some 250 examples.
_WORTH_PROCESSES = 400


class Example(NamedTuple):
    """As `scenes.Scene`, with the image as JPEG bytes and without the map of parts."""

    image: bytes
    keypoints: np.ndarray
    visibility: np.ndarray
    box: np.ndarray
    area: float


def example(seed: int, split: int, index: int) -> Example:
    """Example `index` of split number `split`, from a generator of its own."""
    scene = scenes.render_scene(np.random.default_rng((seed, split, index)), size=IMAGE_SIZE)
    quality = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]
    _, encoded = cv2.imencode(".jpg", cv2.cvtColor(scene.image, cv2.COLOR_RGB2BGR), quality)
    return Example(encoded.tobytes(), scene.keypoints, scene.visibility, scene.box, scene.area)


def examples(seed: int, split: int, count: int, *, processes: int | None = None) -> Iterator[Example]:
    """Examples 0 to `count` - 1 in order, the same from any number of processes.

    Args:
      processes: default one a core, or none beside this one where `count` is small.

    Raises:
      RuntimeError: a rendering process died.
    """
    if processes is None:
        processes = min(os.cpu_count() or 1, 8) if count >= _WORTH_PROCESSES else 1
    if processes == 1:
        yield from (example(seed, split, index) for index in range(count))
        return
    with contextlib.ExitStack() as stack:
        workers = [
            stack.enter_context(_worker(seed, split, first, count, processes)) for first in range(processes)
        ]
        for index in range(count):
            try:
                yield _receive(workers[index % processes])
            except EOFError as error:
                raise RuntimeError(
                    f"a process rendering example {index} of {count} died: see above"
                ) from error


@contextlib.contextmanager
def _worker(*arguments: int) -> Iterator[IO[bytes]]:
    root = str(pathlib.Path(__file__).parents[3])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([root, *filter(None, sys.path)])}
    command = [sys.executable, "-c", f"from {__name__} import serve; serve(*{arguments})"]
    with starting_workers():
        started = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment)
    with started as process:
        assert process.stdout is not None, "a pipe was asked for"
        try:
            yield process.stdout
        finally:
            process.kill()


def serve(seed: int, split: int, first: int, count: int, step: int) -> None:
    """The worker's side: sends examples first, first + step, ... below count to standard output."""
    cv2.setNumThreads(0)
    try:
        for index in range(first, count, step):
            _send(example(seed, split, index), sys.stdout.buffer)
        sys.stdout.flush()
    except (BrokenPipeError, KeyboardInterrupt):
        # Whoever asked is gone, and has said so: no traceback, nor the interpreter's own at its last flush.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _send(example: Example, stream: IO[bytes]) -> None:
    """The number of bytes that follow, in 8 bytes; the parts as `np.save` writes arrays."""
    buffer = io.BytesIO()
    for part in (np.frombuffer(example.image, np.uint8), *example[1:]):
        np.save(buffer, part, allow_pickle=False)
    stream.write(len(buffer.getvalue()).to_bytes(8))
    stream.write(buffer.getvalue())


def _receive(stream: IO[bytes]) -> Example:
    """Raises EOFError where the sender is gone."""
    size = stream.read(8)
    content = stream.read(int.from_bytes(size))
    if len(size) < 8 or len(content) < int.from_bytes(size):
        raise EOFError
    buffer = io.BytesIO(content)
    image, keypoints, visibility, box, area = (np.load(buffer, allow_pickle=False) for _ in Example._fields)
    return Example(image.tobytes(), keypoints, visibility, box, float(area))
