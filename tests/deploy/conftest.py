"""Ray's own modules warn when they are loaded; these tests read files with them and start nothing."""

import warnings

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import ray.serve.schema  # noqa: F401

    import serve_apps.cluster  # noqa: F401
