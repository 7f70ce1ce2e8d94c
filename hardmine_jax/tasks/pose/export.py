"""A trained pose network as one file that runs with jax and numpy alone.

    hardmine pose export WORKDIR --output pose.jaxexport              # any batch, for here
    hardmine pose export WORKDIR --batch 8 --platforms cpu cuda tpu   # batches of 8, anywhere

The file holds the weights of the best checkpoint of a `hardmine pose train` run and everything after them:
from uint8 crops to keypoints, with the flip test and the decoding that the run evaluates by. Beside it
`pose.json` tells what goes in and comes out. To use it:

    import jax, jax.export, pathlib
    predict = jax.jit(jax.export.deserialize(pathlib.Path("pose.jaxexport").read_bytes()).call)
    keypoints, scores = predict(crops)        # uint8 [B, H, W, 3] RGB -> [B, K, 2] crop pixels, [B, K]

That needs jax and the package flatbuffers. A crop is the person's box, its shorter side drawn out to the
aspect of the crop, both sides times `padding`; keypoints are (x, y), the centre of the crop's first pixel is
0. What jax promises: a file is read by releases up to 6 months younger than the one that wrote it. Writing
takes seconds, and the chosen platforms need not be there.
"""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Annotated, Literal

import jax.export
import jax.numpy as jnp
import tyro

from hardmine_jax.errors import UserError
from hardmine_jax.tasks.config_json import write_json
from hardmine_jax.tasks.exit_codes import run_to_exit_code
from hardmine_jax.tasks.flags import check_numbers
from hardmine_jax.tasks.pose.config import TrainedRun, load_run


@dataclasses.dataclass(frozen=True)
class ExportConfig:
    """Writes a trained network as a file that runs without this package.

    Attributes:
      checkpoint: the workdir of a training run, or one checkpoint in it.
      output: the file; its description is written beside it, with the ending .json.
      batch: crops a call: a number, or "any".
      platforms: that the file will run on; by default the one of this machine.
    """

    checkpoint: Annotated[pathlib.Path, tyro.conf.Positional]
    output: pathlib.Path = pathlib.Path("pose.jaxexport")
    batch: str = "any"
    platforms: tuple[Literal["cpu", "cuda", "rocm", "tpu"], ...] = ()


def export(
    run: TrainedRun, *, batch: int | None = None, platforms: Sequence[str] = ()
) -> jax.export.Exported:
    """The network with its weights: uint8 [B, H, W, 3] -> (keypoints [B, K, 2] crop pixels, scores [B, K]).

    Args:
      run: its decoding and flip test are part of what is exported.
      batch: B; None for any.
      platforms: as `ExportConfig` has them; none for the one of this machine.
    """
    variables = jax.tree.map(jnp.asarray, run.variables)

    def from_crops(images: jax.Array) -> tuple[jax.Array, jax.Array]:
        found = run.predict(variables, images)
        return found["keypoints"], found["scores"]

    sizes = jax.export.symbolic_shape("batch") if batch is None else (batch,)
    images = jax.ShapeDtypeStruct((*sizes, *run.config.image_size, 3), jnp.uint8)
    return jax.export.export(jax.jit(from_crops), platforms=tuple(platforms) or None)(images)


def describe(run: TrainedRun, exported: jax.export.Exported, batch: int | None) -> dict:
    """What a caller must know, JSON-able."""
    config, skeleton = run.config, run.skeleton
    height, width = config.image_size
    return {
        "input": {"shape": [batch, height, width, 3], "dtype": "uint8", "channels": "RGB, 0 to 255"},
        "output": {
            "keypoints": "float32 [B, K, 2], (x, y) in pixels of the crop, centre of its first pixel 0",
            "scores": "float32 [B, K], height of the heatmap, about 0 to 1",
        },
        "crop": {"height": height, "width": width, "padding": config.augment.padding},
        "keypoints": list(skeleton.names),
        "edges": [list(edge) for edge in skeleton.edges],
        "flip_pairs": [list(pair) for pair in skeleton.flip_pairs],
        "categories": [category._asdict() for category in run.categories],
        "platforms": list(exported.platforms),
        "jax": jax.__version__,
        "trained": {
            "model": config.model, "dataset": config.dataset, "flip_test": config.flip_test,
            "decode": config.decode,
        },
    }  # fmt: skip


def run(config: ExportConfig) -> None:
    """Reads the run, writes the two files."""
    check_numbers(config)
    batch = _batch(config.batch)
    if not config.output.name:
        raise UserError(f"--output {config.output} is a folder: name a file")
    if config.output.suffix == ".json":
        raise UserError(f"--output {config.output}: the description is written there, give another ending")
    trained = load_run(config.checkpoint)
    exported = export(trained, batch=batch, platforms=config.platforms)
    config.output.parent.mkdir(parents=True, exist_ok=True)
    content = exported.serialize()
    # Renamed into place: a program that reads it meanwhile meets the old file or the new one, whole.
    temporary = config.output.with_name(f"{config.output.name}.new")
    temporary.write_bytes(content)
    temporary.replace(config.output)
    description = config.output.with_suffix(".json")
    write_json(description, describe(trained, exported, batch))
    what = f"{len(content) / 1e6:.1f} MB, {', '.join(exported.platforms)}"
    print(f"wrote {config.output} ({what}) and {description}")


def _batch(given: str) -> int | None:
    if given == "any":
        return None
    if not given.isdecimal() or len(given) > 6 or int(given) < 1:
        raise UserError(f"--batch {given} must be a number of crops, 1 to 999999, or any")
    return int(given)


def parse(arguments: Sequence[str] | None = None, *, prog: str | None = None) -> ExportConfig:
    """The command line."""
    return tyro.cli(ExportConfig, prog=prog, args=arguments, description=__doc__)


def main(arguments: Sequence[str] | None = None, *, prog: str | None = None) -> int:
    """0, or 2 after one line about what is wrong."""
    config = parse(arguments, prog=prog)
    return run_to_exit_code(lambda: run(config))
