"""Scores a trained pose run: on the people that it was validated on, or on any others.

    hardmine pose evaluate RUN                                          # its own validation split
    hardmine pose evaluate RUN --annotations test.json --images DIR     # everybody in a COCO keypoint file
    hardmine pose evaluate RUN --dataset lspet --data-dir DIR           # another dataset's validation split

Keypoints are matched by name, whatever their order; those that only one side has are named and not scored.
Boxes and OKS are over the matched ones, with the sigmas of the data. Crops, flip test and decoding are those
of the training.

The folder RUN/evaluations/<data>_<checkpoint> gets result.json (what training writes there, and under
"evaluation" what was scored), report.html and keypoints.json: COCO results with the ids of the data, a person
of the ground truth each, all keypoints of the data in its order, zeros for what the run does not know. The
same command writes over its own results; others get a folder with _2, _3 ... after it, and an --output with
something else in it is refused.
"""

import dataclasses
import pathlib
import sys
from collections.abc import Sequence
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import rich
import tyro

from hardmine_jax.data import coco_download
from hardmine_jax.data.images import Orientation
from hardmine_jax.data.pose.records import PoseDataset
from hardmine_jax.data.problems import DataError
from hardmine_jax.data.records import Records
from hardmine_jax.pose import Skeleton
from hardmine_jax.tasks.config_json import change, plain, write_json
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
)
from hardmine_jax.tasks.exit_codes import run_to_exit_code
from hardmine_jax.tasks.facts import data_files, run_facts
from hardmine_jax.tasks.flags import check_numbers, warn_of, warn_skipped
from hardmine_jax.tasks.names import Matched, describe_unmatched, match_names
from hardmine_jax.tasks.phases import phase
from hardmine_jax.tasks.pose import pictures, report
from hardmine_jax.tasks.pose.config import Config, TrainedRun, build, check_scoring, load_run
from hardmine_jax.tasks.pose.datasets import DATASETS, check_download, load_dataset
from hardmine_jax.tasks.pose.evaluation import Evaluator
from hardmine_jax.tasks.pose.facts import category_names, count_scored, note_few_people
from hardmine_jax.tasks.pose.matched import (
    MatchedPeople,
    common_skeleton,
    in_dataset_order,
    matched_predict,
    matched_protocol,
)
from hardmine_jax.tasks.pose.people import People, mean_pose_of, place_pose
from hardmine_jax.tasks.pose.protocol import prepare_protocol, score_heads, score_protocol
from hardmine_jax.tasks.pose.results import coco_results, ids_of
from hardmine_jax.tasks.pose.score import COCO_PEOPLE, mean_oks, note_crowded, pck, score
from hardmine_jax.tasks.rows import evenly_spaced

_DATA = ("dataset", *sorted({name for row in DATASETS.values() for name in row.flags}))


@dataclasses.dataclass(frozen=True)
class EvaluateConfig:
    """Scores a trained run.

    Attributes:
      run: the workdir of a training run, or one checkpoint in it.
      dataset: what to score, by default what the run was trained on, or coco where --annotations is given.
      data_dir: folder of the dataset, as in training.
      annotations: COCO keypoint JSON, all of which is scored.
      images: folder that the JSON's file names are relative to.
      download: COCO 2017 (20 GB, 60 GB in the end) without being asked, where it is to be scored.
      category: which category of the JSON, by name or id, if several have keypoints; or several, or all.
      sigmas: OKS constants, one a keypoint of the JSON, over its own.
      exif_orientation: how the JSON counts the pixels of photographs that EXIF turns, as in training.
      point_side: pixels of the square around somebody who is one point and has no box, as in training.
      which: of the run's checkpoints.
      split: which part of the data; by default all of a JSON given by --annotations, else the validation
        split.
      max_people: of an image so many people count in AP and AR, over the training's.
      boxes: COCO results JSON of a person detector: scored by COCO's procedure on these, too; boxes of other
        categories than the one that is scored are left out.
      box_category: which of the boxes are of that category where the detector numbers or names it otherwise.
      box_min_score: boxes with a lower score are left out; by default all are taken.
      flip_test: over the training's.
      decode: over the training's.
      batch_size: by default the training's.
      output: folder for the results.
      cache_dir: where prepared data lies; by default where the run had it.
    """

    run: Annotated[pathlib.Path, tyro.conf.Positional]
    dataset: Literal["synthetic", "lspet", "coco", "mpii"] | None = None
    data_dir: pathlib.Path | None = None
    annotations: pathlib.Path | None = None
    images: pathlib.Path | None = None
    download: bool = False
    category: str | tuple[str, ...] | None = None
    sigmas: tuple[float, ...] | None = None
    exif_orientation: Orientation | None = None
    point_side: float | None = None
    which: Literal["best", "latest"] = "best"
    split: Split | None = None
    max_people: int | None = None
    boxes: pathlib.Path | None = None
    box_category: str | None = None
    box_min_score: float | None = None
    flip_test: bool | None = None
    decode: Literal["dark", "quarter", "argmax"] | None = None
    batch_size: int | None = None
    output: pathlib.Path | None = None
    cache_dir: pathlib.Path | None = None


