"""One real Ray cluster for the session: the cloud in this process, on a folder of its own."""

import os
import warnings
from collections.abc import Iterator

import pytest

with warnings.catch_warnings():  # what Ray's own modules warn of when they are loaded
    warnings.simplefilter("ignore")
    import ray.serve.schema  # noqa: F401

    import serve_apps.up  # noqa: F401

from ray_cloud import OPERATOR_KEY, Up, compiled, free_port


@pytest.fixture(scope="session")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """The cloud, on Ray. Warnings that Ray's own start raises are Ray's."""
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    store = str(tmp_path_factory.mktemp("store"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from serve_apps.up import Place, cloud

        with cloud(Place(store=store, port=free_port()), OPERATOR_KEY) as url:
            yield Up(url, store)


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A small real program."""
    return compiled(tmp_path_factory.mktemp("program") / "small.tflite")
