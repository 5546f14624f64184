# dsd-verifier: the cloud verifier on CPUs. Build and run: docs/images.md
# The tag pins Python's and Debian's versions and follows their security updates. For reproducible builds add a digest.
ARG PYTHON_IMAGE=python:3.11-slim-trixie

FROM ${PYTHON_IMAGE} AS dependencies
# A package index with torch's CPU builds. From PyPI alone pip installs the CUDA build, which is gigabytes larger.
ARG PIP_EXTRA_INDEX_URL
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
# Our code is not copied yet, so this layer holds only the role's dependencies and stays cached while only code changes.
RUN python -m venv --without-pip /opt/dsd \
    && pip --python /opt/dsd/bin/python install --no-cache-dir './[cloud,otel]'
RUN /opt/dsd/bin/python -c "from torch.version import cuda; assert not cuda, 'a CUDA build: give PIP_EXTRA_INDEX_URL'"

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