class Data(NamedTuple):
    """What is scored.

    Attributes:
      config: the run's, with the flags of the data; split: of the dataset that they name.
      name: of the folder, and for people.
      whole: all of the COCO file in `config.annotations`.
    """

    config: Config
    split: Split
    name: str
    whole: bool


def find_data(given: EvaluateConfig, trained: Config) -> Data:
    """What the flags, or else the run's own, come to.

    Raises:
      DataError: boxes of another split than they can be scored on.
    """
    config, changed = scored_data(given, trained, _DATA)
    # What a run was measured by in training is asked for anew.
    asked = {name: getattr(given, name) for name in ("boxes", "box_category", "box_min_score", "download")}
    asked["max_people"] = trained.max_people if given.max_people is None else given.max_people
    config = change(config, **asked, cache_dir=given.cache_dir or trained.run.cache_dir)
    check_scoring(config)
    split = given.split or ("validation" if given.annotations is None else "all")
    # Of one file: --split all of a run with a second one is both.
    whole = split == "all" and given.annotations is not None
    if changed and split == "validation" and _is_official(config):
        # Without its images to train on.
        config, split, whole = _val2017(config), "all", True
    if given.boxes is not None and split != "validation" and not whole:
        raise DataError(f"boxes are for validation images, not for the split {split}: drop one of the two")
    if whole:
        warn_of_own(trained.annotations, config.annotations)
        # All listed images may have boxes on them, those without people too.
        config = dataclasses.replace(config, validation_annotations=None, validation_images=None)
    return Data(config, split, _name(config, split, whole=whole), whole)


def _is_official(config: Config) -> bool:
    return config.dataset == "coco" and config.annotations is None and config.images is None


def _val2017(config: Config) -> Config:
    if config.data_dir is None:
        check_download(config.run.cache_dir, allowed=config.download)
    folder = config.data_dir or coco_download.download(cache_dir=config.run.cache_dir)
    folder = pathlib.Path(folder).expanduser()
    return dataclasses.replace(
        config,
        annotations=folder / "annotations" / "person_keypoints_val2017.json",
        images=folder / "val2017",
        category="person",
        exif_orientation="stored",
        data_dir=None,
        download=False,
    )


def _name(config: Config, split: Split, *, whole: bool) -> str:
    """Of the data, as a part of a folder's name."""
    if _is_official(config):
        name = "coco2017"
    elif config.dataset != "coco":
        name = config.dataset
    elif split == "validation" and config.validation_annotations is not None:
        name = config.validation_annotations.stem
    else:
        name = config.annotations.stem if config.annotations else config.dataset
    return name if whole or split == "validation" else f"{name}_{split}"


def evaluate(given: EvaluateConfig) -> dict[str, Any]:
    """Scores, and writes the folder; what result.json holds.

    Raises:
      DataError: no such run or data, no keypoint in common, or a folder that holds something else.
      CheckpointError: no checkpoint that can be read.
    """
    check_numbers(given)
    trained = _load(given)
    data = find_data(given, trained.config)
    script = "hardmine pose train"
    folder, settings = place_evaluation(given, data.name, step=trained.step, script=script)
    shard = whole_batches(given.batch_size, trained.config.run)
    with phase("preparing the data", "prepared the data"):
        dataset = load_dataset(data.config)
    warn_skipped(dataset.skipped)
    matched = match_names(trained.skeleton.names, dataset.skeleton.names, what="keypoint")
    notes = describe_unmatched(matched, what="keypoint")
    warn_of(notes)
    seen = see_through(trained.skeleton, dataset, matched, source_of(dataset, data.split))
    parallel = make_parallel(trained.config.run)
    evaluator = Evaluator(
        seen,
        parallel.evaluate_step(matched_predict(trained.predict, matched)),
        shard=shard,
        size=trained.config.image_size,
        padding=trained.config.augment.padding,
        num_people=1,
        max_people=data.config.max_people or COCO_PEOPLE,
    )
    weights = parallel.put_state(trained.variables)
    max_people = data.config.max_people or COCO_PEOPLE
    with phase(f"evaluating {len(seen.validation):,} examples", "evaluated them"):
        people, keypoints, scores = evaluated = evaluator.run(weights)
    result = score(keypoints, scores, people, seen.skeleton, max_people=max_people)
    result |= _by_protocol(data, dataset, seen, matched, evaluator, weights, evaluated)
    if data.split == "validation" and len(dataset.train):
        train = see_through(trained.skeleton, dataset, matched, dataset.train).validation
        result["mean_pose_pck"] = pck(place_pose(mean_pose_of(train), people), people)
    result |= {
        "steps": trained.step,
        "people": len(people.names),
        "scored_on": f"{len(people.names):,} subjects of {data.name}",
        "evaluation": evaluation_entry(settings, data.name, data.split, seen.skeleton.names, matched),
    }
    write_json(folder / "result.json", result)
    found = coco_results(people, in_dataset_order(_triples(keypoints, scores), matched,
                         dataset.skeleton.num_keypoints), scores, ids_of(data.config))  # fmt: skip
    write_results(folder, "keypoints.json", found)
    crowded = note_crowded(people, max_people=max_people)
    warn_of(crowded)
    notes += crowded + note_few_people(keypoints, people)
    notes += [dataset.skipped.report()] if dataset.skipped else []
    facts = run_facts(
        files=data_files(data.config),
        categories=category_names(data.config, dataset),
        counts=[("scored", count_scored(people))],
    )
    write_report(folder, trained, seen.skeleton, evaluator, (people, keypoints), result, notes, facts)
    rich.print(report.result_table(result))
    print(f"wrote {folder / 'report.html'} (open it in a browser), result.json and keypoints.json beside it")
    return result


