"""Decide which documents stay, by rules that measure their text.

Open `clean` (options, stages, rules), then `limits` (the presets), `measures` with `units` (words) and
`repetition`, and `language`.
"""
