"""Listeners: the ports that pushd opens, all of them or none."""

from collections.abc import Sequence
from typing import Any

from twisted.internet.abstract import FileDescriptor
from twisted.internet.defer import Deferred, gatherResults, maybeDeferred
from twisted.internet.endpoints import serverFromString
from twisted.internet.interfaces import IListeningPort, IStreamServerEndpoint
from twisted.internet.protocol import Factory
from twisted.logger import Logger
from twisted.python.failure import Failure

from pushd.clients.connection import show_address
from pushd.errors import SettingsError, one_line
from pushd.sockets import tune_listener


class Listeners:
    """What one option opens for one kind of clients; title is what the log calls it.

    Raises SettingsError where a text is no endpoint.
    """

    _log = Logger()

    def __init__(
        self, option: str, title: str, texts: Sequence[str], factory: Factory, send_buffer: int, reactor: Any
    ) -> None:
        self._option = option
        self._title = title
        self._factory = factory
        self._send_buffer = send_buffer
        self._endpoints = [_endpoint(option, text, reactor) for text in texts]
        self.ports: list[IListeningPort] = []

    def open(self) -> None:
        """Open all ports; raises SettingsError where one cannot be had."""
        for endpoint in self._endpoints:
            port = open_port(self._option, endpoint, self._factory, f"such as {self._option} 8889")
            if isinstance(port, FileDescriptor):
                tune_listener(port.fileno(), self._send_buffer)
            self.ports.append(port)

    def announce(self) -> None:
        """Say in the log what is open."""
        for port in self.ports:
            self._log.info("{title} {address}", title=self._title, address=show_address(port.getHost()))

    def close(self) -> "Deferred[Any]":
        """Accept no more."""
        return gatherResults([maybeDeferred(port.stopListening) for port in self.ports])


def open_port(option: str, endpoint: IStreamServerEndpoint, factory: Factory, other: str) -> IListeningPort:
    """Open one port; raises SettingsError, which names the option, and another value for it."""
    opened: list[IListeningPort] = []
    failed: list[Failure] = []
    endpoint.listen(factory).addCallbacks(opened.append, failed.append)
    if opened:
        return opened[0]
    why = one_line(failed[0].value) if failed else "it does not open at once"
    raise SettingsError(f"{option}: {why}; allowed: one that is free, {other}")


def _endpoint(option: str, text: str, reactor: Any) -> IStreamServerEndpoint:
    try:
        endpoint: IStreamServerEndpoint = serverFromString(reactor, text)
    except Exception as error:
        raise SettingsError(
            f"{option}: {text!r} is not an endpoint of Twisted ({one_line(error)}); allowed: a port number,"
            " or such as tcp:8888:interface=127.0.0.1 or unix:/run/pushd/socket"
        ) from error
    return endpoint
