"""Show runs on a page in the browser: their curves, and what they were fed.

python scripts/explore.py --run runs/german

The page is served on this machine only. On a remote one: ssh -L 8050:127.0.0.1:8050 NAME, and open
http://127.0.0.1:8050 where you sit. Nothing is written into the runs.
"""

import sys
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


def main(options: Options) -> None:
    """Serve until interrupted."""
    from scripts.explorer.runs import open_runs
    from scripts.explorer.server import HOST, bind, make_app

    server = bind(make_app(open_runs(options.run)), options.port)
    print(f"http://{HOST}:{server.server_port} (Ctrl-C ends it)", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    run_command(Options, main)
