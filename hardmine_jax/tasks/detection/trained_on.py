"""A run that goes on with its data as it is now: are the classes those that it was trained on?"""

from hardmine_jax.data.detection.records import DetectionDataset
from hardmine_jax.data.problems import printable
from hardmine_jax.job import exchange
from hardmine_jax.tasks.detection.config import load_category_ids, load_config
from hardmine_jax.tasks.flags import warn_of
from hardmine_jax.tasks.names import check_same_names
from hardmine_jax.tasks.run import goes_on
from hardmine_jax.tasks.run_config import RunConfig


def check_trained_on(run: RunConfig, dataset: DetectionDataset) -> None:
    """Compares the classes that a run was trained on with those of its data now; ids that have changed are a
    line on stderr.

    Raises:
      DataError: other classes, or the same in another order: weights would get another class's name.
    """
    exchange.from_main(lambda: _check(run, dataset), "trained on")


def _check(run: RunConfig, dataset: DetectionDataset) -> None:
    if not goes_on(run):
        return
    classes = load_config(run.folder)[1]
    notes = check_same_names(classes, dataset.classes, what="class", run=run.folder)
    ids = load_category_ids(run.folder, classes)
    rows = zip(dataset.classes, ids, dataset.category_ids, strict=True)
    changed = [f"{printable(name)} {before} (now {now})" for name, before, now in rows if before != now]
    if changed:
        more = f" and {len(changed) - 6} more" if len(changed) > 6 else ""
        notes.append(f"until here the run's file had the category ids {', '.join(changed[:6])}{more}")
    warn_of(notes)
