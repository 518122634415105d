"""Stages: one run that changes its data, lengths or rates on the way.

In go the options with their list of `stages`, out come opened stages, and the one to continue from a
checkpoint. Open `options` (what a stage may change), `stage` (its data and schedule), `starts` (where
it continues in its stores), `resume` (the plan in state.json).
"""
