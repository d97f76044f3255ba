"""Selectors: which candidates get assignments. One file a selector; see `base`."""
