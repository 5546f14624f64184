# dsd-verifier-cuda: the cloud verifier on an NVIDIA GPU. How to build it, and what a container needs: docs/images.md
# torch's wheels bring CUDA's libraries themselves, so an nvidia/cuda runtime image would hold them twice; the driver
# comes from the node.
# The tag fixes Python and Debian and follows their security updates; give one with a digest to fix every byte.
ARG PYTHON_IMAGE=python:3.11-slim-trixie

FROM ${PYTHON_IMAGE} AS dependencies
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
# Our packages are not here yet: what is installed is what the role needs, and stays cached while only code changes.
RUN python -m venv --without-pip /opt/dsd \
    && pip --python /opt/dsd/bin/python install --no-cache-dir './[cloud]'
RUN /opt/dsd/bin/python -c "from torch.version import cuda; assert cuda, 'a CPU build of torch'"

FROM ${PYTHON_IMAGE}
COPY --from=dependencies /opt/dsd /opt/dsd
WORKDIR /app
COPY LICENSE ./
COPY shared shared
COPY services/__init__.py services/
COPY services/cloud_verifier services/cloud_verifier
# Threads that spin while they wait use up a container's share of the CPU. torch wants a folder for code that it compiles
# (none, here) when it is imported, and can't be without one. Without a GPU this image ends instead of being slow.
ENV PATH=/opt/dsd/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    OMP_WAIT_POLICY=passive \
    TORCHINDUCTOR_CACHE_DIR=/tmp \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    DSD_DEVICE=cuda \
    DSD_HTTP_HOST=0.0.0.0 \
    DSD_HTTP_PORT=8080 \
    DSD_TARGET=/var/lib/dsd/models/smollm2-135m/target
EXPOSE 8080
USER 65532:65532
# No HEALTHCHECK: Kubernetes doesn't read it; its probes ask /healthz and /readyz.
ENTRYPOINT ["python", "-m", "services.cloud_verifier"]
ARG SOURCE
ARG REVISION
LABEL org.opencontainers.image.title="dsd-verifier-cuda" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.source="${SOURCE}" \
      org.opencontainers.image.revision="${REVISION}"
