# dsd-verifier: the cloud verifier on CPUs. Build and run: docs/images.md
# The tag pins Python's and Debian's versions and follows their security updates. For reproducible builds add a digest.
ARG PYTHON_IMAGE=python:3.11-slim-trixie

FROM ${PYTHON_IMAGE} AS dependencies
# The index with torch's CPU build. No CUDA build's version ends in +cpu, so pip cannot take one. Add --hash=sha256:… of your
# index's file, and pip checks that too.
ARG PIP_EXTRA_INDEX_URL
ARG TORCH=torch==2.13.0+cpu
WORKDIR /src
COPY images/locks/build.txt images/locks/verifier.txt pyproject.toml README.md LICENSE ./
# The lock names every file by its hash, so pip chooses nothing. Our code is not copied yet: this layer stays cached while only
# code changes. The last wheel is our package's version without its code.
RUN pip install --no-cache-dir --require-hashes --requirement build.txt \
    && pip wheel --no-cache-dir --no-deps --no-build-isolation --require-hashes --wheel-dir wheels --requirement verifier.txt \
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
# Waiting threads must not spin: that uses up the container's CPU quota. torch needs a cache folder for compiled code when it
# is imported, although none is compiled here.
ENV PATH=/opt/dsd/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    OMP_WAIT_POLICY=passive \
    TORCHINDUCTOR_CACHE_DIR=/tmp \
    DSD_HTTP_HOST=0.0.0.0 \
    DSD_HTTP_PORT=8080 \
    DSD_TARGET=/var/lib/dsd/models/smollm2-135m/target
EXPOSE 8080
USER 65532:65532
# No HEALTHCHECK: Kubernetes ignores it and probes /healthz and /readyz.
ENTRYPOINT ["python", "-m", "services.cloud_verifier"]
ARG SOURCE
ARG REVISION
LABEL org.opencontainers.image.title="dsd-verifier" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.source="${SOURCE}" \
      org.opencontainers.image.revision="${REVISION}"
