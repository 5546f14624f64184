# dsd-verifier: the cloud verifier on CPUs. How to build it, and what a container needs: docs/images.md
# The tag fixes Python and Debian and follows their security updates; give one with a digest to fix every byte.
ARG PYTHON_IMAGE=python:3.11-slim-trixie

FROM ${PYTHON_IMAGE} AS dependencies
# An index that has torch's CPU builds. From PyPI alone pip takes the CUDA build, gigabytes that no CPU uses.
ARG PIP_EXTRA_INDEX_URL
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
# Our packages are not here yet: what is installed is what the role needs, and stays cached while only code changes.
RUN python -m venv --without-pip /opt/dsd \
    && pip --python /opt/dsd/bin/python install --no-cache-dir './[cloud]'
RUN /opt/dsd/bin/python -c "from torch.version import cuda; assert not cuda, 'a CUDA build: give PIP_EXTRA_INDEX_URL'"

FROM ${PYTHON_IMAGE}
COPY --from=dependencies /opt/dsd /opt/dsd
WORKDIR /app
COPY LICENSE ./
COPY shared shared
COPY services/__init__.py services/
COPY services/cloud_verifier services/cloud_verifier
# Threads that spin while they wait use up a container's share of the CPU. torch wants a folder for code that it compiles
# (none, here) when it is imported, and can't be without one.
ENV PATH=/opt/dsd/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    OMP_WAIT_POLICY=passive \
    TORCHINDUCTOR_CACHE_DIR=/tmp \
    DSD_HTTP_HOST=0.0.0.0 \
    DSD_HTTP_PORT=8080 \
    DSD_TARGET=/var/lib/dsd/models/smollm2-135m/target
EXPOSE 8080
USER 65532:65532
# No HEALTHCHECK: Kubernetes doesn't read it; its probes ask /healthz and /readyz.
ENTRYPOINT ["python", "-m", "services.cloud_verifier"]
ARG SOURCE
ARG REVISION
LABEL org.opencontainers.image.title="dsd-verifier" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.source="${SOURCE}" \
      org.opencontainers.image.revision="${REVISION}"
