"""Scores a trained detection run: on the images that it was validated on, or on any others.

    hardmine detection evaluate RUN                                        # its own validation split
    hardmine detection evaluate RUN --annotations test.json --images DIR   # all of a COCO detection file
    hardmine detection evaluate RUN --dataset voc --data-dir DIR --validation-split test

Classes are matched by name, whatever their order and ids. Those that only one side has are named and left
out: what is found of a class that the data does not have is dropped, objects of a class that the run does not
know need not be found. Proposals, sizes and suppression are those of the training.

The folder RUN/evaluations/<data>_<checkpoint> gets result.json (what training writes there, and under
"evaluation" what was scored), report.html and detections.json: COCO results with the ids of the data, or
where that has none those that the run was trained on. The same command writes over its own results; others
get a folder with _2, _3 ... after it, and an --output with something else in it is refused.
"""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import rich
import tyro

from hardmine_jax.data import coco_json
from hardmine_jax.data.detection import coco, voc
from hardmine_jax.data.detection.proposals import prepare
from hardmine_jax.data.detection.records import DetectionDataset
from hardmine_jax.data.detection.voc_xml import Corners
from hardmine_jax.data.images import Orientation
from hardmine_jax.data.records import Records
from hardmine_jax.detection import AveragePrecision
from hardmine_jax.tasks.config_json import change, plain, write_json
from hardmine_jax.tasks.detection import pictures, report
from hardmine_jax.tasks.detection.config import Config, TrainedRun, build, load_run, many_objects
from hardmine_jax.tasks.detection.datasets import DATASETS, load_dataset, voc_reading
from hardmine_jax.tasks.detection.evaluation import (
    Batching,
    Evaluated,
    Evaluator,
    count_mistakes,
    count_wanted,
    curves,
    score,
    voc_precision,
)
from hardmine_jax.tasks.detection.facts import count_scored, note_few_images
from hardmine_jax.tasks.detection.matched import MatchedObjects, matched_predict
from hardmine_jax.tasks.evaluations import (
    Split,
    evaluation_entry,
    make_parallel,
    place_evaluation,
    scored_data,
    source_of,
    warn_of_own,
    whole_batches,
    write_results,
    written_image_ids,
)
from hardmine_jax.tasks.exit_codes import run_to_exit_code
from hardmine_jax.tasks.facts import data_files, run_facts
from hardmine_jax.tasks.flags import check_numbers, warn_of, warn_skipped
from hardmine_jax.tasks.names import Matched, describe_unmatched, match_names
from hardmine_jax.tasks.phases import phase
from hardmine_jax.tasks.rows import evenly_spaced

_DATA = ("dataset", *sorted({name for row in DATASETS.values() for name in row.flags}))


@dataclasses.dataclass(frozen=True)
class EvaluateConfig:
    """Scores a trained run.

    Attributes:
      run: the workdir of a training run, or one checkpoint in it.
      dataset: what to score, by default what the run was trained on, or coco where --annotations is given.
      data_dir: folder of voc.
      train_split: which ImageSets/Main/*.txt of voc was trained on, for --split train.
      validation_split: which one is scored; val by default.
      voc_corners, exif_orientation: how the boxes count, see hardmine detection train.
      annotations: COCO detection JSON, all of which is scored.
      images: folder that the JSON's file names are relative to.
      which: of the run's checkpoints.
      split: which part of the data; by default all of a JSON given by --annotations, and of a voc folder that
        is given by --dataset and has no lists, else the validation split.
      batch_size: by default the training's.
      max_detections: an image, by default the training's; COCO's scores are by so many, but not by fewer than
        the 100 that are its rule.
      output: folder for the results.
      cache_dir: where prepared data lies; by default where the run had it.
    """

    run: Annotated[pathlib.Path, tyro.conf.Positional]
    dataset: Literal["synthetic", "voc", "coco"] | None = None
    data_dir: pathlib.Path | None = None
    train_split: str | None = None
    validation_split: str | None = None
    voc_corners: Corners | None = None
    exif_orientation: Orientation | None = None
    annotations: pathlib.Path | None = None
    images: pathlib.Path | None = None
    which: Literal["best", "latest"] = "best"
    split: Split | None = None
    batch_size: int | None = None
    max_detections: int | None = None
    output: pathlib.Path | None = None
    cache_dir: pathlib.Path | None = None


class Data(NamedTuple):
    """What is scored.

    Attributes:
      config: the run's, with the flags of the data; split: of the dataset that they name.
      name: of the folder, and for people.
      is_list: of a voc folder its validation list, or all of it, without the images to train on.
    """

    config: Config
    split: Split
    name: str
    is_list: bool = False


