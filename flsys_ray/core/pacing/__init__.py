"""Pacing: when a round takes devices in, and when it ends. One file a mode; see `base`."""
