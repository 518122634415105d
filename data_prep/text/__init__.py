"""Get sound text: repair what is wrong with its characters, and count it.

Open `normalize` (options and step), then the two repairs that need care, `mojibake` and `html_remains`, and
`changes` (counts and examples).
"""
