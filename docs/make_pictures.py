"""Make the pictures of README and docs anew, by the commands that they show: docs/report.png and results/scaling.png.

    python docs/make_pictures.py --pictures=report,scaling

The report is trained by the first command of the README. Chromium takes its picture, and that of a telephone beside it.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from make_transcript import COMMAND  # the first of the README

ROOT = Path(__file__).resolve().parent.parent
REPORT = "python -m recbole_diffusion.analysis --sections=popularity,length,seen,curves"
SCALING = "python benchmarks/scaling.py --model DiffuRec --output results/scaling"
PICTURES = ("report", "scaling")
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")


def run(command: str, *more: str) -> str:
    """Run a command of the documents in the repository's root; returns what it prints."""
    words = [sys.executable, *shlex.split(command)[1:], *more]
    print(shlex.join(["python", *words[1:]]), flush=True)
    done = subprocess.run(
        words, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, text=True
    )
    if done.returncode:
        raise SystemExit(f"ended with {done.returncode}: {command}")
    return done.stdout


def screenshot(page: Path, picture: Path, width: int, height: int) -> None:
    """The upper part of a page, as a browser of this size shows it; SystemExit where there is no browser."""
    browser = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if browser is None:
        raise SystemExit(f"a browser is needed, one of {', '.join(BROWSERS)}")
    flags = ["--headless", "--no-sandbox", "--hide-scrollbars", "--virtual-time-budget=20000"]
    size = [f"--window-size={width},{height}", f"--screenshot={picture.resolve()}"]
    subprocess.run([browser, *flags, *size, page.resolve().as_uri()], check=True, capture_output=True)


def make_report(checkpoint: str | None) -> None:
    """Train where no checkpoint is given, look at the model, and take the pictures."""
    if checkpoint is None:
        out = run(COMMAND)
        checkpoint = next(line.split(": ")[1] for line in out.splitlines() if line.startswith("Checkpoint: "))
    with tempfile.TemporaryDirectory() as folder:
        run(REPORT, f"--model_file={checkpoint}", f"--output={folder}")
        screenshot(Path(folder) / "index.html", ROOT / "docs" / "report.png", 1100, 2500)
        # Chromium has no window narrower than 500 pixels: a frame stands for the telephone.
        phone = Path(folder) / "phone.html"
        phone.write_text('<body style="margin: 0"><iframe src="index.html" width="390" height="3300" frameborder="0">')
        screenshot(phone, ROOT / "docs" / "report-phone.png", 390, 3300)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", default=",".join(PICTURES), help="separated by commas (default: %(default)s)")
    parser.add_argument("--checkpoint", help="a model trained by the first command of the README (default: train it)")
    args = parser.parse_args()
    wanted = args.pictures.split(",")
    if unknown := [name for name in wanted if name not in PICTURES]:
        parser.error(f"pictures {unknown} are unknown: choose from {', '.join(PICTURES)}")
    if "report" in wanted:
        make_report(args.checkpoint)
    if "scaling" in wanted:
        run(SCALING)


if __name__ == "__main__":
    main()
