# One image with the three programs: syncd-server, syncd-client, syncctl. There is no entrypoint; the command names the
# program (`docker run IMAGE syncd-server …`), and without one syncctl prints its help.
#
#   docker build --build-arg VERSION=0.1.0 --build-arg REVISION="$(git rev-parse HEAD)" \
#       --build-arg CREATED="$(git log -1 --format=%cI)" --build-arg SOURCE_DATE_EPOCH="$(git log -1 --format=%ct)" -t syncd .
#
# Other platforms: `docker buildx build --platform linux/amd64,linux/arm64 …`. Both stages run on the target's platform, by
# emulation where the machine is of another: slow, but with no second toolchain to keep right. It needs BuildKit, and works with
# that of every engine since 20.10: no `# syntax` line, no heredocs.

FROM rust:1.95-bookworm AS build
WORKDIR /build
# Paths of this stage stay out of the programs: the same source should give the same bytes wherever it is built.
ENV CARGO_INCREMENTAL=0 CARGO_TERM_COLOR=never CARGO_PROFILE_DIST_STRIP=symbols \
    RUSTFLAGS="--remap-path-prefix=/build=/syncd --remap-path-prefix=/usr/local/cargo=/cargo"

# Dependencies in a layer of their own, with empty programs on top: built again only when the lock file changes.
COPY Cargo.toml Cargo.lock ./
COPY crates/syncd-proto/Cargo.toml crates/syncd-proto/
COPY crates/syncd-store/Cargo.toml crates/syncd-store/
COPY crates/syncd-verify/Cargo.toml crates/syncd-verify/
COPY crates/syncd-verify-web/Cargo.toml crates/syncd-verify-web/
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    mkdir -p src/bin && touch src/lib.rs \
    && for crate in crates/*; do mkdir "$crate/src" && touch "$crate/src/lib.rs"; done \
    && for program in syncd-server syncd-client syncctl; do echo 'fn main() {}' >src/bin/$program.rs; done \
    && cargo build --profile dist --locked

# syncctl carries the example records. cargo compares times: the empty programs must not look newer than the real ones.
COPY examples/data examples/data
COPY crates crates
COPY src src
ARG REVISION=unknown
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    find src crates -name '*.rs' -exec touch {} + \
    && SYNCD_COMMIT="$REVISION" cargo build --profile dist --locked

# Not above: build scripts of C libraries look at it, and all would be built once more.
ARG SOURCE_DATE_EPOCH=0
RUN mkdir -p /image/bin /image/state/public /image/keys/server /image/keys/client-1 /image/keys/client-2 /image/keys/writer \
    && cp target/dist/syncd-server target/dist/syncd-client target/dist/syncctl /image/bin/ \
    && find /image -exec touch --no-dereference --date="@$SOURCE_DATE_EPOCH" {} +

# The C library and certificates; no shell, no package manager.
FROM gcr.io/distroless/cc-debian12:nonroot
COPY --from=build /image/bin/ /usr/local/bin/
# A new volume takes its owner from the directory that it is mounted over: these are empty and exist for that. public/ is apart
# so that replicas can be given it and nothing else; /keys is where compose.yaml keeps each daemon's keys.
COPY --from=build --chown=65532:65532 /image/state /var/lib/syncd
COPY --from=build --chown=65532:65532 /image/keys /keys
USER 65532:65532
WORKDIR /var/lib/syncd
VOLUME ["/var/lib/syncd"]

# A container's own address is not loopback. The API stays on loopback until it is given a token.
ENV SYNCD_STORAGE_DIR=/var/lib/syncd SYNCD_HOST=0.0.0.0 SYNCD_METRICS_HOST=0.0.0.0 SYNCD_LOG_FORMAT=json
EXPOSE 8080 8081 8082 9090 9091
# Ready, not only alive. It asks port 9090, the server's; set SYNCD_URL=http://127.0.0.1:9091 for a replica.
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 CMD ["syncctl", "health"]
STOPSIGNAL SIGTERM
CMD ["syncctl", "--help"]

# Last, so that another commit changes no layer above.
ARG VERSION=0.0.0
ARG REVISION=unknown
ARG CREATED=1970-01-01T00:00:00Z
LABEL org.opencontainers.image.title="syncd" \
    org.opencontainers.image.description="Verifiable replication of an authenticated key-value database" \
    org.opencontainers.image.licenses="MIT OR Apache-2.0" \
    org.opencontainers.image.version="$VERSION" \
    org.opencontainers.image.revision="$REVISION" \
    org.opencontainers.image.created="$CREATED" \
    org.opencontainers.image.base.name="gcr.io/distroless/cc-debian12:nonroot"
