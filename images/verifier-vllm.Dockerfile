# dsd-verifier-vllm: the cloud verifier with vLLM, on NVIDIA GPUs. Build and run: docs/images.md
# vLLM's own image, in the version that is tested. For reproducible builds add a digest.
ARG VLLM_IMAGE=vllm/vllm-openai:v0.32.0

FROM ${VLLM_IMAGE}
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
# Our base dependencies and traces: the extra `cloud` asks for another transformers than vLLM. vLLM's image has no Ray, which
# several nodes need. The packages that decide vLLM's results keep their versions, or the build fails.
RUN uv pip freeze --system > /tmp/installed.txt \
    && grep -E '^(torch|triton|transformers|tokenizers|numba|llvmlite|numpy|pydantic|protobuf)==' /tmp/installed.txt > /tmp/kept.txt \
    && uv pip install --system --no-cache --constraint /tmp/kept.txt '.[otel]' 'ray>=2.48' \
    && rm /tmp/installed.txt /tmp/kept.txt
RUN python3 -c "from importlib.metadata import version; found = version('vllm'); assert found.split('+')[0] == '0.32.0', found"

WORKDIR /app
COPY LICENSE ./
COPY shared shared
COPY services/__init__.py services/
COPY services/cloud_verifier services/cloud_verifier
# Compiled kernels go under HOME, and user 65532 has no entry in /etc/passwd: torch asks for its name. Ray's workers import our
# package from any folder. Waiting threads must not spin: that uses up the container's CPU quota.
ENV HOME=/tmp \
    USER=dsd \
    PYTHONPATH=/app \
    PYTHONDONTWRITEBYTECODE=1 \
    OMP_WAIT_POLICY=passive \
    VLLM_NO_USAGE_STATS=1 \
    RAY_USAGE_STATS_ENABLED=0 \
    DSD_ENGINE=vllm \
    DSD_HTTP_HOST=0.0.0.0 \
    DSD_HTTP_PORT=8080 \
    DSD_TARGET=/var/lib/dsd/models/smollm2-135m/target
EXPOSE 8080
USER 65532:65532
# No HEALTHCHECK: Kubernetes ignores it and probes /healthz and /readyz.
ENTRYPOINT ["python3", "-m", "services.cloud_verifier"]
ARG SOURCE
ARG REVISION
LABEL org.opencontainers.image.title="dsd-verifier-vllm" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.source="${SOURCE}" \
      org.opencontainers.image.revision="${REVISION}"
