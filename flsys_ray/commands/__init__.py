"""The subcommands of `flsys`, one file a group. They import what they need when they run: `flsys --help` is quick."""
