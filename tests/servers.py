"""Real deployments of Redis for integration tests, ended by the test that began them.

Single servers, a master and a replica under three Sentinels, and a Cluster, each with or without passwords
and TLS. Their servers are processes, to be killed, frozen and thawed; what waits for a deployment asks only
those that can answer.
"""

import contextlib
import functools
import random
import secrets
import socket
import ssl
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import hiredis
import pytest
import redis
from redis.crc import key_slot

from tests.harness import TIMEOUT, Process, RedisServer, redis_program
from tests.integration.certificates import Authority

Found = TypeVar("Found")

HOST = "127.0.0.1"
SLOTS = 16384
BUS = 10000
"""What Redis adds to a port for that of the bus of a Cluster."""
NOTHING = object()
"""Stands for an answer that is not complete yet."""
ENCRYPTED = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""For those who look after the servers. It takes every certificate, and no time to load authorities."""
ENCRYPTED.check_hostname = False
ENCRYPTED.verify_mode = ssl.CERT_NONE


def until(condition: Callable[[], Found | None], what: str, timeout: float = TIMEOUT) -> Found:
    """Return what a condition gives, once it is true; after an error of Redis or a connection, ask again."""
    deadline = time.monotonic() + timeout
    while True:
        last: object
        try:
            if last := condition():
                return last
        except (redis.RedisError, OSError) as error:
            last = error
        assert time.monotonic() < deadline, f"not within {timeout} s: {what}; at last {last!r}"
        time.sleep(0.02)


def free_ports(count: int) -> list[int]:
    """Return ports on loopback that are free, and those for a Cluster's bus above them too.

    None is one that the system gives to whoever asks for any: a server can be restarted at its port.
    """
    found: list[int] = []
    for port in random.sample(range(10000, 22000), 1000):
        with contextlib.suppress(OSError), socket.socket() as probe, socket.socket() as bus:
            probe.bind((HOST, port))
            bus.bind((HOST, port + BUS))
            found.append(port)
            if len(found) == count:
                return found
    raise AssertionError(f"there are no {count} free ports")


@functools.cache
def has_tls() -> bool:
    """Tell whether the redis-server here is built with TLS; others do not know the option."""
    command = [redis_program("redis-server"), "--tls-port", "none"]
    said = subprocess.run(command, check=False, capture_output=True, text=True, timeout=TIMEOUT)
    return "Bad directive" not in said.stdout + said.stderr


@functools.cache
def has_sharded_pubsub() -> bool:
    """Tell whether the redis-server here is 7 or newer."""
    command = [redis_program("redis-server"), "--version"]
    said = subprocess.run(command, check=True, capture_output=True, text=True, timeout=TIMEOUT).stdout
    return int(said.partition("v=")[2].partition(".")[0]) >= 7


class Reachable(Process):
    """A process that speaks the protocol of Redis at a port, with or without a password and TLS."""

    port: int
    url: str
    """Without the password."""
    password: str | None
    authority: Authority | None

    def cli(self, *words: str) -> str:
        """Run one command through redis-cli and return what it printed."""
        password = [] if self.password is None else ["-a", self.password, "--no-auth-warning"]
        tls = [] if self.authority is None else ["--tls", "--insecure"]
        command = [redis_program("redis-cli"), "-p", str(self.port), *password, *tls, *words]
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=TIMEOUT).stdout

    def client(self, password: str | None = None) -> redis.Redis:
        """Return a connection to the server, by TLS if need be, and whatever its certificate is."""
        return redis.Redis(
            HOST,
            self.port,
            password=password or self.password,
            socket_timeout=TIMEOUT,
            ssl=self.authority is not None,
            ssl_cert_reqs="none",
            ssl_check_hostname=False,
        )

    def ask(self, *words: str | bytes | int) -> Any:
        """Return the raw answer to one command, on a connection of its own; raise what is an error."""
        commands: list[Any] = [words] if self.password is None else [("AUTH", self.password), words]
        reader = hiredis.Reader(replyError=redis.ResponseError, notEnoughData=NOTHING)
        answer: Any = None
        with (
            socket.create_connection((HOST, self.port), 2) as plain,
            plain if self.authority is None else ENCRYPTED.wrap_socket(plain) as connection,
        ):
            for command in commands:
                connection.sendall(hiredis.pack_command(command))
                while (answer := reader.gets()) is NOTHING:
                    data = connection.recv(65536)
                    if not data:
                        raise ConnectionError(f"the server at port {self.port} has closed the connection")
                    reader.feed(data)
                if isinstance(answer, redis.ResponseError):
                    raise answer
        return answer

    def can_answer(self) -> bool:
        """Tell whether the process is alive and not frozen."""
        if self._child.poll() is not None:
            return False
        state = Path(f"/proc/{self.pid}/stat").read_text().rpartition(") ")[2][0]
        return state not in "TZ"


class Node(Reachable, RedisServer):
    """A redis-server with its files in a directory, by TLS if there is an authority.

    The certificate is the authority's for 127.0.0.1 and localhost unless another is given. Options come last.
    """

    def __init__(
        self,
        directory: Path,
        *options: str,
        port: int | None = None,
        password: str | None = None,
        authority: Authority | None = None,
        certificate: Path | None = None,
    ) -> None:
        self.password = password
        self.authority = authority
        port = port or free_ports(1)[0]
        self._again = functools.partial(
            Node,
            directory,
            *options,
            port=port,
            password=password,
            authority=authority,
            certificate=certificate,
        )
        files = ("--dir", str(directory), "--dbfilename", f"{port}.rdb")
        secret = () if password is None else ("--requirepass", password, "--masterauth", password)
        encrypted = [] if authority is None else _tls(directory, port, authority, certificate)
        words = [word for name, value in encrypted for word in (f"--{name}", value)]
        try:
            super().__init__(*files, *secret, *words, *options, port=port)
        except AssertionError:
            self.kill()
            raise
        if authority is not None:
            self.url = f"rediss://{HOST}:{port}"

    def again(self) -> "Node":
        """Start the same server once more, after this one has ended."""
        self.kill()
        return self._again()

    def role(self) -> str:
        """Return "master" or "slave", as the server says."""
        role: bytes = self.ask("ROLE")[0]
        return role.decode()

    def follows(self) -> int | None:
        """Return the port of the master of a replica."""
        role = self.ask("ROLE")
        return int(role[2]) if role[0] == b"slave" else None

    def is_connected(self) -> bool:
        """Tell whether a replica has all that its master has."""
        role = self.ask("ROLE")
        return bool(role[0] == b"slave" and role[3] == b"connected")


class Sentinel(Reachable):
    """A redis-sentinel, which keeps its configuration in a file."""

    def __init__(
        self,
        directory: Path,
        *lines: str,
        port: int,
        password: str | None = None,
        authority: Authority | None = None,
    ) -> None:
        self.port = port
        self.password = password
        self.authority = authority
        self.url = f"{'redis' if authority is None else 'rediss'}://{HOST}:{port}"
        # A password in a configuration is in quotes, for the sake of spaces.
        secret = [] if password is None else [f"requirepass {_quoted(password)}"]
        encrypted = [] if authority is None else _tls(directory, port, authority, None)
        configuration = directory / f"sentinel-{port}.conf"
        configuration.write_text(
            "\n".join(
                [
                    *(f"port {port}", f"bind {HOST}", f"dir {_quoted(str(directory))}"),
                    *(f"{name} {_quoted(value)}" for name, value in encrypted),
                    *(*secret, *lines, ""),
                ]
            )
        )
        super().__init__([redis_program("redis-server"), configuration, "--sentinel"])
        try:
            self.wait_for("Sentinel ID is")
        except AssertionError:
            self.kill()
            raise

    def about(self, what: str, name: str) -> list[dict[str, str]]:
        """Return what the Sentinel knows of the "master", the "replicas" or the other "sentinels"."""
        answer = self.ask("SENTINEL", what, name)
        return [_pairs(one) for one in ([answer] if what == "master" else answer)]

    def master_port(self, name: str) -> int:
        """Return the port of the server that the Sentinel calls master."""
        return int(self.ask("SENTINEL", "GET-MASTER-ADDR-BY-NAME", name)[1])


class Deployment:
    """Servers that are started together when a block is entered, and ended when it is left."""

    def __init__(
        self, directory: Path, password: str | None, authority: Authority | None, options: Sequence[str]
    ) -> None:
        self.directory = directory
        self.password = password
        self.authority = authority
        self.servers: list[Node] = []
        self._options = options
        self._running = contextlib.ExitStack()

    def __enter__(self) -> Self:
        assert not self.servers
        with contextlib.ExitStack() as stack:
            self._running = stack
            self._start()
            self.settle()
            self._running = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._running.close()

    def restart(self, server: Node) -> Node:
        """Start a server anew, killed if it still runs: the new one takes its place and its port."""
        fresh = self._running.enter_context(server.again())
        self.servers[self.servers.index(server)] = fresh
        return fresh

    def settle(self) -> None:
        """Return once all servers that can answer are in their places, and know of each other."""
        # Sentinels of Redis 6 look every ten seconds only.
        until(self._is_settled, "the servers are in their places", timeout=3 * TIMEOUT)

    def answering(self) -> list[Node]:
        """Return the servers that can answer."""
        return [server for server in self.servers if server.can_answer()]

    def _start(self) -> None:
        raise NotImplementedError

    def _is_settled(self) -> bool:
        raise NotImplementedError

    def _add(self, *options: str, port: int) -> Node:
        node = Node(
            self.directory,
            *options,
            *self._options,
            port=port,
            password=self.password,
            authority=self.authority,
        )
        self.servers.append(self._running.enter_context(node))
        return node

    def _at(self, port: int) -> Node:
        return next(server for server in self.servers if server.port == port)


class Replicated(Deployment):
    """A master, its replica, and three Sentinels of whom two have to agree.

    They know each other from the beginning by their configuration, as restarted Sentinels do. It settles only
    while both servers run; one that is restarted begins in the role that it had in the beginning.
    """

    def __init__(
        self,
        directory: Path,
        *,
        password: str | None = None,
        sentinel_password: str | None = None,
        authority: Authority | None = None,
        options: Sequence[str] = (),
        down_after: float = 1.0,
    ) -> None:
        super().__init__(directory, password, authority, options)
        self.sentinels: list[Sentinel] = []
        self.master_name = "main"
        self._sentinel_password = sentinel_password
        self._down_after = down_after

    def master(self) -> Node:
        """Return the server that most Sentinels call master."""
        return self._at(until(self._elected, "most Sentinels call one server master"))

    def other(self) -> Node:
        """Return the server that is not the master."""
        master = self.master()
        return next(server for server in self.servers if server is not master)

    def failover(self) -> Node:
        """Let a Sentinel exchange the two servers; return the master to be, without waiting for it."""
        if len(self.answering()) == 2:
            self.settle()
        promoted = self.other()
        until(
            lambda: self._watching()[0].ask("SENTINEL", "FAILOVER", self.master_name),
            "a Sentinel begins a failover",
        )
        return promoted

    def wait_for_master(self, server: Node) -> None:
        """Return once a server says that it is the master, and all Sentinels that can answer say so too."""

        def is_master() -> bool:
            return server.role() == "master" and set(self.master_ports()) == {server.port}

        until(is_master, f"the server at port {server.port} is the master, for the Sentinels too")

    def master_ports(self) -> list[int]:
        """Return the port of the master according to each Sentinel that can answer."""
        return [sentinel.master_port(self.master_name) for sentinel in self._watching()]

    def _start(self) -> None:
        first, second, *ports = free_ports(5)
        # The first synchronisation begins at once, not after the usual five seconds.
        common = ["--repl-diskless-sync", "yes", "--repl-diskless-sync-delay", "0"]
        if self.authority is not None:
            common += ["--tls-replication", "yes"]
        self._add(*common, port=first)
        self._add(*common, "--replicaof", HOST, str(first), port=second)
        identities = {port: secrets.token_hex(20) for port in ports}
        for port in ports:
            others = [
                f"sentinel known-sentinel {self.master_name} {HOST} {other} {identities[other]}"
                for other in ports
                if other != port
            ]
            sentinel = Sentinel(
                self.directory,
                *(f"sentinel myid {identities[port]}", *self._monitoring(first, second), *others),
                port=port,
                password=self._sentinel_password,
                authority=self.authority,
            )
            self.sentinels.append(self._running.enter_context(sentinel))
            # Redis 7 lets Sentinels be quicker. They demote a former master after four periods of publishing.
            with contextlib.suppress(redis.ResponseError):
                sentinel.ask(
                    *("SENTINEL", "DEBUG", "INFO-PERIOD", 500, "PING-PERIOD", 500, "ASK-PERIOD", 200),
                    *("PUBLISH-PERIOD", 500, "TILT-TRIGGER", 20_000),
                )

    def _monitoring(self, first: int, second: int) -> list[str]:
        """Return what all Sentinels are told of the two servers."""
        name = self.master_name
        lines = [
            f"sentinel monitor {name} {HOST} {first} 2",
            f"sentinel down-after-milliseconds {name} {round(self._down_after * 1000)}",
            f"sentinel failover-timeout {name} 3000",
            f"sentinel parallel-syncs {name} 1",
            f"sentinel known-replica {name} {HOST} {second}",
        ]
        if self.password is not None:
            lines.append(f"sentinel auth-pass {name} {_quoted(self.password)}")
        if self._sentinel_password is not None:
            lines.append(f"sentinel sentinel-pass {_quoted(self._sentinel_password)}")
        if self.authority is not None:
            lines.append("tls-replication yes")
        return lines

    def _watching(self) -> list[Sentinel]:
        return [sentinel for sentinel in self.sentinels if sentinel.can_answer()]

    def _elected(self) -> int | None:
        """Return the port of the server that at least two Sentinels call master."""
        ports = self.master_ports()
        return next((port for port in ports if ports.count(port) >= 2), None)

    def _is_settled(self) -> bool:
        watching = self._watching()
        return all(self._is_content(sentinel, len(watching) - 1) for sentinel in watching)

    def _is_content(self, sentinel: Sentinel, others: int) -> bool:
        """Tell whether a Sentinel would find a replica to promote, and others to agree."""
        (master,) = sentinel.about("master", self.master_name)
        replicas = sentinel.about("replicas", self.master_name)
        peers = sentinel.about("sentinels", self.master_name)
        return (
            (master["flags"], master["role-reported"]) == ("master", "master")
            and [replica["flags"] for replica in replicas] == ["slave"]
            and replicas[0]["role-reported"] == "slave"
            and replicas[0]["master-link-status"] == "ok"
            and replicas[0]["master-port"] == master["port"]
            and len(peers) == len(self.sentinels) - 1
            and sum(peer["flags"] == "sentinel" for peer in peers) == others
        )


class Cluster(Deployment):
    """Three masters that share the slots of a Cluster equally, with a replica for each or without.

    The servers are the masters in the order of their slots, then their replicas in the same order.
    """

    def __init__(
        self,
        directory: Path,
        *,
        replicas: int = 0,
        password: str | None = None,
        authority: Authority | None = None,
        options: Sequence[str] = (),
    ) -> None:
        assert replicas in {0, 3}
        super().__init__(directory, password, authority, options)
        self._replicas = replicas
        self._names: dict[int, bytes] = {}

    def masters(self) -> list[Node]:
        """Return the masters that can answer."""
        return [server for server in self.answering() if server.role() == "master"]

    def replica_of(self, node: Node) -> Node:
        """Return the replica of a master."""
        return until(
            lambda: next((other for other in self.answering() if other.follows() == node.port), None),
            f"there is a replica of the server at port {node.port}",
        )

    def owner(self, channel: bytes) -> Node:
        """Return the server that owns the slot of a channel, once all that can answer agree on it."""
        return until(lambda: self._owner(key_slot(channel)), f"the servers agree whose {channel!r} is")

    def move(self, channel: bytes, to: Node) -> None:
        """Move the slot of a channel to another master, as resharding does; return once all know."""
        slot = key_slot(channel)
        source = self.owner(channel)
        if source is to:
            return
        to.ask("CLUSTER", "SETSLOT", slot, "IMPORTING", self._names[source.port])
        source.ask("CLUSTER", "SETSLOT", slot, "MIGRATING", self._names[to.port])
        third = [master for master in self.masters() if master not in {source, to}]
        for node in (to, source, *third):
            node.ask("CLUSTER", "SETSLOT", slot, "NODE", self._names[to.port])
        until(lambda: self._owner(slot) is to, f"all know the new owner of {channel!r}")

    def failover(self, node: Node) -> Node:
        """Let the replica of a master take over, even if that cannot answer; return it once all know."""
        slot = until(lambda: self._a_slot(node), f"the server at port {node.port} has slots")
        replica = self.replica_of(node)
        replica.ask("CLUSTER", "FAILOVER", *([] if node.can_answer() else ["FORCE"]))
        until(lambda: self._owner(slot) is replica, f"all know the new master at port {replica.port}")
        return replica

    def publish_sharded(self, channel: bytes, payload: bytes) -> int:
        """Publish in a sharded channel, at its owner; return how many subscribers got it there."""
        count: int = self.owner(channel).ask("SPUBLISH", channel, payload)
        return count

    def _start(self) -> None:
        total = 3 + self._replicas
        common = [
            *("--cluster-enabled", "yes", "--cluster-node-timeout", "1000"),
            *("--cluster-require-full-coverage", "no", "--cluster-announce-ip", HOST),
            *("--cluster-replica-validity-factor", "0"),
            *("--repl-diskless-sync", "yes", "--repl-diskless-sync-delay", "0"),
        ]
        if self.authority is not None:
            common += ["--tls-cluster", "yes", "--tls-replication", "yes"]
        for port in free_ports(total):
            node = self._add(*common, "--cluster-config-file", f"nodes-{port}.conf", port=port)
            self._names[port] = node.ask("CLUSTER", "MYID")
        for number, node in enumerate(self.servers):
            node.ask("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
            for other in self.servers[:number]:
                node.ask("CLUSTER", "MEET", HOST, other.port)
            if number < 3:
                slots = range(SLOTS * number // 3, SLOTS * (number + 1) // 3)
                node.ask("CLUSTER", "ADDSLOTS", *slots)
        for master, replica in zip(self.servers[:3], self.servers[3:], strict=False):
            until(
                functools.partial(replica.ask, "CLUSTER", "REPLICATE", self._names[master.port]),
                f"the server at port {replica.port} knows its master",
            )

    def _is_settled(self) -> bool:
        answering = self.answering()
        roles = {self._names[node.port].decode(): node.role() for node in answering}
        return all(
            {"cluster_state:ok", f"cluster_known_nodes:{len(self.servers)}"} <= _lines(node, "INFO")
            and dict(filter(None, map(_role, _lines(node, "NODES")))) == roles
            and (node.role() == "master" or node.is_connected())
            for node in answering
        )

    def _slots(self, node: Node) -> list[int | None]:
        """Return the port of the owner of each slot, as a server knows it."""
        owners: list[int | None] = [None] * SLOTS
        for first, last, owner, *_ in node.ask("CLUSTER", "SLOTS"):
            owners[first : last + 1] = [owner[1]] * (last + 1 - first)
        return owners

    def _owner(self, slot: int) -> Node | None:
        """Return the owner of a slot if all servers that can answer agree."""
        owners = {self._slots(server)[slot] for server in self.answering()}
        port = owners.pop()
        return None if owners or port is None else self._at(port)

    def _a_slot(self, node: Node) -> int | None:
        """Return a slot that a server owns, as one that can answer knows it; never the slot 0."""
        owners = self._slots(self.answering()[0])
        return max((slot for slot, port in enumerate(owners) if port == node.port), default=None)


def _tls(directory: Path, port: int, authority: Authority, certificate: Path | None) -> list[tuple[str, str]]:
    """Return the settings of a server that speaks TLS only; skip the test if it cannot."""
    if not has_tls():
        pytest.skip("the redis-server here is built without TLS")
    if certificate is None:
        certificate = authority.issue(directory / f"{port}.pem", HOST, "localhost")
    return [
        *(("port", "0"), ("tls-port", str(port)), ("tls-auth-clients", "no")),
        *(("tls-cert-file", str(certificate)), ("tls-key-file", str(certificate))),
        ("tls-ca-cert-file", str(authority.certificate)),
    ]


def _quoted(text: str) -> str:
    """Return a word for a configuration file of Redis."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _pairs(flat: Sequence[bytes]) -> dict[str, str]:
    """Return what an answer says of one thing, name by name."""
    words = [word.decode() for word in flat]
    return dict(zip(words[::2], words[1::2], strict=True))


def _lines(node: Node, what: str) -> set[str]:
    """Return the lines of what a server tells of its Cluster."""
    answer: bytes = node.ask("CLUSTER", what)
    return set(answer.decode().split("\n" if what == "NODES" else "\r\n"))


def _role(line: str) -> tuple[str, str] | None:
    """Return the name and the role of a server of which a line of CLUSTER NODES says nothing bad."""
    fields = line.split(" ")
    if len(fields) < 8 or fields[7] != "connected":
        return None
    flags = set(fields[2].split(",")) - {"myself"}
    return (fields[0], flags.pop()) if flags in ({"master"}, {"slave"}) else None
