"""Encodings of what phones upload. One file an encoding; see `base`."""
