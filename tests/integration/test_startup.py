"""Starting: what is wrong is one line on the terminal and a non-zero exit, before anything runs."""

import re
import resource
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.harness import SCRIPTS, TIMEOUT, Client, Process, Pushd


def start(tmp_path: Path, *words: str, daemon: bool = False) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [SCRIPTS / "twistd", *([] if daemon else ["-n"]), "pushd", *words],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )


@pytest.mark.parametrize(
    "words",
    [
        ["--slow", "drop"],
        ["--port", "http"],
        ["--port", "tcp"],
        ["--port", "nonsense:8888"],
        ["--port", "tcp:99999"],
        ["--redis", "redis://"],
        ["--history", "lots"],
        ["--max-clients", "100000000"],
        ["--redis-password-file", "nowhere"],
        ["--unknown"],
        ["stray"],
    ],
)
def test_a_wrong_option_is_one_line(words: list[str], tmp_path: Path) -> None:
    ended = start(tmp_path, *words)
    assert ended.returncode == 1
    assert ended.stdout == ""
    assert re.fullmatch(r"pushd: .+; allowed: .+\n", ended.stderr)
    assert ended.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("daemon", [False, True], ids=["foreground", "daemon"])
def test_a_port_that_is_taken_is_one_line(daemon: bool, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ended = start(tmp_path, "--port", f"tcp:{port}:interface=127.0.0.1", daemon=daemon)
        assert ended.returncode == 1
        assert re.fullmatch(
            rf"pushd: --port: Couldn't listen on 127.0.0.1:{port}: .*Address already in use; allowed: .*\n",
            ended.stderr,
        )
        ended = start(tmp_path, "--port", "0", "--redis", f"embedded:{port}", daemon=daemon)
        assert ended.returncode == 1
        assert re.fullmatch(
            rf"pushd: --redis embedded: Couldn't listen on 127.0.0.1:{port}: .*Address already in use;"
            r" allowed: one that is free, such as --redis embedded:6380\n",
            ended.stderr,
        )
        assert list(tmp_path.iterdir()) == []


def test_the_limit_of_descriptors_is_raised_and_told(start_pushd: Callable[..., Pushd]) -> None:
    pushd = start_pushd("--redis", "embedded:0", "--channel", "updates")
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    pushd.wait_for(rf"Room for {hard - 64} clients \(file descriptor limit {hard}\)")
    assert resource.prlimit(pushd.pid, resource.RLIMIT_NOFILE) == (hard, hard)


def test_more_clients_than_descriptors_are_refused_at_start(tmp_path: Path) -> None:
    command = f"ulimit -n 500 && exec '{SCRIPTS / 'twistd'}' -n pushd --max-clients 437"
    with Process(["bash", "-c", command], cwd=tmp_path) as process:
        assert process.wait() == 1
        assert process.output == (
            "pushd: --max-clients: 437 is above what the limit of 500 file descriptors allows;"
            " allowed: 1 to 436, or a higher limit (LimitNOFILE=, ulimit -Hn)"
        )


def test_without_a_channel_it_says_so_and_echoes(start_pushd: Callable[..., Pushd]) -> None:
    pushd = start_pushd()
    pushd.wait_for("No channel and no pattern: clients get nothing but the echo of what they type")
    with Client(pushd.port) as client:
        client.echo()
    assert pushd.terminate() < 0


def test_it_listens_on_several_ports_and_unix_sockets(
    start_pushd: Callable[..., Pushd], tmp_path: Path
) -> None:
    path = tmp_path / "socket"
    pushd = start_pushd("--port", f"unix:{path}", "--redis", "embedded:0", "--channel", "updates")
    pushd.wait_for(f"Listening on {path}")
    with socket.socket(socket.AF_UNIX) as local, Client(pushd.port) as remote:
        local.settimeout(TIMEOUT)
        local.connect(str(path))
        local.sendall(b"hello\r\n")
        assert local.recv(100) == b"hello\r\n"
        remote.echo()
