"""Let a folder of --output keep the settings that it was begun with: `settings.json`."""

import json
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from data_prep.processes import to_write
from data_prep.stages.pipeline import write_json
from lit_gpt.cli import InputError
from lit_gpt.option_types import quoted

_SETTINGS = "settings.json"
_ABSENT = object()
_UNSET: tuple = (_ABSENT, None, [], {})  # a limit that an earlier revision did not know was not set
_MOST_NAMED = 8


def check_settings(folder: Path, settings: dict[str, Any], unused: Collection[str] = ()) -> None:
    """Record the settings of the work in `folder`, or compare them with those recorded.

    Args:
        settings: of a switch that is off, none, as in folders of earlier revisions.
        unused: names of settings that nothing there depends on yet: they may differ, and the stage that uses
            them records them (`record_settings`).

    Raises:
        InputError: the folder cannot be written, or was begun with other settings.
    """
    path = folder / _SETTINGS
    settings = json.loads(json.dumps(settings, default=str))
    if not path.exists():
        with to_write(folder):
            folder.mkdir(parents=True, exist_ok=True)
        write_json(path, settings)
        return
    begun = json.loads(path.read_text(encoding="utf-8"))
    off = {name: False for name, value in (*begun.items(), *settings.items()) if value is True}
    changed = {
        flag: values for flag, values in _changes(off | begun, off | settings) if flag[2:] not in unused
    }
    if unknown := sorted(name for name, (old, _) in changed.items() if old is _ABSENT):
        raise InputError(
            f"{folder} was made by an earlier version of this code, without {_in_short(unknown)}: finish it "
            "with that version, or give another --output to start anew"
        )
    if changed:
        values = [
            f"{flag} {quoted(old)} -> {'none' if new is _ABSENT else quoted(new)}"
            for flag, (old, new) in sorted(changed.items())
        ]
        raise InputError(
            f"{folder} was begun with other settings ({_in_short(values)}): "
            "give the first ones again to continue, or another --output to start anew"
        )


def record_settings(folder: Path, settings: dict[str, Any], rank: int, world_size: int) -> None:
    """Record the settings of the stage that begins, in place of those that `check_settings` found unused."""
    path = folder / _SETTINGS
    write_json(path, json.loads(path.read_text(encoding="utf-8")) | settings)


def _changes(begun: dict[str, Any], wanted: dict[str, Any]) -> Iterator[tuple[str, tuple[Any, Any]]]:
    """Flag, value recorded and value wanted of each difference; limits one by one."""
    for name in begun | wanted:
        old, new = begun.get(name, _ABSENT), wanted.get(name, _ABSENT)
        if name == "limits" and _ABSENT not in (old, new):
            yield from _changes(old, new)
        elif old != new and not (old in _UNSET and new in _UNSET):
            yield "--input" if name == "files" else f"--{name}", (old, new)


def _in_short(parts: list[str]) -> str:
    more = f", and {len(parts) - _MOST_NAMED} more" if len(parts) > _MOST_NAMED else ""
    return ", ".join(parts[:_MOST_NAMED]) + more
