# The image: one static program, and nothing else. Build it where it is to run, or with emulation; nothing is cross-compiled:
#
#   docker build -t agent-shim:0.1.0 --build-arg REVISION="$(git rev-parse HEAD)" .
#   docker buildx build --platform linux/amd64,linux/arm64 -t agent-shim:0.1.0 .
#   podman build / buildah build likewise
#
# Alpine's Rust links musl statically. The program has no TLS of its own towards the public, so it needs no CA certificates;
# names are resolved by musl from the pod's /etc/resolv.conf and /etc/hosts, which the kubelet mounts.

FROM rust:1.88-alpine3.22 AS build
# For the C parts of `ring`.
RUN apk add --no-cache musl-dev
WORKDIR /src

# Dependencies: a layer of their own, which is built anew only when they change. The stand-ins have the shape of the real
# targets; their time stamps are older than those of the sources below, so that Cargo sees that these are others.
COPY Cargo.toml Cargo.lock ./
RUN mkdir -p src tests/it \
 && echo 'fn main() {}' | tee src/main.rs build.rs tests/it/main.rs >/dev/null \
 && touch src/lib.rs \
 && cargo build --release --locked --no-default-features \
 && rm -r src build.rs

COPY README.md build.rs ./
COPY proto proto
COPY src src
RUN touch build.rs src/main.rs src/lib.rs \
 && cargo build --release --locked --no-default-features \
 && install -D -m 0555 target/release/agent-shim /out/agent-shim \
 && /out/agent-shim --version

FROM scratch
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="agent-shim" \
      org.opencontainers.image.description="A lightweight sidecar for MLServer pods of Seldon Core 2" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
COPY --from=build /out/agent-shim /usr/local/bin/agent-shim
# So that `kubectl exec ... -- agent-shim status` finds it.
ENV PATH=/usr/local/bin
# A number, so that `runAsNonRoot` can be judged; any other will do as well, since nothing is written.
USER 65532:65532
EXPOSE 9680 9443 9681
ENTRYPOINT ["/usr/local/bin/agent-shim"]
