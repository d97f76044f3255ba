"""Ray Serve: what runs in a cluster. One `build(args)` a file."""
