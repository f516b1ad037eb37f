"""Clients come and go while messages pass: what each got, and what it was told to miss, is everything."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import pytest

from pushd.events import show_time
from tests.churn import NumberedAccount, Plan, Publications, World
from tests.control_clients import CONTROL, Event, control_ports
from tests.harness import Process, Pushd, RedisServer, raise_own_descriptor_limit

ROOT = Path(__file__).parents[2]
HISTORY = 1024**2
LOGS_BOUND = 24 * 1024**2
"""What all logs, and chunks of them, may take beside what pushd begins with."""
CLIENT_BOUND = 96 * 1024
"""What one client may take, which includes what waits for it."""


@pytest.fixture(name="plan")
def _plan(request: pytest.FixtureRequest) -> Plan:
    clients, messages, seconds = request.config.getoption("--churn").split(":")
    return Plan(1, int(clients), int(messages), float(seconds))


def start(start_pushd: Callable[..., Pushd], redis_port: int, plan: Plan) -> tuple[Pushd, int]:
    if not raise_own_descriptor_limit(plan.clients + 100):
        pytest.skip("this machine allows too few open files")
    pushd = start_pushd(
        *("--redis", f"redis://127.0.0.1:{redis_port}", "--control", CONTROL, "--allow", "*"),
        *("--history", str(HISTORY), "--send-buffer", "16K", "--heartbeat", "1"),
        *("--redis-ping", "0.5", "--redis-timeout", "0.5", "--redis-probe", "0.5"),
    )
    (port,) = control_ports(pushd)
    return pushd, port


def play(world: World, pushd: Pushd) -> None:
    """Let it happen, check what can be checked at the end only, and say what it was."""
    began, before = time.monotonic(), pushd.resident_bytes()
    with contextlib.closing(world):
        world.run()
    took, after = time.monotonic() - began, pushd.resident_bytes()
    pushd.terminate()
    print(f"\n{world.plan}: {took:.1f} s, Redis lost {world.publisher.losses} times")
    print("  " + ", ".join(f"{count} {what}" for what, count in sorted(world.counts.items())))
    tenth = -(-len(world.memory) // 10)
    highs = [max(world.memory[at : at + tenth]) for at in range(0, len(world.memory), tenth)]
    shown = [f"{memory / 1024**2:.1f}" for memory in (before, *highs, after)]
    print("  memory of pushd (MiB), before, at most in each tenth of the time, after: " + ", ".join(shown))
    print("  " + pushd.output.rpartition("] Stopped, ")[2].splitlines()[0])
    assert max(highs) - before < LOGS_BOUND + world.plan.clients * CLIENT_BOUND
    assert "Traceback" not in pushd.output
    assert "Unhandled" not in pushd.output
    for what in ("slow gaps", "recovered", "unsubscribed"):
        assert world.counts[what], f"nothing was played of: {what}"


def test_the_account_of_every_client_closes(
    plan: Plan, redis_server: RedisServer, start_pushd: Callable[..., Pushd]
) -> None:
    pushd, port = start(start_pushd, redis_server.port, plan)
    world = World(plan, port, redis_server.port, pushd.resident_bytes)
    play(world, pushd)
    assert not world.counts["source gaps"]


@contextlib.contextmanager
def harm(redis_port: int, plan: Plan) -> Iterator[tuple[Process, int]]:
    """Stand between pushd and Redis, and do harm."""
    command = [sys.executable, "-m", "tests.harm", redis_port, plan.seed, plan.seconds]
    with Process([str(word) for word in command], cwd=ROOT) as proxy:
        yield proxy, int(proxy.wait_for(r"Proxy on (\d+)")[1])


def test_the_account_of_every_client_closes_whatever_becomes_of_redis(
    plan: Plan, redis_server: RedisServer, start_pushd: Callable[..., Pushd]
) -> None:
    with harm(redis_server.port, plan) as (proxy, proxy_port), contextlib.ExitStack() as servers:
        pushd, port = start(start_pushd, proxy_port, plan)
        world = World(
            *(plan, port, redis_server.port, pushd.resident_bytes),
            harm_is_over=lambda: "Healed" in proxy.output,
            notice=2.0,
        )
        for at in (0.3, 0.6):
            world.later(at * plan.seconds, lambda: kill(servers, redis_server))
            world.later(at * plan.seconds + 0.5, lambda: restart(servers, redis_server))
        play(world, pushd)
    assert world.counts["source gaps"]
    assert world.publisher.losses == 2


def kill(servers: contextlib.ExitStack, first: RedisServer) -> None:
    first.kill()
    servers.close()


def restart(servers: contextlib.ExitStack, first: RedisServer) -> None:
    servers.enter_context(RedisServer(port=first.port))


class TestTheCheckSees:
    """What is wrong, where messages 0 to 9 are published on one channel."""

    KEY = ("channel", "a.0")

    @pytest.fixture
    def account(self) -> NumberedAccount:
        publications = Publications(Plan(1, 1, 10, 1.0), Random(1))
        publications.order[self.KEY] = list(range(10))
        publications.channels = ["a.0"] * 10
        publications.texts = [f"{number} a.0 " for number in range(10)]
        publications.before = [float(number) for number in range(10)]
        publications.after = [number + 0.5 for number in range(10)]
        account = NumberedAccount(self.KEY, publications)
        account.subscribed({"offset": 7, "id": "e-7"})
        return account

    @staticmethod
    def message(offset: int, number: int) -> Event:
        return {"channel": "a.0", "offset": offset, "id": f"e-{offset}", "data": f"{number} a.0 "}

    @staticmethod
    def gap(reason: str, missed: int | None, **members: object) -> Event:
        return {"type": "gap", "reason": reason, "missed": missed, "id": "e-8+1", **members}

    def lost(self, since: int, until: int) -> Event:
        times = {"since": show_time(since), "until": show_time(until)}
        return self.gap("source", None, **times)

    def test_nothing_where_nothing_is_wrong(self, account: NumberedAccount) -> None:
        account.message(self.message(8, 0))
        account.message(self.message(9, 1))
        account.gap(self.gap("slow", 2, **{"from": 10, "to": 11}))
        account.message(self.message(12, 4))
        account.gap(self.lost(5, 7))
        account.message(self.message(13, 7))
        account.stands(13)
        account.subscribed({"offset": 13, "id": "e-13", "recovered": False})
        account.gap(self.gap("evicted", 1, **{"from": 14, "to": 14}))
        account.message(self.message(15, 9))
        assert account.has_all

    @pytest.mark.parametrize(("offset", "number"), [(8, 0), (10, 1), (9, 0), (9, 2), (9, 9)])
    def test_a_message_that_is_not_the_next(self, account: NumberedAccount, offset: int, number: int) -> None:
        account.message(self.message(8, 0))
        with pytest.raises(AssertionError):
            account.message(self.message(offset, number))

    def test_a_message_that_is_lost_after_it_has_begun(self, account: NumberedAccount) -> None:
        with pytest.raises(AssertionError):
            account.message(self.message(8, 1))

    def test_a_gap_of_another_time(self, account: NumberedAccount) -> None:
        account.message(self.message(8, 0))
        account.gap(self.lost(1, 2))
        with pytest.raises(AssertionError):
            account.message(self.message(9, 4))

    @pytest.mark.parametrize(("first", "last", "missed"), [(10, 10, 1), (9, 10, 1), (9, 9, 2)])
    def test_a_gap_that_does_not_continue(
        self, account: NumberedAccount, first: int, last: int, missed: int
    ) -> None:
        account.message(self.message(8, 0))
        with pytest.raises(AssertionError):
            account.gap(self.gap("slow", missed, **{"from": first, "to": last}))

    def test_a_count_that_is_wrong(self, account: NumberedAccount) -> None:
        account.message(self.message(8, 0))
        account.gap(self.gap("slow", 2, **{"from": 9, "to": 10}))
        with pytest.raises(AssertionError):
            account.message(self.message(11, 2))

    def test_a_return_to_another_place(self, account: NumberedAccount) -> None:
        with pytest.raises(AssertionError):
            account.subscribed({"offset": 8, "id": "e-8", "recovered": True})
