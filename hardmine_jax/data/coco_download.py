"""The official COCO 2017 archives, fetched by tensorflow-datasets and unpacked once into their own layout."""

import contextlib
import errno
import lzma
import os
import pathlib
import sys
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Iterator

import tensorflow_datasets as tfds
from tensorflow_datasets.core.utils import tqdm_utils

from hardmine_jax.data import cache
from hardmine_jax.data.problems import DataError

BASE_URL = "http://images.cocodataset.org"
ARCHIVES = ("annotations/annotations_trainval2017.zip", "zips/train2017.zip", "zips/val2017.zip")
_BROKEN_ARCHIVE = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, RuntimeError, ValueError)
# Errors of offsets and names that the headers give, not of the disk.
_OF_THE_ARCHIVE = (errno.EINVAL, errno.ENAMETOOLONG, errno.EISDIR, errno.ENOTDIR, errno.EEXIST)
# Unpacked, an archive is at most so many times as large. JSON packs to a tenth, images not at all.
_MAX_EXPANSION = 50


def download(*, base_url: str = BASE_URL, cache_dir: str | os.PathLike | None = None) -> pathlib.Path:
    """The folder that holds annotations/, train2017/ and val2017/; downloads 20 GB when it is not there yet.

    tensorflow-datasets knows the checksums of the official archives and refuses others. An archive that has
    arrived whole is kept until all are unpacked, so a download that breaks off goes on with the next archive.

    Raises:
      DataError: when an archive cannot be had, or is none.
    """
    folder = folder_of(cache_dir, base_url=base_url)
    if not folder.exists():
        print(f"downloading COCO 2017 from {base_url} to {folder} (about 20 GB)", file=sys.stderr, flush=True)
        cache.build_once(folder, lambda temporary: _fetch(base_url, folder.parent / "archives", temporary))
    return folder


def folder_of(cache_dir: str | os.PathLike | None = None, *, base_url: str = BASE_URL) -> pathlib.Path:
    """Where `download` unpacks the archives; it is there once they are."""
    name = f"coco2017-{cache.fingerprint({'base_url': base_url})}"
    return cache.cache_root(cache_dir) / "downloads" / name


def _fetch(base_url: str, archives: pathlib.Path, folder: pathlib.Path) -> None:
    urls = [f"{base_url}/{name}" for name in ARCHIVES]
    _check_reachable(urls[0])
    paths = [_archive(url, archives) for url in urls]
    for path, url in zip(paths, urls, strict=True):
        _unpack(path, url, folder)
    for path in paths:
        _forget(path)


def _check_reachable(url: str) -> None:
    """Says within seconds that there is no network; tensorflow-datasets retries for over three minutes."""
    try:
        urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=20).close()
    except urllib.error.HTTPError as error:
        error.close()  # Somebody is there: the download itself tells whether they have the file.
    except OSError as error:
        raise _cannot_download(url, error) from error


def _cannot_download(url: str, error: Exception) -> DataError:
    reason = " ".join(str(error).split())
    by_hand = f"give data_dir, a folder with {', '.join(ARCHIVES)} unpacked in it"
    return DataError(f"cannot download {url} ({reason}): try again, or {by_hand}")


def _archive(url: str, archives: pathlib.Path) -> pathlib.Path:
    try:
        with _progress_bar(sys.stderr.isatty()):
            return pathlib.Path(tfds.download.DownloadManager(download_dir=archives).download(url))
    # requests, urllib3 and tensorflow-datasets have their own errors, without a common base.
    except Exception as error:
        raise _cannot_download(url, error) from error


def _unpack(path: pathlib.Path, url: str, folder: pathlib.Path) -> None:
    # tensorflow-datasets' own extraction asks for TensorFlow, and reads the whole archive into memory.
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(member.file_size for member in archive.infolist())
            if size > _MAX_EXPANSION * path.stat().st_size:
                raise zipfile.BadZipFile(f"it would unpack to {size:,} bytes")
            archive.extractall(folder)  # Keeps members such as ../x inside; a link becomes a plain file.
    # What the headers lead to: encrypted members, unknown kinds of packing, sizes that are none.
    except (*_BROKEN_ARCHIVE, OSError) as error:
        if isinstance(error, OSError) and error.errno not in _OF_THE_ARCHIVE:
            raise  # A full disk, say: the archive stays.
        _forget(path)
        raise DataError(f"{url} gave no whole zip archive ({error}): try again") from error


def _forget(path: pathlib.Path) -> None:
    path.unlink(missing_ok=True)
    path.with_name(f"{path.name}.INFO").unlink(missing_ok=True)


@contextlib.contextmanager
def _progress_bar(show: bool) -> Iterator[None]:
    before = tqdm_utils._active
    tfds.display_progress_bar(show)
    try:
        yield
    finally:
        tfds.display_progress_bar(before)