def find_data(given: EvaluateConfig, trained: Config) -> Data:
    """What the flags, or else the run's own, come to."""
    config, changed = scored_data(given, trained, _DATA)
    config = change(config, cache_dir=given.cache_dir or trained.run.cache_dir)
    split = given.split or ("validation" if given.annotations is None else "all")
    if config.dataset == "voc" and changed and split == "validation":
        listed = config.validation_split or "val"
        if config.data_dir is not None and (config.data_dir.expanduser() / "ImageSets" / "Main").is_dir():
            return Data(config, "all", f"voc_{listed}", True)
        if given.dataset is not None and given.split is None:
            warn_of_own(trained.data_dir, config.data_dir)
            return Data(config, "all", "voc", True)
    if changed and split == "all":
        warn_of_own(trained.annotations, config.annotations)
    return Data(config, split, _name(config, split, changed=changed))


def _name(config: Config, split: Split, *, changed: bool) -> str:
    """Of the data, as a part of a folder's name."""
    name: str = config.dataset
    if config.dataset == "coco" and config.annotations is not None:
        apart = config.validation_annotations if split == "validation" else None
        name = (apart or config.annotations).stem
    whole = changed and config.dataset == "coco" and split == "all"
    return name if whole or split == "validation" else f"{name}_{split}"


def load_data(data: Data) -> DetectionDataset:
    """The dataset, prepared.

    Raises:
      DataError: there is no such data.
      UserError: a flag that it does not use.
    """
    config = data.config
    if not data.is_list:
        return load_dataset(config)
    listed = config.validation_split or "val"
    reading, cache = voc_reading(config), config.run.cache_dir
    return voc.load(config.data_dir, train=listed, validation=None, **reading, cache_dir=cache)


def evaluate(given: EvaluateConfig) -> dict[str, Any]:
    """Scores, and writes the folder; what result.json holds.

    Raises:
      DataError: no such run or data, no class in common, or a folder that holds something else.
      CheckpointError: no checkpoint that can be read.
    """
    check_numbers(given)
    trained = load_run(given.run, which=given.which, max_detections=given.max_detections)
    data = find_data(given, trained.config)
    script = "hardmine detection train"
    folder, settings = place_evaluation(given, data.name, step=trained.step, script=script)
    with phase("preparing the data", "prepared the data"):
        dataset = load_data(data)
    warn_skipped(dataset.skipped)
    matched = match_names(trained.classes, dataset.classes, what="class")
    notes = describe_unmatched(matched, what="class")
    warn_of(notes)
    seen = see_through(trained.classes, dataset, matched, source_of(dataset, data.split))
    batching = make_batching(given, trained.config, dataset)
    evaluator, weights = make_evaluator(trained, seen, matched, batching, cache_dir=data.config.run.cache_dir)
    with phase(f"evaluating {len(seen.validation):,} images", "evaluated them"):
        evaluated = evaluator.run(weights)
    measured = voc_precision(evaluated, seen.classes)
    result = score(evaluated, measured, max_detections=trained.config.max_detections) | {
        "proposal_recall": evaluator.recall(evaluated),
        "steps": trained.step,
        "images": len(evaluated.rows),
        "scored_on": f"{len(evaluated.rows):,} images of {data.name}",
        "evaluation": evaluation_entry(settings, data.name, data.split, seen.classes, matched),
    }
    write_json(folder / "result.json", result)
    image_ids = [int(seen.validation[int(row)]["image_id"]) for row in evaluated.rows]
    found = coco_results(evaluated, image_ids, seen.classes, *_ids(data, dataset, trained, matched))
    write_results(folder, "detections.json", found)
    most = max(map(count_wanted, evaluated.truth), default=0)
    crowded = many_objects(most, trained.config)
    warn_of(crowded)
    notes += crowded
    if dataset.skipped.reasons or dataset.skipped.noted:
        notes.append(dataset.skipped.report())
    if result["classes_without_objects"]:
        notes.append(
            f"not in the mean, since no image has them: {', '.join(result['classes_without_objects'])}"
        )
    facts = run_facts(
        files=data_files(data.config), categories=seen.classes, counts=[("scored", count_scored(evaluated))]
    )
    notes += note_few_images(evaluated, seen.classes)
    write_report(folder, trained, evaluator, evaluated, measured, result, notes, facts)
    rich.print(report.result_table(result))
    print(f"wrote {folder / 'report.html'} (open it in a browser), result.json and detections.json beside it")
    return result


def make_batching(given: EvaluateConfig, config: Config, dataset: DetectionDataset) -> Batching:
    """How the images become batches, as in training."""
    short_side = max(config.augment.short_sides, default=None)
    shard = whole_batches(given.batch_size, config.run)
    counts = [source.objects_per_image for source in (dataset.train, dataset.validation)]
    most = int(np.concatenate(counts).max(initial=1))
    return Batching(shard, config.image_size, most, config.search.max_proposals, short_side)


class Seen(NamedTuple):
    """A dataset as far as it is scored: the matched classes, in the run's words, and the records."""

    classes: tuple[str, ...]
    validation: Records


