"""The pose datasets by name."""

from hardmine_jax.data.pose import coco, lspet, mpii, synthetic
from hardmine_jax.data.pose.records import PoseDataset
from hardmine_jax.tasks.flags import check_data_flags
from hardmine_jax.tasks.pose.config import Config

# Steps of the laptop preset: under 5 minutes on 2 CPU cores (synthetic), under 20 (photographs).
LAPTOP_STEPS = {"synthetic": 700, "lspet": 3600, "coco": 3600, "mpii": 3600}
SKELETONS = {
    "synthetic": coco.COCO_SKELETON, "lspet": lspet.LSP_SKELETON, "mpii": mpii.MPII_SKELETON,
}  # fmt: skip
_DATA_FLAGS = {
    "synthetic": (),
    "lspet": ("data_dir",),
    "mpii": ("data_dir",),
    "COCO 2017": ("data_dir",),
    "coco": (
        "annotations", "images", "validation_annotations", "validation_images", "category", "sigmas",
        "flip_pairs", "edges",
    ),
}  # fmt: skip


def load_dataset(config: Config) -> PoseDataset:
    """The dataset that the flags name, prepared.

    Raises:
      ValueError: a flag that the dataset does not use.
      DataError: there is no such data.
    """
    official = config.dataset == "coco" and config.annotations is None and config.images is None
    kind = "COCO 2017" if official else config.dataset
    advice = "add --annotations JSON and --images DIR" if official else "change --dataset"
    check_data_flags(config, _DATA_FLAGS, kind, advice)
    if kind == "synthetic":
        return synthetic.load(cache_dir=config.cache_dir)
    if kind == "lspet":
        return lspet.load(config.data_dir, cache_dir=config.cache_dir)
    if kind == "mpii":
        return mpii.load(config.data_dir, cache_dir=config.cache_dir)
    if official:
        return coco.load_official(config.data_dir, cache_dir=config.cache_dir)
    return coco.load(
        cache_dir=config.cache_dir, **{name: getattr(config, name) for name in _DATA_FLAGS["coco"]}
    )
