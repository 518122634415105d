"""Show what `prepare.py` kept and dropped, to the person who sets the limits.

Open `page` (report.html), then `examples` (which documents are shown, and what of them), `places` (what a
rule counts in a text) and `flow` (flow.md and flow.png).
"""
