"""Scheduling: which of the models that a device could train it is given. One file a scheduler; see `base`."""
