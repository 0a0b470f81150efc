#!/usr/bin/env python3
"""The figures of docs/PERFORMANCE.md: our pair, and the peer where it is installed.

    cargo build --profile dist
    python3 benches/pair.py [--peer DIR] [--hash blake3,sha256] [--only NAME,...]

The peer is `cargo install commonware-sync --version 2026.7.1 --locked --root DIR`. Every figure is
taken with real processes on loopback; run it on a machine that does nothing else. Nothing but the
standard library is needed.
"""
import argparse, base64, http.client, json, os, re, shutil, signal, subprocess, sys, tempfile, threading, time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
TARGET = os.environ.get("CARGO_TARGET_DIR") or json.loads(subprocess.run(
    ["cargo", "metadata", "--format-version", "1", "--no-deps"], cwd=ROOT, capture_output=True, text=True).stdout)["target_directory"]
BIN = os.path.join(TARGET, "dist")


class Daemon:
    """One of our daemons on free ports."""

    def __init__(self, role, storage, *options, wait=True, environment=()):
        self.role, self.storage = role, storage
        endpoints = os.path.join(storage, "public/endpoints.json")
        if os.path.exists(endpoints):
            os.remove(endpoints)
        os.makedirs(os.path.dirname(storage), exist_ok=True)
        self.log = storage + ".log"
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("SYNCD_", "OTEL_"))} | dict(environment)
        self.process = subprocess.Popen(
            [os.path.join(BIN, "syncd-" + role), "--storage-dir", storage, "--api-port", "0",
             "--metrics-port", "0", "--log-format", "json", *options],
            stderr=open(self.log, "a"), env=environment)
        while wait and not os.path.exists(endpoints):
            if self.process.poll() is not None:
                sys.exit(f"{role} ended:\n" + open(self.log).read()[-2000:])
            time.sleep(0.01)
        if wait:
            found = json.load(open(endpoints))
            self.sync, self.api, self.metrics = found.get("sync"), found["api"], found["metrics"]

    def get(self, address, path):
        connection = http.client.HTTPConnection(address, timeout=60)
        connection.request("GET", path)
        return connection.getresponse().read()

    def status(self):
        return json.loads(self.get(self.api, "/v1/status"))

    def metric(self, name):
        for line in self.get(self.metrics, "/metrics").decode().splitlines():
            if line.startswith(name + " "):
                return float(line.split()[-1])
        return 0.0

    def rss_mib(self):
        for line in open(f"/proc/{self.process.pid}/status"):
            if line.startswith("VmRSS"):
                return int(line.split()[1]) / 1024

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        self.process.wait()


def server(directory, hash_, *options, **more):
    return Daemon("server", os.path.join(directory, "server"), "--hash", hash_, "--port", "0", "-o", "0", *options, **more)


def client(directory, of, *options, name="client", wait=True, **more):
    public = os.path.join(of.storage, "public")
    return Daemon("client", os.path.join(directory, name), "--server", of.sync,
                  "--server-key", public + "/identity.pub", "--trusted-key", public + "/publisher.pub",
                  "--database", public + "/database.id", *options, wait=wait, **more)


def wait_equal(replica, of):
    while True:
        if replica.status().get("root") == of.status()["root"]:
            return
        time.sleep(0.01)


def iterations(daemon, kind):
    for line in open(daemon.log):
        if '"sync_iteration"' in line:
            record = json.loads(line)
            if record["kind"] == kind:
                yield record


def records(path, count, prefix):
    with open(path, "w") as out:
        for n in range(count):
            out.write('{"key":"%s/%09d","value":"%032d"}\n' % (prefix, n, n))


def import_(of, path, batch, connections):
    out = subprocess.run([os.path.join(BIN, "syncctl"), "import", path, "--api", "http://" + of.api, "--batch", str(batch),
                          "--connections", str(connections)], capture_output=True, text=True)
    if out.returncode:
        sys.exit(out.stderr)
    return float(re.search(r"\((\d+) records/s\)", out.stdout).group(1))


def report(name, text):
    print(f"{name:34} {text}", flush=True)


