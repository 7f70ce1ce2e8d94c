"""The detection datasets by name, and their proposals."""

import dataclasses

from hardmine_jax.data.detection import coco, synthetic, voc
from hardmine_jax.data.detection.proposals import SourceProposals, prepare
from hardmine_jax.data.detection.records import DetectionDataset
from hardmine_jax.tasks.detection.config import Config
from hardmine_jax.tasks.flags import check_data_flags, tell_skipped

DATASETS = ("synthetic", "voc", "coco")
_DATA_FLAGS = {
    "synthetic": (),
    "voc": ("data_dir", "train_split", "validation_split"),
    "coco": ("annotations", "images", "validation_annotations", "validation_images"),
}


def load_dataset(config: Config) -> DetectionDataset:
    """The dataset that the flags name, prepared.

    Raises:
      ValueError: a flag that the dataset does not use.
      DataError: there is no such data.
    """
    check_data_flags(config, _DATA_FLAGS, config.dataset, "change --dataset")
    if config.dataset == "synthetic":
        return synthetic.load(cache_dir=config.cache_dir)
    if config.dataset == "voc":
        splits = {"train": config.train_split or "train", "validation": config.validation_split or "val"}
        return voc.load(config.data_dir, **splits, cache_dir=config.cache_dir)
    return coco.load(
        config.annotations,
        config.images,
        validation_annotations=config.validation_annotations,
        validation_images=config.validation_images,
        cache_dir=config.cache_dir,
    )


@dataclasses.dataclass(frozen=True)
class SplitProposals:
    """Proposals of both splits, `[position]` -> [P, 4] in original pixels."""

    train: SourceProposals
    validation: SourceProposals


def find_proposals(config: Config, dataset: DetectionDataset) -> SplitProposals:
    """Selective search over both splits, or what it found before; tells of images without any."""
    found = SplitProposals(
        *(
            prepare(source, config.search, cache_dir=config.cache_dir)
            for source in (dataset.train, dataset.validation)
        )
    )
    for split in (found.train, found.validation):
        tell_skipped(split.skipped)
    return found
