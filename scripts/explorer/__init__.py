"""The page that shows runs: what `scripts/explore.py` serves.

In go the folders of runs, out comes a page on 127.0.0.1. Open `runs` (what is read of a run's training) and
`aggregate` (how few points show many steps); `reading`, `tokens` and `losses` (what it was fed, as text, and
how hard that was); then `figures`, `tables` and `page` (what is shown), `callbacks*` (what happens when) and
`server`.
"""