def _load(given: EvaluateConfig) -> TrainedRun:
    """The run, predicting as it did in training but for what the flags change."""
    trained = load_run(given.run, which=given.which)
    changes = {name: getattr(given, name) for name in ("flip_test", "decode")}
    changes = {name: value for name, value in changes.items() if value is not None}
    if not changes:
        return trained
    config = dataclasses.replace(trained.config, **changes)
    return trained._replace(config=config, predict=build(config, trained.skeleton).predict)


def see_through(skeleton: Skeleton, dataset: PoseDataset, matched: Matched, source: Records) -> PoseDataset:
    """The dataset with the matched keypoints, and `source` to validate on."""
    return dataclasses.replace(
        dataset,
        skeleton=common_skeleton(skeleton, dataset.skeleton, matched),
        validation=MatchedPeople(source, matched),
    )


def _by_protocol(
    data: Data,
    dataset: PoseDataset,
    seen: PoseDataset,
    matched: Matched,
    evaluator: Evaluator,
    weights: dict,
    evaluated: tuple[People, np.ndarray, np.ndarray],
) -> dict[str, Any]:
    """`detections` and `pckh`, where there are boxes and heads."""
    config = data.config
    if data.whole:
        config = dataclasses.replace(
            config, validation_annotations=config.annotations, validation_images=config.images
        )
    shown = dataclasses.replace(dataset, validation=source_of(dataset, data.split))
    protocol = prepare_protocol(config, shown)
    heads, protocol = protocol.heads, matched_protocol(protocol._replace(heads=None), matched)
    result = score_protocol(protocol, config, seen, evaluator, weights, evaluated)
    if heads is not None and data.split == "validation":
        if matched.left_out_theirs:
            print("note: no PCKh, which is over all of MPII's joints", file=sys.stderr)
        else:
            people, keypoints, _ = evaluated
            whole = in_dataset_order(keypoints, matched, dataset.skeleton.num_keypoints)
            result["pckh"] = score_heads(whole, people.annotation_id, heads)
    return result


def _triples(keypoints: np.ndarray, scores: np.ndarray) -> np.ndarray:
    return np.concatenate([keypoints, scores[..., None]], axis=-1, dtype=np.float64)


def write_report(
    folder: pathlib.Path,
    trained: TrainedRun,
    skeleton: Skeleton,
    evaluator: Evaluator,
    evaluated: tuple[People, np.ndarray],
    result: dict[str, Any],
    notes: Sequence[str],
    facts: Sequence[tuple[str, str]],
) -> pathlib.Path:
    """report.html with pictures of some people, and of those that went worst."""
    people, keypoints = evaluated
    labelled = np.flatnonzero(people.labelled.any(1))
    order = np.argsort(mean_oks(keypoints, people, skeleton)[labelled], kind="stable")
    hardest, typical = (
        evaluator.pictures(people, keypoints, rows)
        for rows in (labelled[order][:8], labelled[evenly_spaced(len(labelled), 12)])
    )
    return report.write_report(
        folder / "report.html",
        title=f"{trained.config.run.folder.name} on {result['evaluation']['data']}",
        config=plain(trained.config) | {"evaluation": result["evaluation"]},
        result=result,
        # Without curves: nothing was trained.
        pictures=pictures.report_pictures([], result, skeleton, hardest, typical)[1:],
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
