"""The benchmark measures what it says: the generator sees what is wrong, and systems are run end to end."""

import json
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from subprocess import PIPE

import pytest

from bench import peers, runner
from bench.cases import Echo, Fanout, Idle, Ingest, Storm
from bench.wires import CHANNEL, LINES, MQTT, NATS, RESP, Wire, filler, payload
from tests.harness import TIMEOUT

BENCH = Path(__file__).parents[2] / "bench"
SIZE = 40


@pytest.fixture(scope="module", autouse=True)
def programs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Build the programs in C where these tests alone use them."""
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        pytest.skip("there is no C compiler here, which the load generator needs")
    if shutil.which("redis-server") is None:
        pytest.skip("there is no redis-server on the PATH, which the benchmark compares with")
    build = tmp_path_factory.mktemp("bench")
    for name in ("load", "floor"):
        command = [
            compiler,
            "-Wall",
            "-Wextra",
            "-Werror",
            "-O1",
            "-o",
            str(build / name),
            str(BENCH / f"{name}.c"),
        ]
        subprocess.run(command, check=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(peers, "BUILD", build)
        yield


def reported(sent: bytes, wire: Wire = LINES, messages: int = 4) -> dict[str, float]:
    """Return what the generator says of one client that is sent some bytes, and then closed."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        words = [str(peers.BUILD / "load"), "receive", "--port", str(port), "--clients", "1"]
        words += ["--messages", str(messages), "--hello", wire.hello.hex(), "--ready", wire.ready.hex()]
        words += ["--before", wire.before(SIZE).hex(), "--after", wire.after.hex()]
        words += ["--noise", wire.noise.hex(), "--filler", filler(SIZE).hex()]
        with subprocess.Popen(words, stdin=PIPE, stdout=PIPE) as load:
            client, _ = listener.accept()
            with client:
                client.settimeout(TIMEOUT)
                assert client.recv(1024) == wire.hello
                client.sendall(wire.ready)
                assert load.stdout is not None
                assert load.stdout.readline() == b"ready\n"
                for at in range(0, len(sent), 7):  # frames arrive in pieces
                    client.sendall(sent[at : at + 7])
            report: dict[str, float] = json.loads(load.stdout.readline())
            return report


def frames(*numbers: int, wire: Wire = LINES) -> bytes:
    return b"".join(wire.before(SIZE) + payload(n, filler(SIZE)) + wire.after for n in numbers)


@pytest.mark.parametrize("wire", [LINES, RESP, NATS, MQTT], ids=["lines", "RESP", "NATS", "MQTT"])
def test_the_generator_counts_what_it_gets(wire: Wire) -> None:
    report = reported(frames(0, 1, wire=wire) + wire.noise + frames(2, 3, wire=wire), wire)
    assert report["received"] == 4
    assert report["missing"] == report["disordered"] == report["damaged"] == 0
    assert 0 <= report["p50_us"] <= report["p99_us"] <= report["max_us"]


@pytest.mark.parametrize(
    ("sent", "received", "missing", "disordered", "damaged"),
    [
        (frames(0, 1, 3), 3, 1, 0, 0),
        (frames(0, 2, 1, 3), 3, 1, 1, 0),
        (frames(0, 1, 1, 2, 3), 4, 0, 1, 0),
        (frames(0, 1), 2, 2, 0, 0),
        (frames(0) + frames(1).replace(b"rabbit", b"rabbis") + frames(2, 3), 3, 1, 0, 1),
        (b"", 0, 4, 0, 0),
    ],
    ids=["a gap", "out of order", "twice", "an early end", "damage", "nothing"],
)
def test_the_generator_sees_what_is_wrong(
    sent: bytes, received: int, missing: int, disordered: int, damaged: int
) -> None:
    report = reported(sent)
    found = (report["received"], report["missing"], report["disordered"], report["damaged"])
    assert found == (received, missing, disordered, damaged)


@pytest.mark.parametrize("peer", peers.PEERS, ids=lambda peer: peer.name)
def test_every_peer_delivers_everything(peer: peers.Peer) -> None:
    if missing := peer.missing():
        pytest.skip(missing)
    if peer is peers.NAIVE_TORNADO:
        pytest.importorskip("tornado", reason="Tornado comes with pushd[bench], which is not installed")
    figures = runner.run(peer, Fanout("", clients=20, messages=100, window=50))
    assert figures["deliveries"] == 2000
    assert figures["lost"] == figures["closed"] == 0
    assert figures["server_cpu_s"] > 0
    assert figures["p99_ms"] >= figures["p50_ms"] > 0


def test_clients_that_stall_are_left_out_of_the_figures() -> None:
    case = Fanout("", clients=20, messages=10, rate=100, stalled=5, options=("--slow", "skip"), probed=True)
    figures = runner.run(peers.PUSHD, case)
    assert figures["deliveries"] == 150
    assert figures["lost"] == 0
    assert figures["echo_probes"] > 0


@pytest.mark.parametrize("fed", [False, True])
def test_an_ingest_loses_nothing(fed: bool) -> None:
    figures = runner.run(peers.PUSHD, Ingest("", messages=20_000, fed=fed))
    assert figures["deliveries"] == 20_000
    assert figures["lost"] == 0


def test_all_return_after_a_storm() -> None:
    figures = runner.run(peers.PUSHD, Storm("", clients=50))
    assert figures["refused"] == 0
    assert figures["joined_s"] > 0
    assert figures["returned_s"] > 0


def test_echoes_are_counted() -> None:
    figures = runner.run(peers.PUSHD, Echo("", clients=3, pipeline=10, seconds=0.1))
    assert figures["deliveries"] >= 30


def test_idle_clients_are_weighed() -> None:
    figures = runner.run(peers.PUSHD, Idle("", clients=500))
    assert 0 < figures["bytes_per_client"] < 10_000


def test_a_peer_that_is_not_installed_says_how_to_install_it() -> None:
    peer = peers.Peer("Other", LINES, "redis", peers.PUSHD.start, "no-such-program", "other-server")
    assert peer.missing() == "Other is left out: no no-such-program here; apt-get install other-server"


def test_a_server_that_does_not_start_is_said_with_what_it_printed(tmp_path: Path) -> None:
    with (
        pytest.raises(peers.BenchError, match="Bad directive"),
        peers.running(["redis-server", "--no-such-option", CHANNEL.decode()], lambda: False, tmp_path),
    ):
        pytest.fail("it started")


def test_a_client_that_stalled_and_was_cut_off_counts_as_closed_only() -> None:
    # More than the kernel takes on both sides for a client that does not read, and then more than the log.
    case = Fanout("", clients=4, messages=400, size=16384, rate=400, stalled=1, options=("--history", "1M"))
    figures = runner.run(peers.PUSHD, case)
    assert figures["deliveries"] == 1200
    assert figures["closed"] == 1
    assert figures["lost"] == 0