def bench_import(directory, hash_):
    path = os.path.join(directory, "records.ndjson")
    records(path, 300_000, "import")
    for connections in (1, 8):
        of = server(os.path.join(directory, f"import{connections}"), hash_, "-i", "0")
        rate = import_(of, path, 1000, connections)
        report(f"import, {connections} connection(s)", f"{rate:,.0f} records/s (batches of 1000, {hash_})")
        of.stop()


def bench_state_sync(directory, hash_):
    for count in (100_000, 1_000_000):
        base = os.path.join(directory, f"sync{count}")
        os.makedirs(base)
        # One generated change in five overwrites a key, which costs no operation of its own in its commit.
        of = server(base, hash_, "-i", str(count * 1252 // 1000))
        floor, size = of.status()["floor"], of.status()["size"]
        rates = []
        for attempt in range(3):
            replica = client(base, of, name=f"client{attempt}", wait=False)
            while not os.path.exists(replica.log) or not list(iterations(replica, "state_sync")):
                time.sleep(0.02)
            took = next(iterations(replica, "state_sync"))["duration_ms"] / 1000
            rates.append((size - floor) / took)
            replica.process.kill()
            replica.process.wait()
        report(f"state sync, {size:,} operations",
               f"{sorted(rates)[1]:,.0f}/s median of {[f'{r:,.0f}' for r in rates]} ({size - floor:,} fetched, {hash_})")
        of.stop()


def bench_catch_up(directory, hash_):
    base = os.path.join(directory, "catch")
    of = server(base, hash_, "-i", "1000")
    replica = client(base, of)
    wait_equal(replica, of)
    replica.stop()
    path = os.path.join(directory, "missed.ndjson")
    for batch, count in ((5, 100_000), (1000, 100_000)):
        records(path, count, f"missed{batch}")
        before = of.status()["size"]
        import_(of, path, batch, 8)
        missed = of.status()["size"] - before
        started = time.time()
        replica = client(base, of)
        wait_equal(replica, of)
        took = time.time() - started
        report(f"catch-up, commits of {batch}", f"{missed / took:,.0f} operations/s: {missed:,} in {took:.2f} s with the start ({hash_})")
        replica.stop()
    of.stop()


def quantile(daemon, name, q, before):
    """Upper bound of the bucket that holds the quantile."""
    samples = []
    for line in daemon.get(daemon.metrics, "/metrics").decode().splitlines():
        match = re.match(name + r'_bucket\{le="([^"]+)"\} (\d+)', line)
        if match:
            samples.append((float(match.group(1).replace("+Inf", "inf")), int(match.group(2))))
    samples = [(le, n - before.get(le, 0)) for le, n in samples]
    total = samples[-1][1]
    return next(le for le, n in samples if n >= total * q) if total else float("nan")


def single_writes(of, rate, seconds, threads=8):
    """Single PUTs at a steady rate; the times of the answers."""
    host, port = of.api.split(":")
    times, lock = [], threading.Lock()
    start = time.time() + 0.2

    def lane(number):
        connection = http.client.HTTPConnection(host, int(port))
        for n in range(rate * seconds // threads):
            due = start + n * threads / rate + number / rate
            time.sleep(max(0, due - time.time()))
            sent = time.time()
            connection.request("PUT", f"/v1/keys/single-{number}-{n}", b"v" * 32, {"content-type": "application/octet-stream"})
            connection.getresponse().read()
            with lock:
                times.append(time.time() - sent)

    lanes = [threading.Thread(target=lane, args=(n,)) for n in range(threads)]
    [t.start() for t in lanes]
    [t.join() for t in lanes]
    took = time.time() - start
    return len(times) / took, sorted(times)


def bench_latency(directory, hash_):
    base = os.path.join(directory, "latency")
    of = server(base, hash_, "-i", "10000")
    replica = client(base, of)
    wait_equal(replica, of)
    name = "syncd_client_commit_to_apply_seconds"
    rate, times = single_writes(of, 1000, 10)
    time.sleep(0.5)
    p50, p99 = (quantile(replica, name, q, {}) * 1000 for q in (0.5, 0.99))
    report("1,000 single writes/s", f"{rate:,.0f}/s; answer p50 {times[len(times) // 2] * 1000:.1f} ms, p99 {times[len(times) * 99 // 100] * 1000:.1f} ms; "
           f"commit to durable on the replica p50 <= {p50:g} ms, p99 <= {p99:g} ms ({hash_})")
    replica.stop()
    of.stop()


def saturate(of, seconds, threads=16):
    """Single PUTs, each as soon as the one before is answered; writes a second."""
    host, port = of.api.split(":")
    end, counts = time.time() + seconds, []

    def lane(number):
        connection, count = http.client.HTTPConnection(host, int(port)), 0
        while time.time() < end:
            connection.request("PUT", f"/v1/keys/full-{number}-{count}", b"v" * 32, {"content-type": "application/octet-stream"})
            connection.getresponse().read()
            count += 1
        counts.append(count)

    lanes = [threading.Thread(target=lane, args=(n,)) for n in range(threads)]
    [t.start() for t in lanes]
    [t.join() for t in lanes]
    return sum(counts) / seconds


# A collector of traces that reads and forgets.
SINK = """
import http.server, sys
class Sink(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()
    def log_message(self, *args):
        pass
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Sink)
print(server.server_port, flush=True)
server.serve_forever()
"""


def bench_traces(directory, hash_):
    """What traces cost: off, one write in a hundred, all of them; three times each, in turn."""
    sink = subprocess.Popen([sys.executable, "-c", SINK], stdout=subprocess.PIPE, text=True)
    endpoint = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:" + sink.stdout.readline().strip()}
    sampled = endpoint | {"OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0.01"}
    ways = {"off": {}, "1 in 100": sampled, "all": endpoint}
    rates = {way: ([], [], []) for way in ways}
    path = os.path.join(directory, "records.ndjson")
    records(path, 200_000, "traced")
    for turn in range(3):
        for way, environment in ways.items():
            base = os.path.join(directory, f"{way}{turn}".replace(" ", ""))
            of = server(base, hash_, "-i", "10000", environment=environment)
            replica = client(base, of, environment=environment)
            wait_equal(replica, of)
            rates[way][0].append(saturate(of, 5))
            rates[way][1].append(import_(of, path, 1000, 4))
            wait_equal(replica, of)
            spans = sum(of.metric(f'syncd_trace_spans_total{{result="{word}"}}') for word in ("exported", "failed"))
            rates[way][2].append(spans)
            replica.stop()
            of.stop()
    sink.kill()
    middle = lambda values: sorted(values)[1]
    for way, (single, imported, spans) in rates.items():
        report(f"traces: {way}", f"{middle(single):,.0f} single writes/s ({middle(single) / middle(rates['off'][0]):.2f}), "
               f"import {middle(imported):,.0f}/s ({middle(imported) / middle(rates['off'][1]):.2f}), {middle(spans):,.0f} spans ({hash_})")


def bench_iteration(directory, hash_):
    for count in (10_000, 1_000_000):
        base = os.path.join(directory, f"iteration{count}")
        of = server(base, hash_, "-i", str(count))
        replica = client(base, of)
        wait_equal(replica, of)
        host, port = of.api.split(":")
        connection = http.client.HTTPConnection(host, int(port))
        name = "syncd_client_iteration_duration_seconds_%s{kind=\"follow\"}"
        before = [replica.metric(name % part) for part in ("sum", "count")]
        for n in range(200):
            body = "".join('{"key":"fifty/%d/%d","value":"%032d"}\n' % (n, i, i) for i in range(50))
            connection.request("POST", "/v1/batch", body, {"content-type": "application/x-ndjson"})
            connection.getresponse().read()
            time.sleep(0.005)
        wait_equal(replica, of)
        after = [replica.metric(name % part) for part in ("sum", "count")]
        mean = (after[0] - before[0]) / (after[1] - before[1])
        report(f"iteration of 50 writes at {count:,}", f"{mean * 1000:.2f} ms mean of {after[1] - before[1]:.0f}; memory: server {of.rss_mib():.0f} MiB, client {replica.rss_mib():.0f} MiB ({hash_})")
        replica.stop()
        started = time.time()
        replica = client(base, of)
        report(f"opening a replica of {count:,}", f"{time.time() - started:.2f} s until it serves ({hash_})")
        replica.stop()
        of.stop()


def generate(of, family, count, start=0, batch=1000):
    """Writes `count` changes of new keys, or values, in commits of `batch`."""
    host, port = of.api.split(":")
    connection = http.client.HTTPConnection(host, int(port))
    for first in range(start, start + count, batch):
        line = '{"value":"%032d"}\n' if family == "keyless" else '{"key":"f/%09d","value":"%032d"}\n'
        values = range(first, min(first + batch, start + count))
        body = "".join(line % (n if family == "keyless" else (n, n)) for n in values)
        connection.request("POST", "/v1/batch", body, {"content-type": "application/x-ndjson"})
        answer = connection.getresponse()
        if answer.status != 200:
            sys.exit(answer.read())
        answer.read()


def bench_families(directory, hash_):
    """Every valid combination: 100,000 changes, a state sync of them, 20,000 more followed, equal roots."""
    for family, mode, storage in (("any", "full", "full"), ("current", "full", "full"), ("immutable", "full", "full"), ("keyless", "full", "full"),
                                  ("immutable", "compact", "full"), ("keyless", "compact", "full"), ("keyless", "compact", "compact")):
        base = os.path.join(directory, family + mode + storage)
        of = server(base, hash_, "-i", "0", "--db", family, "--storage", storage, "--mode", storage)
        started = time.time()
        generate(of, family, 100_000)
        written = time.time() - started
        started = time.time()
        replica = client(base, of, "--db", family, "--mode", mode)
        wait_equal(replica, of)
        synced = time.time() - started
        took = next(iterations(replica, "state_sync"))["duration_ms"]
        started = time.time()
        generate(of, family, 20_000, start=100_000)
        wait_equal(replica, of)
        followed = time.time() - started
        ours, theirs = of.status(), replica.status()
        assert ours["root"] == theirs["root"] and ours["size"] == theirs["size"]
        disk = sum(os.path.getsize(os.path.join(at, f)) for at, _, fs in os.walk(replica.storage) for f in fs)
        report(f"{family}, {mode}, storage {storage}", f"{ours['size']:,} operations, roots equal; written in {written:.2f} s, state sync {took} ms (with start {synced:.2f} s), "
               f"writes followed in {followed:.2f} s; replica {replica.rss_mib():.0f} MiB, {disk / 1e6:.0f} MB on disk ({hash_})")
        replica.stop()
        of.stop()


def bench_proofs(directory, hash_):
    """Size of a proof, the time to make one, and to verify one in a process of its own."""
    for count in (1_000, 100_000, 1_000_000):
        base = os.path.join(directory, f"proofs{count}")
        of = server(base, hash_, "-i", "0", "--db", "current")
        generate(of, "current", count)
        public = os.path.join(of.storage, "public")
        host, port = of.api.split(":")
        connection = http.client.HTTPConnection(host, int(port))
        for kind, key in (("value", "f%%2F%09d"), ("absence", "absent%d")):
            sizes, made, verified = [], [], []
            for n in range(200):
                started = time.time()
                connection.request("GET", f"/v1/keys/{key % (n * count // 200)}?proof=true")
                text = connection.getresponse().read()
                made.append(time.time() - started)
                sizes.append(len(base64.b64decode(json.loads(text)["proof_b64"])))
                if n < 20:
                    path = os.path.join(base, "proof.json")
                    open(path, "wb").write(text)
                    started = time.time()
                    subprocess.run([os.path.join(BIN, "syncctl"), "verify", path, "--trusted-key", public + "/publisher.pub", "--database", public + "/database.id"],
                                   check=True, stdout=subprocess.DEVNULL)
                    verified.append(time.time() - started)
            middle = lambda times: sorted(times)[len(times) // 2]
            report(f"proof of {kind}, {count:,} keys", f"{middle(sizes):.0f} bytes; made in {middle(made) * 1000:.2f} ms (HTTP included), file {len(text)} bytes, "
                   f"verified in {middle(verified) * 1000:.1f} ms (process included) ({hash_})")
        of.stop()


def bench_retention(directory, hash_):
    """10,000 keys overwritten until 5,000,000 operations are through: what both directories take on the way."""
    keep = ("--retain-operations", "100000", "--log-retention", "5s", "--log-retention-bytes", "16MiB")
    of = server(directory, hash_, "-i", "0", *keep)
    replica = client(directory, of, *keep)
    host, port = of.api.split(":")
    connection = http.client.HTTPConnection(host, int(port))
    size = lambda daemon: sum(os.path.getsize(os.path.join(at, f)) for at, _, fs in os.walk(daemon.storage) for f in fs if os.path.exists(os.path.join(at, f)))
    rows, next_row, n = [], 0, 0
    while True:
        operations = of.status()["size"]
        if operations >= next_row:
            rows.append((operations, size(of), size(replica)))
            next_row += 250_000
        if operations >= 5_000_000:
            break
        body = "".join('{"key":"k%05d","value":"%032d"}\n' % (i, n) for i in range(n % 10_000, n % 10_000 + 1000))
        n += 1000
        connection.request("POST", "/v1/batch", body, {"content-type": "application/x-ndjson"})
        connection.getresponse().read()
    wait_equal(replica, of)
    top = max(max(row[1:]) for row in rows)
    for operations, ours, theirs in rows:
        bar = lambda bytes_: "#" * round(bytes_ / top * 30)
        print(f"  {operations:>9,}  server {ours / 1e6:6.1f} MB {bar(ours):30}  replica {theirs / 1e6:6.1f} MB {bar(theirs):30}")
    report("retention, 5,000,000 operations", f"at most {max(r[1] for r in rows) / 1e6:.0f} and {max(r[2] for r in rows) / 1e6:.0f} MB on disk; roots equal ({hash_})")
    replica.stop()
    of.stop()


def bench_peer(directory, peer):
    for count in (100_000, 1_000_000):
        for name, options in (("default flags", []), ("best flags", ["--batch-size", "100", "--max-outstanding-requests", "8"])):
            base = os.path.join(directory, f"peer{count}{len(options)}")
            of = subprocess.Popen([os.path.join(peer, "bin/server"), "--port", "18080", "--metrics-port", "18090", "--initial-ops", str(count),
                                   "--ops-per-interval", "0", "--op-interval", "1h", "--storage-dir", base + "/server"], stdout=open(base + ".server.log", "w"), stderr=subprocess.STDOUT)
            while "listening" not in open(base + ".server.log").read().lower():
                time.sleep(0.1)
                if of.poll() is not None:
                    sys.exit(open(base + ".server.log").read()[-1000:])
            rates = []
            for attempt in range(3):
                log = f"{base}.client{attempt}.log"
                started = time.time()
                replica = subprocess.Popen([os.path.join(peer, "bin/client"), "--server", "127.0.0.1:18080", "--metrics-port", "18091", "--storage-dir",
                                            f"{base}/client{attempt}", *options], stdout=open(log, "w"), stderr=subprocess.STDOUT)
                while not re.search(r"sync.*complete|completed|synced", open(log).read(), re.I):
                    time.sleep(0.02)
                    if replica.poll() is not None:
                        sys.exit(open(log).read()[-1000:])
                rates.append(count / (time.time() - started))
                replica.kill()
                replica.wait()
            report(f"peer state sync, {count:,}", f"{sorted(rates)[1]:,.0f}/s median of {[f'{r:,.0f}' for r in rates]} ({name}, sha256)")
            of.kill()
            of.wait()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", help="root of the installed peer")
    parser.add_argument("--hash", default="blake3,sha256")
    parser.add_argument("--only", default="import,state_sync,catch_up,latency,iteration,families,proofs,retention,traces,peer")
    args = parser.parse_args()
    directory = tempfile.mkdtemp(prefix="syncd-bench-")
    try:
        for hash_ in args.hash.split(","):
            for name in args.only.split(","):
                if name != "peer":
                    base = os.path.join(directory, hash_ + name)
                    os.makedirs(base)
                    globals()["bench_" + name](base, hash_)
                    shutil.rmtree(base)
        if args.peer and "peer" in args.only:
            bench_peer(directory, args.peer)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


main()
