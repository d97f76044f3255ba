"""Staleness weights: what an update counts whose base version is not the newest. One file a function; see `base`."""
