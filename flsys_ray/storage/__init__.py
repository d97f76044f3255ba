"""The object store: everything that must last. See `base`."""
