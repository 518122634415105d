"""Get sound text: the main text of web pages, and texts without what is wrong with their characters.

For pages open `extract` (options, stages), then `sandbox` (a process that may hang or crash). For repairs,
open `normalize` (options and step), then the two that need care, `mojibake` and `html_remains`,
and `changes` (counts and examples).
"""
