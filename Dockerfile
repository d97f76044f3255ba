# The cloud: one image for one machine, and for every node of a cluster. Build it in the repository's root.
FROM python:3.11.13-slim-bookworm AS build
WORKDIR /src
COPY pyproject.toml README.md ./
COPY actors actors
COPY datasets datasets
COPY flsys_ray flsys_ray
COPY serve_apps serve_apps
COPY tuning tuning
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /dist .

FROM python:3.11.13-slim-bookworm
# KubeRay's probes call wget, and its start commands bash.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends wget \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1000 flsys \
    && install --directory --owner=flsys --mode=0700 /var/lib/flsys
COPY constraints.txt /tmp/
COPY --from=build /dist /tmp/dist
RUN pip install --no-cache-dir --constraint /tmp/constraints.txt \
        "$(echo /tmp/dist/flsys_ray-*.whl)[cloud,device,s3]" \
    && rm -r /tmp/dist /tmp/constraints.txt
USER 1000
WORKDIR /home/flsys
ENV RAY_USAGE_STATS_ENABLED=0 RAY_worker_niceness=0
EXPOSE 8000
VOLUME /var/lib/flsys
# SIGTERM ends `flsys up`. What was accepted is in the store.
CMD ["flsys", "up", "--host", "0.0.0.0", "--store", "/var/lib/flsys/store"]
