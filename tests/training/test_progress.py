import io

import rich.console

from hardmine_jax.training.progress import show_progress


def run(**console):
    out = io.StringIO()
    console = rich.console.Console(file=out, width=120, **console)
    with show_progress(0, 10, batch_size=4, console=console) as show:
        show(1, {"loss": 0.25})
        show(5, {"loss": 0.125, "images_per_second": 2.0})
    return out.getvalue()


def test_plain_lines_when_nobody_watches():
    assert run(force_terminal=False).splitlines() == [
        "step 1/10  loss 0.25",
        "step 5/10  loss 0.125  2.0 images/s  ETA 0:00:10",
    ]


def test_bar_on_a_terminal():
    said = run(force_terminal=True)
    assert "5/10" in said and "loss 0.125  2.0 images/s" in said and "ETA" in said
