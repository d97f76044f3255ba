"""Data: windows of sensor streams with their users, where they come from, and how they are split without a leak.

    windows.py, resampling.py   streams to windows, live or from a file; numpy only, for the phone as well
    schema.py                   the canonical form on disk: `windows.parquet` and `dataset.json`
    dataset.py                  `open_dataset(name)`: read one data set, user by user
    splits.py, leaks.py         splits by user, held-out parts, Dirichlet partitions; the leak detector
    synthetic.py                made-up sensors, for where no real data are at hand
    recipe.py, archive.py, fetch.py     what a `datasets/<name>/recipe.py` is made of
    build.py, catalog.py        build a data set; which there are

Import from the modules: this package loads nothing by itself, so that a phone does not load pyarrow.
"""
