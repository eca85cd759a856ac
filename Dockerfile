# Images of the operator and the worker, with Docker: the files are those of `cargo xtask image`.
#
#   docker build --target operator --tag leat-operator:0.1.0 .
#   docker build --target worker --tag leat-worker:0.1.0 .
FROM rust:1.95.0-slim-bookworm AS build
RUN apt-get update \
 && apt-get install --yes --no-install-recommends ca-certificates gcc libc6-dev \
 && rm -rf /var/lib/apt/lists/*
WORKDIR /leat
COPY . .
RUN cargo xtask image --root leat-operator /operator && cargo xtask image --root leat-worker /worker

FROM scratch AS operator
LABEL org.opencontainers.image.title="leat-operator" \
      org.opencontainers.image.description="Reconciles the StreamingPipelines of a cluster" \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.vendor="Leat"
COPY --from=build /operator/ /
USER 65532:65532
ENTRYPOINT ["/usr/bin/leat-operator"]

FROM scratch AS worker
LABEL org.opencontainers.image.title="leat-worker" \
      org.opencontainers.image.description="Runs a pipeline's job" \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.vendor="Leat"
COPY --from=build /worker/ /
USER 65532:65532
ENTRYPOINT ["/usr/bin/leat-worker"]
