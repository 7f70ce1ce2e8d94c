"""A report opened in a real browser: no console message, every picture loaded and legible, no blank page."""

import pathlib
import re
import shutil
import subprocess

import cv2
import numpy as np
import pytest

from hardmine_jax.pose import Skeleton
from hardmine_jax.tasks.pose import pictures as pose_pictures
from hardmine_jax.tasks.pose import report as pose_report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium here (Debian: apt-get install chromium)"
)

SKELETON = Skeleton(
    ("head", "left_hand", "right_hand", "<i>tail</i>"), ((1, 2),), (0.05,) * 4, ((0, 1), (0, 2), (0, 3))
)
# Runs in a copy of the page only: writes what the browser made of the pictures where --dump-dom shows it.
PROBE = """<script>addEventListener("load", () => {
  const sizes = [...document.images].map(
    image => [image.complete, image.naturalWidth, Math.round(image.getBoundingClientRect().width)].join(","));
  document.body.dataset.images = sizes.join(";");
  document.body.dataset.wide = document.documentElement.scrollWidth - document.documentElement.clientWidth;
  document.body.dataset.high = document.documentElement.scrollHeight;
  document.body.dataset.font = getComputedStyle(document.querySelector("td")).fontSize;
});</script></body>"""


def _chromium(folder: pathlib.Path, *arguments: str) -> subprocess.CompletedProcess:
    quiet = "gpu quic background-networking component-update sync"
    switches = ["--headless", "--no-sandbox", "--no-first-run", "--enable-logging=stderr", "--v=0"]
    switches += [f"--disable-{name}" for name in quiet.split()] + [f"--user-data-dir={folder / 'profile'}"]
    done = subprocess.run(
        [CHROMIUM, *switches, *arguments], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done


def _probe(folder: pathlib.Path, page: str, width: int) -> dict[str, str]:
    # The page's own policy forbids scripts, the probe's too.
    open_page = re.sub(r'<meta http-equiv="Content-Security-Policy".*?>', "", page, flags=re.DOTALL)
    copy = folder / "probe.html"
    copy.write_text(open_page.replace("</body>", PROBE), encoding="utf-8")
    dom = _chromium(folder, f"--window-size={width},2000", "--dump-dom", copy.as_uri()).stdout
    return dict(re.findall(r'data-(\w+)="([^"]*)"', dom))


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> pathlib.Path:
    rng = np.random.default_rng(0)
    lines = [
        {"step": step, "loss": 1 / step, "learning_rate": 1e-3, "unit_rate": list(rng.random(4))}
        | {"fraction_kept": 0.5, "loss_captured": 0.8, "entropy": 1.2}
        for step in range(1, 200)
    ]
    lines += [{"step": step, "validation/pck": step / 400} for step in range(20, 200, 20)]
    row = {"pck": 0.5, "pck_visible": 0.6, "pck_occluded": None, "count": 90, "unit_rate": 0.5}
    result = {
        "pck": 0.5, "pck@0.2": 0.7, "pck_visible": 0.6, "pck_occluded": None, "mean_pose_pck": 0.06,
        "ap": 0.2, "steps": 200, "images_per_second": 50.0, "per_joint": dict.fromkeys(SKELETON.names, row),
    }  # fmt: skip
    image = cv2.resize(
        rng.integers(0, 255, (8, 8, 3), dtype=np.uint8), (64, 64), interpolation=cv2.INTER_CUBIC
    )
    points = rng.uniform(5, 59, (4, 2))
    hard = pose_pictures.Example(
        image, points + 6, points, np.array([2, 1, 2, 0]), np.array([1, 0, 0, 0], bool), "a<b>.jpg"
    )
    return pose_report.write_report(
        tmp_path_factory.mktemp("report") / "report.html",
        title="A run & its <report>",
        config={"model": "hrnet", "dataset": "synthetic", "mining": "ohkm", "k": 2},
        result=result,
        pictures=pose_pictures.report_pictures(lines, result, SKELETON, [hard] * 4),
        notes=["2 records skipped"],
        facts=[("data", "a_file_of_a_rather_long_name_" * 4 + ".json"), ("written", "2026-11-27")],
    )


def test_the_console_stays_silent_and_the_screenshot_is_no_blank_page(page):
    shot = page.parent / "shot.png"
    done = _chromium(page.parent, f"--screenshot={shot}", "--window-size=1200,4000", page.as_uri())
    assert "CONSOLE" not in done.stderr, [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    pixels = cv2.imread(str(shot))
    assert pixels.shape[:2] == (4000, 1200)
    top = pixels[:3000]
    assert top.mean() > 180, "dark text on light, not the reverse"
    assert (top.min(axis=-1) < 80).mean() > 0.005, "there is dark text"
    for start in range(0, 3000, 500):
        assert top[start : start + 500].std() > 5, f"rows {start} to {start + 500} are blank"


def test_a_script_in_the_page_would_be_noticed(page):
    """The silence above means something: the same look at a page with an error finds it."""
    broken = page.with_name("broken.html")
    broken.write_text(page.read_text(encoding="utf-8").replace("</body>", "<script>0</script></body>"))
    done = _chromium(page.parent, "--dump-dom", broken.as_uri())
    assert "CONSOLE" in done.stderr


def test_who_wants_it_dark_has_it_dark(page):
    shot = page.parent / "dark.png"
    dark = "--blink-settings=preferredColorScheme=0"
    _chromium(page.parent, f"--screenshot={shot}", "--window-size=1200,1000", dark, page.as_uri())
    top = cv2.imread(str(shot))[:600]
    assert top.mean() < 80 and (top.min(axis=-1) > 180).mean() > 0.005, "light text on dark"


@pytest.mark.parametrize("width", [1200, 500])
def test_every_picture_is_there_and_legible(page, width):
    found = _probe(page.parent, page.read_text(encoding="utf-8"), width)
    images = [image.split(",") for image in found["images"].split(";")]
    # Curves, what mining kept, heat map, bars, four pairs.
    assert len(images) == 3 + 2 + 1 + 1 + 8
    for complete, natural, shown in images:
        assert complete == "true" and int(shown) <= width - 20
        # Letters of 12 points at 130 dots an inch.
        assert 12 / 72 * 130 * int(shown) / int(natural) >= (12 if width == 1200 else 10)
    assert int(found["wide"]) == 0, "the page itself never scrolls sideways"
    assert float(found["font"].removesuffix("px")) >= 14
