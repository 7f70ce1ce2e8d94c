"""What somebody watching sees: a bar on a terminal, a line a log point elsewhere."""

import contextlib
import datetime
from collections.abc import Callable, Iterator

import rich.console
import rich.progress


@contextlib.contextmanager
def show_progress(
    step: int, steps: int, *, batch_size: int, console: rich.console.Console | None = None
) -> Iterator[Callable[[int, dict], None]]:
    """Gives `show(step, values)`, which reads `loss` and, when there, `images_per_second`."""
    console = console or rich.console.Console()
    if not console.is_terminal:
        yield lambda step, values: print(
            f"step {step}/{steps}  {_numbers(values)}{_remaining(steps - step, batch_size, values)}",
            file=console.file,
            flush=True,
        )
        return
    columns = rich.progress
    with columns.Progress(
        columns.TextColumn("training"),
        columns.BarColumn(),
        columns.MofNCompleteColumn(),
        columns.TextColumn("{task.fields[numbers]}"),
        columns.TextColumn("ETA"),
        columns.TimeRemainingColumn(),
        console=console,
    ) as bar:
        task = bar.add_task("training", total=steps, completed=step, numbers="compiling")
        yield lambda step, values: bar.update(task, completed=step, numbers=_numbers(values))


def _numbers(values: dict) -> str:
    loss = f"loss {float(values['loss']):.4g}"
    if "images_per_second" not in values:
        return loss
    speed = float(values["images_per_second"])
    share = (
        f"  {values['tflops_per_device']:,.3g} TFLOP/s a chip, MFU {values['mfu']:.1%}"
        if "mfu" in values
        else ""
    )
    return f"{loss}  {speed:,.{0 if speed >= 100 else 1}f} images/s{share}"


def _remaining(steps: int, batch_size: int, values: dict) -> str:
    if "images_per_second" not in values:
        return ""
    seconds = steps * batch_size / float(values["images_per_second"])
    return f"  ETA {datetime.timedelta(seconds=round(seconds))}"
