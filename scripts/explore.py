"""Show runs on a page in the browser: their curves, and what they were fed.

python scripts/explore.py --run runs/german

The page is served on this machine only. On a remote one: ssh -L 8050:127.0.0.1:8050 NAME, and open
http://127.0.0.1:8050 where you sit. Nothing is written into the runs.
"""

import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lit_gpt.cli import run_command
from lit_gpt.option_types import Range


@dataclass
class Options:
    """Show runs on a page at 127.0.0.1: curves, steps, documents and their losses."""

    run: list[Path]
    """Folders of runs (the --out_dir of their training), also of one that is still trained."""
    port: Annotated[int, Range(at_least=0, at_most=65535)] = 8050
    """Port of the page; 0 takes any that is free."""
    train_data_dir: list[str] | None = None
    """The token stores of the runs, in any order, if they are no longer where the runs read them."""
    packing_dir: str | None = None
    """Folder of packings, if they are no longer there either."""
    screenshot: Path | None = None
    """Write a picture of the page into this file (.png) and end; needs Chromium, but no display."""


def main(options: Options) -> None:
    """Serve until interrupted, or until there is a picture."""
    from scripts.explorer.reading import Reading
    from scripts.explorer.runs import open_runs
    from scripts.explorer.screenshot import take
    from scripts.explorer.server import HOST, bind, make_app

    runs = open_runs(options.run)
    readings = [Reading(folder, options.train_data_dir, options.packing_dir) for folder in options.run]
    server = bind(make_app(runs, readings), 0 if options.screenshot else options.port)
    url = f"http://{HOST}:{server.server_port}"
    if options.screenshot is None:
        print(f"{url} (Ctrl-C ends it)", flush=True)
        server.serve_forever()
    else:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        take(url, options.screenshot)
        server.shutdown()
        print(options.screenshot)


if __name__ == "__main__":
    run_command(Options, main)
