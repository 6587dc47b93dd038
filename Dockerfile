# The server's image: frontend, autoscaler and replicas, whatever its command says.
#
#   docker build --target cpu -t tideserve:cpu .
#   docker run -p 8001:8001 -p 8002:8002 -v "$PWD/examples/models:/models:ro" tideserve:cpu
#
# BASE_IMAGE is any Debian or Ubuntu whose python3 is 3.11 or newer. PIP_ARGS is added to pip's
# arguments; wheels that lie in .cache/image-wheels come with the build context, so that
# PIP_ARGS="--no-index --find-links=/build/wheels" builds without a package index. Where
# tideserve's own is not among them it is built here, its hot path compiled.
ARG BASE_IMAGE=debian:bookworm-slim

FROM ${BASE_IMAGE} AS build
RUN apt-get update -qq \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
       ca-certificates python3 python3-pip \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/*
# Without pip: the server needs none.
RUN python3 -m venv --without-pip /opt/tideserve
WORKDIR /build
# The pattern may match nothing; constraints.txt is there so that COPY has a source.
COPY constraints.txt .cache/image-wheel[s] wheels/
COPY pyproject.toml hatch_build.py README.md LICENSE ./
COPY proto proto
COPY server server
COPY autoscaler autoscaler
COPY clients clients
ARG PIP_ARGS=""
RUN ls wheels/tideserve-*.whl 2>/dev/null || { \
       apt-get update -qq \
       && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
          gcc libc6-dev python3-dev \
       && HATCH_BUILD_HOOK_ENABLE_CUSTOM=true PIP_CONSTRAINT=/build/wheels/constraints.txt \
          PIP_BUILD_CONSTRAINT=/build/wheels/constraints.txt python3 -m pip wheel \
          --no-cache-dir --disable-pip-version-check --no-input --no-deps ${PIP_ARGS} -w wheels . ; }

FROM build AS build-cpu
ARG PIP_ARGS=""
RUN python3 -m pip --python /opt/tideserve/bin/python install \
       --no-cache-dir --disable-pip-version-check --no-input --root-user-action=ignore \
       -c wheels/constraints.txt ${PIP_ARGS} "$(ls wheels/tideserve-*.whl)[cpu,docker]"

FROM ${BASE_IMAGE} AS runtime
# tini is PID 1: replicas outlive the autoscaler that started them, so somebody has to reap them.
RUN apt-get update -qq \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
       python3 tini \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/* \
    && groupadd --gid 10001 tideserve \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /var/lib/tideserve \
       --shell /usr/sbin/nologin tideserve \
    && install -d -o 10001 -g 10001 -m 0700 /var/lib/tideserve \
    && install -d -o 10001 -g 10001 -m 0711 /run/tideserve \
    && install -d /models
# The state folder becomes /var/lib/tideserve: token, records and logs of replicas.
ENV PATH=/opt/tideserve/bin:$PATH \
    XDG_STATE_HOME=/var/lib \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1
COPY examples/autoscaler/processes.yaml /etc/tideserve/autoscaler.yaml
USER 10001:10001
WORKDIR /var/lib/tideserve
EXPOSE 8001 8002 8003
# grpc.health.v1. A server on another port or behind TLS: docs/docker.md.
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
    CMD ["tideserve", "health", "--live"]
ENTRYPOINT ["tini", "--", "tideserve"]
# Another file: mount it there. A fixed count: --replicas N in place of --autoscaler FILE.
CMD ["serve", "/models", "--host", "0.0.0.0", "--autoscaler", "/etc/tideserve/autoscaler.yaml"]

FROM runtime AS cpu
COPY --from=build-cpu /opt/tideserve /opt/tideserve

# After cpu: a builder without BuildKit makes every stage up to the one that is asked for.
FROM build AS build-gpu
ARG PIP_ARGS=""
RUN python3 -m pip --python /opt/tideserve/bin/python install \
       --no-cache-dir --disable-pip-version-check --no-input --root-user-action=ignore \
       -c wheels/constraints.txt ${PIP_ARGS} "$(ls wheels/tideserve-*.whl)[gpu,docker]"

FROM runtime AS gpu
COPY --from=build-gpu /opt/tideserve /opt/tideserve

# What a build without --target makes.
FROM cpu
