# Recipes; CI calls the same commands.

# What runs before a commit.
default: fmt lint test

fmt:
    cargo fmt

lint:
    cargo fmt --check
    cargo clippy --all-targets -- -D warnings

# All tests with default features.
test *ARGS:
    cargo test {{ARGS}}

# The simulation, for so many seeds of each kind.
simulate SEEDS="1000":
    SYNCD_SIMULATION_SEEDS={{SEEDS}} cargo test --test simulation

# One seed of the stories, step by step.
simulate-seed SEED:
    SYNCD_SIMULATION_SEED={{SEED}} SYNCD_SIMULATION_STEPS=1 cargo test --test simulation story -- --nocapture

# A smaller story that fails as the seed does: fewer deeds, kinds of deeds, actors.
shrink SEED:
    SYNCD_SIMULATION_SEED={{SEED}} RUST_BACKTRACE=0 cargo test --test simulation shrink -- --ignored --nocapture

# Known bugs, planted one at a time: the simulation has to find each.
planted *ARGS:
    tests/planted/run {{ARGS}}

# Every fuzz target for some seconds (needs cargo-fuzz; RUSTC_BOOTSTRAP lets stable Rust sanitise).
fuzz SECONDS="60":
    for target in $(cd fuzz && cargo fuzz list); do just fuzz-one $target {{SECONDS}} || exit 1; done

# One fuzz target for some seconds.
fuzz-one TARGET SECONDS="60":
    cd fuzz && RUSTC_BOOTSTRAP=1 cargo fuzz run {{TARGET}} -- -max_total_time={{SECONDS}} -max_len=16384 -rss_limit_mb=2048

# A server and a client, real records, a comparison.
demo *ARGS:
    cargo run --release --bin syncctl -- demo {{ARGS}}

# Licences, sources, duplicates, advisories (needs cargo-deny).
deny:
    cargo deny check licenses sources bans

# The figures of docs/PERFORMANCE.md.
bench:
    cargo build --profile dist
    python3 benches/pair.py

# The image of this commit.
docker TAG="syncd:latest":
    DOCKER_BUILDKIT=1 docker build --tag {{TAG}} \
        --build-arg VERSION="$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -1)" \
        --build-arg REVISION="$(git rev-parse HEAD)" \
        --build-arg CREATED="$(git log -1 --format=%cI)" \
        --build-arg SOURCE_DATE_EPOCH="$(git log -1 --format=%ct)" .

# Server, replicas, Prometheus, Grafana and Jaeger in containers.
up *ARGS:
    docker compose up --detach {{ARGS}}

# What CI runs.
ci:
    .ci/run

# The tests that need a stack (Prometheus, Jaeger, Docker, a Kubernetes API server): those whose tools are
# missing are skipped by name. `just stack-tools` installs them (Debian, root).
stack *ARGS:
    cargo build --bins
    tests/stack/run {{ARGS}}

stack-tools:
    for tool in tests/stack/install/*; do $tool || exit 1; done

# The pictures of docs/images, from a run of two minutes with a real Prometheus.
images:
    cargo build --release
    tests/stack/run --collect-only -q tests/stack/test_traces.py > /dev/null
    SYNCD_STACK_PROFILE=release "${SYNCD_STACK_TOOLS:-$HOME/.cache/syncd-stack}/venv/bin/python" docs/images/draw.py
