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
from bench.wires import CHANNEL, CONTROL, LINES, MQTT, NATS, RESP, Wire, filler, own_channel, payload
from pushd.events import event
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
        patch.setattr(runner, "SETTLE_SECONDS", 0.1)  # no figure is looked at that this would spoil
        yield


def reported(sent: bytes, wire: Wire = LINES, messages: int = 4, own: bytes = b"") -> dict[str, float]:
    """Return what the generator says of one client that is sent some bytes, and then closed.

    With own it subscribes to a channel of its own, in place of that.
    """
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        words = [str(peers.BUILD / "load"), "receive", "--port", str(port), "--clients", "1"]
        words += ["--messages", str(messages), "--hello", wire.hello.hex(), "--ready", wire.ready.hex()]
        words += ["--before", wire.before(SIZE).hex(), "--after", wire.after.hex()]
        words += ["--noise", wire.noise.hex(), "--filler", filler(SIZE).hex()]
        words += ["--lead", wire.lead.hex(), "--own", own.hex()]
        with subprocess.Popen(words, stdin=PIPE, stdout=PIPE) as load:
            client, _ = listener.accept()
            with client:
                client.settimeout(TIMEOUT)
                assert client.recv(1024) == (wire.hello.replace(own, own_channel(0)) if own else wire.hello)
                client.sendall(wire.ready)
                assert load.stdout is not None
                assert load.stdout.readline() == b"ready\n"
                for at in range(0, len(sent), 7):  # frames arrive in pieces
                    client.sendall(sent[at : at + 7])
            report: dict[str, float] = json.loads(load.stdout.readline())
            return report


def frames(*numbers: int, wire: Wire = LINES) -> bytes:
    return b"".join(frame(n, wire) for n in numbers)


def frame(number: int, wire: Wire) -> bytes:
    place = b'%d,"id":"k3f9ab.1-%d' % (number + 9, number + 9) if wire is CONTROL else b""
    return wire.before(SIZE) + place + wire.lead + payload(number, filler(SIZE)) + wire.after


WIRES = {"lines": LINES, "control": CONTROL, "RESP": RESP, "NATS": NATS, "MQTT": MQTT}


@pytest.mark.parametrize("wire", WIRES.values(), ids=WIRES)
def test_the_generator_counts_what_it_gets(wire: Wire) -> None:
    noise = event("heartbeat", upstream="up") if wire is CONTROL else wire.noise
    report = reported(frames(0, 1, wire=wire) + noise + frames(2, 3, wire=wire), wire)
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


@pytest.mark.parametrize("wire", [CONTROL, RESP, NATS], ids=["control", "RESP", "NATS"])
@pytest.mark.parametrize(("number", "received", "damaged"), [(0, 4, 0), (1, 0, 4)], ids=["own", "other"])
def test_the_generator_knows_a_clients_own_channel(
    wire: Wire, number: int, received: int, damaged: int
) -> None:
    sent = frames(0, 1, 2, 3, wire=wire).replace(CHANNEL, own_channel(number))
    report = reported(sent, wire, own=CHANNEL)
    assert (report["received"], report["damaged"]) == (received, damaged)


@pytest.mark.parametrize(
    ("good", "bad"),
    [
        (b"rabbit", b"rabbis"),
        (b'"message","channel":"bench"', b'"message","channel":"other"'),
        (b'"data":', b'"date":'),
        (b'"}', b'"]'),
        (b'"offset":10,"id":"k3f9ab.1-10","data":"', b""),
        (b'"offset"', b"x" * 2000),
    ],
    ids=["payload", "channel", "member", "end", "too little", "too much"],
)
def test_the_generator_sees_a_damaged_line(good: bytes, bad: bytes) -> None:
    damage = frame(1, CONTROL).replace(good, bad)
    assert damage != frame(1, CONTROL)
    report = reported(frame(0, CONTROL) + damage + frames(2, 3, wire=CONTROL), CONTROL)
    assert report["received"] == 3
    assert report["damaged"] >= 1


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
    case = Fanout("", clients=20, messages=10, rate=100, stalled=5, slow="skip", probed=True)
    figures = runner.run(peers.PUSHD, case)
    assert figures["deliveries"] == 150
    assert figures["lost"] == 0
    assert figures["echo_probes"] > 0


@pytest.mark.parametrize(("slow", "closed"), [("disconnect", 5), ("skip", 0)])
def test_clients_of_the_control_protocol_stall_as_they_choose(slow: str, closed: int) -> None:
    case = Fanout("", 20, 150, size=16384, rate=400, stalled=5, slow=slow, options=("--history", "1M"))
    figures = runner.run(peers.PUSHD_CONTROL, case)
    assert figures["deliveries"] == 15 * 150
    assert figures["lost"] == 0
    assert figures["closed"] == closed


@pytest.mark.parametrize("peer", [peers.PUSHD_CONTROL, peers.REDIS, peers.NATS_SERVER], ids=lambda p: p.name)
def test_each_client_gets_what_is_published_to_its_own_channel(peer: peers.Peer) -> None:
    if missing := peer.missing():
        pytest.skip(missing)
    figures = runner.run(peer, Fanout("", clients=20, messages=30, rate=2000, own=True))
    assert figures["deliveries"] == 600
    assert figures["lost"] == 0
    assert figures["cpu_per_delivery_us"] > 0
    assert (figures["broker_cpu_per_delivery_us"] > 0) is (peer is peers.PUSHD_CONTROL)


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
