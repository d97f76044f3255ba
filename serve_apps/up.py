"""Starts the cloud on this machine, or deploys it to a running Ray cluster, and takes it down again."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import ray
from ray import serve

from actors.hosts import NAMESPACE, RayHosts, actor_name
from actors.model_actor import IDLE_S
from flsys_ray.cloud import places
from flsys_ray.cloud.credentials import set_operator_key
from flsys_ray.cloud.store_format import prepare
from flsys_ray.storage.uri import open_store
from serve_apps.cloud import Args, Listen, build

APPLICATION = "flsys"
OBJECT_STORE_BYTES = 512 * 1024 * 1024


@dataclass(frozen=True)
class Place:
    """Where a cloud is to run. `address` names a Ray cluster; None starts one that lives as long as this process."""

    store: str
    host: str = "127.0.0.1"
    port: int = 8000
    address: str | None = None
    replicas: int = 1
    idle_s: float = IDLE_S
    metrics_port: int | None = None


@contextmanager
def cloud(place: Place, operator_key: str) -> Iterator[str]:
    """Have a cloud up inside the block: yields its URL when it answers. A cluster that was there before stays."""
    url = deploy(place, operator_key)
    try:
        yield url
    finally:
        if place.address is None:
            serve.shutdown()
            ray.shutdown()


def deploy(place: Place, operator_key: str) -> str:
    """Start or update the cloud and return its URL."""
    store = open_store(place.store)
    prepare(store, place.store)
    set_operator_key(store, operator_key)
    _connect(place.address, place.metrics_port)
    here = place.address is None  # its replicas listen themselves then, and nobody calls Serve's proxy
    port = _free_port(place.host) if here else place.port
    serve.start(proxy_location="HeadOnly", http_options={"host": place.host, "port": port})
    listen = Listen(host=place.host, port=place.port) if here else None
    args = Args(store=place.store, replicas=place.replicas, idle_s=place.idle_s, listen=listen)
    serve.run(build(args), name=APPLICATION, route_prefix="/")
    _wake(place)
    return f"http://{place.host}:{place.port}"


def _free_port(host: str) -> int:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def remove(address: str, store_uri: str) -> None:
    """Take the cloud out of a running cluster. What is in the store stays."""
    _connect(address)
    serve.delete(APPLICATION)
    for model in _models(store_uri):
        try:
            ray.kill(ray.get_actor(actor_name(model), namespace=NAMESPACE))
        except ValueError:
            continue  # it was not active


def _connect(address: str | None, metrics_port: int | None = None) -> None:
    if address is not None:
        ray.init(address=address, namespace=NAMESPACE, log_to_driver=False, ignore_reinit_error=True)
        return
    # Ray runs workers at nice 15 by default: beside phones emulated on the same machine the cloud would starve.
    os.environ.setdefault("RAY_worker_niceness", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ray.init(
        address="local",
        namespace=NAMESPACE,
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=OBJECT_STORE_BYTES,
        _metrics_export_port=metrics_port,
    )


def _wake(place: Place) -> None:
    """Activate the models whose open round has an update, so that it ends in time without waiting for a call."""
    hosts = RayHosts(place.store, place.idle_s)
    for model in _models(place.store):
        if hosts.standings.has_work(model):
            hosts.actor(model)


def _models(store_uri: str) -> list[str]:
    return [places.model_of(key) for key in open_store(store_uri).list(places.CATALOG)]