def see_through(classes: Sequence[str], dataset: DetectionDataset, matched: Matched, source: Records) -> Seen:
    """The records of `source`, labelled with the matched classes."""
    objects = MatchedObjects(source, matched, len(dataset.classes))
    return Seen(tuple(classes[place] for place in matched.ours), objects)


def make_evaluator(
    trained: TrainedRun,
    seen: Seen,
    matched: Matched,
    batching: Batching,
    *,
    cache_dir: pathlib.Path | None,
) -> tuple[Evaluator, dict]:
    """With the proposals of the images, which are searched where they were not before; and placed weights."""
    proposals = prepare(seen.validation, trained.config.search, cache_dir=cache_dir)
    warn_skipped(proposals.skipped)
    predict = trained.predict
    if matched.left_out:
        labels = tuple(place + 1 for place in matched.ours)
        predict = build(trained.config, len(trained.classes), labels=labels).of_run.predict
    parallel = make_parallel(trained.config.run)
    predict = parallel.evaluate_step(matched_predict(predict, matched, len(trained.classes)))
    evaluator = Evaluator(seen, proposals, predict, batching=batching, num_images=1)
    return evaluator, parallel.put_state(trained.variables)


def _ids(
    data: Data, dataset: DetectionDataset, trained: TrainedRun, matched: Matched
) -> tuple[Mapping[int | None, Any], Sequence[Any]]:
    """Image ids as the COCO file has them by those of the records, and the id of each matched class: in the
    file that is scored; data that has no ids of its own gets those that the run was trained on."""
    config = data.config
    if config.dataset != "coco":
        return {}, [trained.category_ids[place] for place in matched.ours]
    files = [coco_json.load_file(config.annotations, config.images)]
    if config.validation_annotations is not None:
        files.append(
            coco_json.load_file(config.validation_annotations, config.validation_images or config.images)
        )
    scored = files[-1] if data.split == "validation" else files[0]
    ids = {**coco.categories(files[0]), **coco.categories(scored)}
    return written_image_ids(files), [ids[dataset.classes[place]] for place in matched.theirs]


def coco_results(
    evaluated: Evaluated,
    image_ids: Sequence[int],
    classes: Sequence[str],
    original_ids: Mapping[int | None, Any],
    category_ids: Sequence[Any],
) -> list[dict[str, Any]]:
    """COCO detection results, an entry a detection.

    Args:
      image_ids: of the records, one an image; original_ids: the file's by these, a record's own where there
        is none.
      category_ids: one a class.
    """
    results = []
    for name, image_id, found in zip(evaluated.names, image_ids, evaluated.found, strict=True):
        for (x1, y1, x2, y2), score_, label in zip(*found, strict=True):
            results.append(
                {
                    "image_id": original_ids.get(image_id, image_id),
                    "file_name": name,
                    "category_id": category_ids[int(label) - 1],
                    "category": classes[int(label) - 1],
                    "bbox": [round(float(side), 3) for side in (x1, y1, x2 - x1, y2 - y1)],
                    "score": float(score_),
                }
            )
    return results


def write_report(
    folder: pathlib.Path,
    trained: TrainedRun,
    evaluator: Evaluator,
    evaluated: Evaluated,
    measured: AveragePrecision,
    result: Mapping[str, Any],
    notes: Sequence[str],
    facts: Sequence[tuple[str, str]],
) -> pathlib.Path:
    """report.html with pictures of some images, and of those with most mistakes."""
    mistakes = [
        count_mistakes(found, truth) for found, truth in zip(evaluated.found, evaluated.truth, strict=True)
    ]
    hardest = np.argsort(-np.array(mistakes), kind="stable")[:6]
    drawn = pictures.report_pictures(
        [],
        result,
        [row.name for row in measured.classes],
        curves=curves(measured),
        mined=[],
        typical=evaluator.pictures(evaluated, evenly_spaced(len(evaluated.rows), 9)),
        hardest=evaluator.pictures(evaluated, hardest),
    )
    return report.write_report(
        folder / "report.html",
        title=f"{trained.config.run.folder.name} on {result['evaluation']['data']}",
        config=plain(trained.config) | {"evaluation": result["evaluation"]},
        result=result,
        # Without curves: nothing was trained.
        pictures=drawn[1:],
        notes=notes,
        facts=facts,
    )


def parse(arguments: Sequence[str] | None = None, *, prog: str | None = None) -> EvaluateConfig:
    """The command line."""
    return tyro.cli(EvaluateConfig, prog=prog, args=arguments, description=__doc__)


def main(arguments: Sequence[str] | None = None, *, prog: str | None = None) -> int:
    """0, or 2 after one line about what is wrong."""
    given = parse(arguments, prog=prog)
    return run_to_exit_code(lambda: evaluate(given))
