"""A picture of the page, by the Chromium that is installed, without a display."""

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from lit_gpt.errors import InputError
from lit_gpt.files import rename

NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome", "chrome")
SIZE = (1400, 1180)
_VIRTUAL_SECONDS = 20


def find_chromium() -> str | None:
    """The first Chromium on the PATH."""
    return next(filter(None, map(shutil.which, NAMES)), None)


def take(url: str, output: Path, seconds: float = 120) -> None:
    """Write a PNG of the page as a browser shows it after some virtual time, which passes when all is quiet.

    Raises:
        InputError: there is no Chromium, or it made no picture.
    """
    chromium = find_chromium()
    if chromium is None:
        raise InputError(
            "--screenshot needs Chromium on the PATH: `apt install chromium` (Debian, Ubuntu), or the like"
        )
    with tempfile.TemporaryDirectory(prefix="explore-") as folder:
        picture = Path(folder) / "page.png"
        flags = [
            f"--screenshot={picture}",
            f"--user-data-dir={folder}/profile",
            f"--window-size={SIZE[0]},{SIZE[1]}",
            f"--virtual-time-budget={1000 * _VIRTUAL_SECONDS}",
            "--headless",
            "--hide-scrollbars",
            "--disable-gpu",
            "--no-first-run",
        ]
        if os.geteuid() == 0:  # which Chromium's sandbox refuses to run as
            flags.append("--no-sandbox")
        try:
            done = subprocess.run([chromium, *flags, url], capture_output=True, text=True, timeout=seconds)
            told = done.stderr.strip().splitlines()
        except subprocess.TimeoutExpired:
            told = [f"it has not ended after {seconds:.0f} s"]
        if not picture.is_file():
            raise InputError(f"{chromium} made no picture ({told[-1][:200] if told else 'it says nothing'})")
        _move(picture, output)


def _move(picture: Path, output: Path) -> None:
    unfinished = output.with_name(f".{output.name}.part")
    try:
        shutil.copyfile(picture, unfinished)
    except OSError as error:
        raise InputError(f"--screenshot {output}: {error.strerror}") from error
    rename(unfinished, output)
