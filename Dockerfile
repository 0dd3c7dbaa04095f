# The service for CPUs (target cpu, the default) and for CUDA devices (cuda), and the PPO trainer (train).
#
#   docker build --target cpu --tag plaudit:cpu .
#
# The base image is pinned by tag. By digest: --build-arg BASE=docker.io/library/python:3.13.18-slim-trixie@sha256:...
# Python packages are pinned by version and hash in deploy/locks (`make locks`).
ARG BASE=docker.io/library/python:3.13.18-slim-trixie

# ---- what builds: none of it is in an image that runs
FROM ${BASE} AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1
COPY deploy/locks/build.txt /build/
RUN python3 -m venv /build/venv \
    && /build/venv/bin/pip install --require-hashes --only-binary :all: --requirement /build/build.txt
WORKDIR /build/source
COPY pyproject.toml README.md LICENSE ./
COPY client client
COPY export export
COPY service service
# The environment that runs has no pip; it is filled from outside.
RUN /build/venv/bin/pip wheel --no-deps --no-build-isolation --wheel-dir /build/wheel . \
    && python3 -m venv --without-pip /opt/plaudit

FROM build AS environment-cpu
COPY deploy/locks/cpu.txt /build/
RUN /build/venv/bin/pip --python /opt/plaudit/bin/python install --require-hashes --only-binary :all: \
        --requirement /build/cpu.txt \
    && /build/venv/bin/pip --python /opt/plaudit/bin/python install --no-deps --no-index /build/wheel/*.whl

FROM build AS environment-cuda
COPY deploy/locks/cuda.txt /build/
RUN /build/venv/bin/pip --python /opt/plaudit/bin/python install --require-hashes --only-binary :all: \
        --requirement /build/cuda.txt \
    && /build/venv/bin/pip --python /opt/plaudit/bin/python install --no-deps --no-index /build/wheel/*.whl

FROM build AS environment-train
COPY deploy/locks/train.txt /build/
RUN /build/venv/bin/pip --python /opt/plaudit/bin/python install --require-hashes --only-binary :all: \
        --requirement /build/train.txt \
    && /build/venv/bin/pip --python /opt/plaudit/bin/python install --no-deps --no-index /build/wheel/*.whl

# ---- what runs: no root, nothing is written but below /tmp, so the root file system may be read-only
FROM ${BASE} AS runtime
ARG VERSION=unknown
ARG REVISION=unknown
LABEL org.opencontainers.image.title="plaudit" \
      org.opencontainers.image.description="A reward model behind HTTP, exactly" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
ENV PATH=/opt/plaudit/bin:$PATH \
    HOME=/tmp \
    ORT_DISABLE_TELEMETRY=1 \
    HF_HUB_DISABLE_TELEMETRY=1 \
    PYTHONUNBUFFERED=1
# A number, so that Kubernetes can see that it is not root (runAsNonRoot).
USER 10001:10001
WORKDIR /tmp
STOPSIGNAL SIGTERM

FROM runtime AS train
COPY --from=environment-train /opt/plaudit /opt/plaudit
ENTRYPOINT ["plaudit-ppo"]
CMD ["--help"]

# Serving other machines needs an API key, or --allow-unauthenticated.
FROM runtime AS serve
ENV PLAUDIT_HOST=0.0.0.0 \
    PLAUDIT_PORT=8000
EXPOSE 8000
COPY deploy/healthcheck.py /opt/
HEALTHCHECK --interval=15s --timeout=5s --start-period=5m CMD ["python", "/opt/healthcheck.py"]
ENTRYPOINT ["plaudit-serve"]
CMD ["/bundle"]

# onnxruntime-gpu finds CUDA and cuDNN, which pip brought, through the loader's cache; the driver comes from the host.
FROM serve AS cuda
COPY --from=environment-cuda /opt/plaudit /opt/plaudit
USER 0
RUN find /opt/plaudit/lib -path '*/nvidia/*' -name lib -type d > /etc/ld.so.conf.d/plaudit-cuda.conf && ldconfig
USER 10001:10001
ENV PLAUDIT_DEVICE=cuda

FROM serve AS cpu
COPY --from=environment-cpu /opt/plaudit /opt/plaudit
