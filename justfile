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

# One seed of the simulation, or a thousand.
simulate SEEDS="1000":
    SYNCD_SIMULATION_SEEDS={{SEEDS}} cargo test --release --test simulation -- --nocapture

# A server and a client, real records, a comparison.
demo *ARGS:
    cargo run --release --bin syncctl -- demo {{ARGS}}

# Licences, sources, duplicates, advisories (needs cargo-deny).
deny:
    cargo deny check licenses sources bans

# The figures of docs/PERFORMANCE.md.
bench:
    cargo build --release
    python3 benches/pair.py

# What CI runs.
ci:
    .ci/run
