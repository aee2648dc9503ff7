"""Pictures of the pages that runs leave, and of those that MLflow and Prefect show of them, in docs/images.

python docs/screenshots.py        # needs the group dev, and Debian's chromium and chromium-driver; takes some minutes
"""

import base64
import io
import sys
import tempfile
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "browser")]

from browsing import Browser
from mlflow import MlflowClient
from visiting import Kept, kept_runs

from tasks.run_list import list_address

ASKED = {
    "SGD": ("train",),
    "Adam": ("train", "--optimizer", "Adam", "--lr", "0.05", "--no-register"),
    "LBFGS": ("train", "--optimizer", "LBFGS", "--lr", "1", "--epochs", "20", "--no-register"),
    "compare": ("compare",),
}
SECONDS = 900


def take(browser: Browser, name: str, url: str, *texts: str, width: int = 1280, height: int = 900) -> None:
    """Keep what a page shows once it has these texts."""
    browser.open(url, width=width, height=height)
    browser.text(*texts)
    if url.startswith("file:"):
        browser.drawn_plots()
    shown = base64.b64decode(browser.command("Page.captureScreenshot", format="png")["data"])
    # The method that keeps a thin line's colour.
    whole = Image.open(io.BytesIO(shown)).convert("RGB")
    picture = whole.quantize(method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
    path = ROOT / "docs" / "images" / f"{name}.png"
    picture.save(path, optimize=True)
    print(f"{path.relative_to(ROOT)}: {path.stat().st_size / 1000:.0f} kB")


def page_of(kept: Kept, run: str, name: str) -> str:
    """The address of a run's page as a file."""
    (path,) = kept.artifacts.glob(f"*/{kept.results[run]['run_id']}/artifacts/{name}")
    return path.as_uri()


def main() -> None:
    """Run the flows of the README, and look at what they left."""
    with tempfile.TemporaryDirectory() as folder, kept_runs(Path(folder), ASKED, SECONDS) as kept:
        run = MlflowClient(kept.mlflow).get_run(kept.results["SGD"]["run_id"])
        runs = list_address(kept.mlflow, run.info.experiment_id)
        with Browser.running() as browser:
            take(browser, "comparison", page_of(kept, "compare", "comparison.html"), "Rprop", height=1500)
            take(browser, "report", page_of(kept, "SGD", "report.html"), run.info.run_name, height=1250)
            take(browser, "mlflow", runs, run.info.run_name, "final_loss", "parity", width=2300, height=620)
            take(browser, "prefect", run.data.tags["flow_run_url"], run.info.run_name, "Completed", "with", height=900)


if __name__ == "__main__":
    main()
