"""Aggregation rules: how the updates of a cohort become one delta. One file a rule; see `base`."""
