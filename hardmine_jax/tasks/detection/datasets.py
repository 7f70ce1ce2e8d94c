"""The detection datasets by name, and their proposals."""

import dataclasses
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple, TypedDict

from hardmine_jax.data.detection import coco, synthetic, voc
from hardmine_jax.data.detection.proposals import SourceProposals, prepare
from hardmine_jax.data.detection.records import DetectionDataset
from hardmine_jax.data.detection.voc_xml import Corners
from hardmine_jax.data.images import Orientation
from hardmine_jax.tasks.detection.config import Config
from hardmine_jax.tasks.flags import check_data_flags, check_needed_flags, warn_skipped


class Dataset(NamedTuple):
    """A row of DATASETS.

    Attributes:
      load: the dataset that a config's flags name, prepared.
      flags: of a config that it reads.
      needed: those of them that it cannot do without, and what each is.
    """

    load: Callable[[Config], DetectionDataset]
    flags: tuple[str, ...] = ()
    needed: Mapping[str, str] = MappingProxyType({})


def _load_voc(config: Config) -> DetectionDataset:
    train, validation = config.train_split or "train", config.validation_split or "val"
    reading, cache = voc_reading(config), config.run.cache_dir
    return voc.load(config.data_dir, train=train, validation=validation, **reading, cache_dir=cache)


class VocReading(TypedDict):
    """Arguments of `voc.load`."""

    corners: Corners
    orientation: Orientation


def voc_reading(config: Config) -> VocReading:
    """How a voc folder's boxes are read."""
    return {"corners": config.voc_corners or "from_1", "orientation": config.exif_orientation or "auto"}


def _load_coco(config: Config) -> DetectionDataset:
    given = {name: getattr(config, name) for name in DATASETS["coco"].flags}
    given["orientation"] = given.pop("exif_orientation") or "auto"
    return coco.load(cache_dir=config.run.cache_dir, **given)


DATASETS: Mapping[str, Dataset] = {
    "synthetic": Dataset(lambda config: synthetic.load(cache_dir=config.run.cache_dir)),
    "voc": Dataset(
        _load_voc,
        ("data_dir", "train_split", "validation_split", "voc_corners", "exif_orientation"),
        {"data_dir": f"DIR with {voc.LAYOUT}"},
    ),
    "coco": Dataset(
        _load_coco,
        ("annotations", "images", "validation_annotations", "validation_images", "exif_orientation"),
        {"annotations": "JSON", "images": "DIR"},
    ),
}


def load_dataset(config: Config) -> DetectionDataset:
    """The dataset that the flags name, prepared.

    Raises:
      UserError: a flag that the dataset does not use, or one that it needs is missing.
      DataError: there is no such data.
    """
    used = {name: row.flags for name, row in DATASETS.items()}
    check_data_flags(config, used, config.dataset, "change --dataset")
    row = DATASETS[config.dataset]
    check_needed_flags(config, row.needed, config.dataset)
    return row.load(config)


@dataclasses.dataclass(frozen=True)
class SplitProposals:
    """Proposals of both splits, `[position]` -> [P, 4] in original pixels."""

    train: SourceProposals
    validation: SourceProposals


def find_proposals(config: Config, dataset: DetectionDataset) -> SplitProposals:
    """Selective search over both splits, or what it found before; tells of images without any."""
    found = SplitProposals(
        *(
            prepare(source, config.search, cache_dir=config.run.cache_dir)
            for source in (dataset.train, dataset.validation)
        )
    )
    for split in (found.train, found.validation):
        warn_skipped(split.skipped)
    return found
