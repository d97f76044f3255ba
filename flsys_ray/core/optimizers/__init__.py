"""Server optimizers: how an aggregated delta moves the version. One file an optimizer; see `base`."""
