"""Admission: the limits on clients, which hold over all protocols together."""

import pytest

from pushd.clients.admission import Admission
from pushd.metrics import Metrics


def admission(max_clients: int = 1000, max_per_host: int | None = None) -> tuple[Admission, Metrics]:
    metrics = Metrics()
    return Admission(max_clients, max_per_host, metrics), metrics


def test_clients_are_counted_in_and_out() -> None:
    admitting, metrics = admission(2)
    for host in ("192.0.2.1", None):
        assert admitting.admits(host)
        admitting.joined(host)
    assert not admitting.admits("192.0.2.2")
    assert (admitting.clients, metrics.clients, metrics.refused) == (2, 2, 1)
    admitting.left(None)
    assert admitting.admits("192.0.2.2")
    assert (admitting.clients, metrics.clients, metrics.refused) == (1, 2, 1)


@pytest.mark.parametrize("host", ["192.0.2.1", "2001:db8::1"])
def test_a_host_has_a_limit_of_its_own(host: str) -> None:
    admitting, metrics = admission(max_per_host=2)
    for _ in range(2):
        assert admitting.admits(host)
        admitting.joined(host)
    assert not admitting.admits(host)
    assert admitting.admits("192.0.2.99")
    admitting.left(host)
    assert admitting.admits(host)
    assert metrics.refused == 1


def test_clients_without_an_address_have_only_the_limit_of_all() -> None:
    admitting, _ = admission(max_clients=5, max_per_host=1)
    for _ in range(5):
        assert admitting.admits(None)
        admitting.joined(None)
    assert not admitting.admits(None)


def test_nothing_is_kept_of_hosts_that_have_gone() -> None:
    admitting, _ = admission(max_per_host=3)
    for number in range(100):
        host = f"192.0.2.{number}"
        assert admitting.admits(host)
        admitting.joined(host)
        admitting.joined(host)
        admitting.left(host)
        admitting.left(host)
    assert admitting.admits("198.51.100.1")  # looked at, and never came
    assert (admitting.clients, len(admitting._hosts)) == (0, 0)
