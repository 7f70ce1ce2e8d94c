"""The pose datasets by name."""

import os
import sys
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

from hardmine_jax.data import coco_download
from hardmine_jax.data.pose import coco, lspet, mpii, synthetic
from hardmine_jax.data.pose.records import PoseDataset
from hardmine_jax.errors import UserError
from hardmine_jax.pose import Skeleton
from hardmine_jax.tasks.flags import check_data_flags, check_needed_flags
from hardmine_jax.tasks.pose.config import Config


class Dataset(NamedTuple):
    """A row of DATASETS.

    Attributes:
      load: the dataset that a config's flags name, prepared.
      flags: of a config that it reads.
      needed: those of them that it cannot do without, and what each is.
      steps: of the laptop preset: under 5 minutes on 2 CPU cores (made-up people), under 20 (photographs).
      skeleton: where it is known before anything is read.
    """

    load: Callable[[Config], PoseDataset]
    flags: tuple[str, ...] = ()
    needed: Mapping[str, str] = MappingProxyType({})
    steps: int = 3600
    skeleton: Skeleton | None = None


def _load_coco(config: Config) -> PoseDataset:
    given = {name: getattr(config, name) for name in DATASETS["coco"].flags}
    given["orientation"] = given.pop("exif_orientation") or "auto"
    return coco.load(cache_dir=config.run.cache_dir, **given)


DATASETS: Mapping[str, Dataset] = {
    "synthetic": Dataset(
        lambda config: synthetic.load(cache_dir=config.run.cache_dir),
        steps=700,
        skeleton=coco.COCO_SKELETON,
    ),
    "lspet": Dataset(
        lambda config: lspet.load(config.data_dir, cache_dir=config.run.cache_dir),
        ("data_dir",),
        {"data_dir": f"DIR with {lspet.LAYOUT} (from {lspet.WHERE})"},
        skeleton=lspet.LSP_SKELETON,
    ),
    "coco": Dataset(
        _load_coco,
        (
            "annotations", "images", "validation_annotations", "validation_images", "category", "sigmas",
            "flip_pairs", "edges", "exif_orientation", "point_side",
        ),
        {"annotations": "JSON", "images": "DIR"},
    ),
    "mpii": Dataset(
        lambda config: mpii.load(config.data_dir, cache_dir=config.run.cache_dir),
        ("data_dir",),
        {"data_dir": f"DIR with {mpii.LAYOUT} ({mpii.WHERE})"},
        skeleton=mpii.MPII_SKELETON,
    ),
    "COCO 2017": Dataset(
        lambda config: coco.load_official(config.data_dir, cache_dir=config.run.cache_dir), ("data_dir",)
    ),
}  # fmt: skip


def load_dataset(config: Config) -> PoseDataset:
    """The dataset that the flags name, prepared.

    Raises:
      UserError: a flag that the dataset does not use, or one that it needs is missing.
      DataError: there is no such data.
    """
    official = config.dataset == "coco" and config.annotations is None and config.images is None
    kind = "COCO 2017" if official else config.dataset
    advice = "add --annotations JSON and --images DIR" if official else "change --dataset"
    check_data_flags(config, {name: row.flags for name, row in DATASETS.items()}, kind, advice)
    row = DATASETS[kind]
    check_needed_flags(config, row.needed, kind)
    if official and config.data_dir is None:
        check_download(config.run.cache_dir, allowed=config.download, ask=not config.run.distributed)
    elif config.download:
        raise UserError(f"--download means nothing to --dataset {kind} that is given: drop it")
    return row.load(config)


def check_download(cache_dir: str | os.PathLike | None, *, allowed: bool, ask: bool = True) -> None:
    """Raises UserError where COCO 2017 is not there yet and nobody wants it fetched.

    Args:
      cache_dir: where it would be; allowed: by a flag; ask: who sits at a terminal.
    """
    folder = coco_download.folder_of(cache_dir)
    if allowed or folder.exists():
        return
    size = f"COCO 2017 is 20 GB to download, and 60 GB in {folder.parents[1]} in the end"
    if ask and sys.stdin is not None and sys.stdin.isatty() and sys.stderr.isatty():
        print(f"{size}. Download it? [y/N] ", end="", file=sys.stderr, flush=True)
        if sys.stdin.readline().strip().lower() in ("y", "yes"):
            return
    raise UserError(
        f"{size}: add --download to fetch it, or give --data-dir DIR that has it, or --annotations JSON and "
        "--images DIR of other data"
    )
