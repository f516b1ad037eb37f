"""What pushd asks of the kernel for its clients' sockets, and for itself."""

import os
import resource
import socket

IDLE_SECONDS = 60
"""A quiet connection is probed after so long."""

PROBES = 3
PROBE_SECONDS = 15
"""So often, and so far apart, is a peer probed that does not answer."""

UNACKNOWLEDGED_SECONDS = 90
"""What a peer has not acknowledged, or has had no room for, for so long, ends its connection.

With it a peer that vanished is gone within two minutes, whether or not there is something to send to it.
"""


def tune_listener(descriptor: int, send_buffer: int) -> None:
    """Set on a listening socket what all connections that it accepts inherit: see socket(7) and tcp(7).

    The kernel doubles send_buffer, for its own books, and caps it at net.core.wmem_max. A Unix socket is left
    as it is: nothing is inherited there.
    """
    with socket.socket(fileno=os.dup(descriptor)) as listener:
        if listener.family not in (socket.AF_INET, socket.AF_INET6):
            return
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        watch_peer(listener)


def watch_peer(connection: socket.socket) -> None:
    """Have the kernel end a TCP connection within two minutes after its peer has vanished.

    Does nothing to a Unix socket, whose peer cannot vanish.
    """
    if connection.family not in (socket.AF_INET, socket.AF_INET6):
        return
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (
        (socket.TCP_KEEPIDLE, IDLE_SECONDS),
        (socket.TCP_KEEPCNT, PROBES),
        (socket.TCP_KEEPINTVL, PROBE_SECONDS),
        (socket.TCP_USER_TIMEOUT, UNACKNOWLEDGED_SECONDS * 1000),
    ):
        connection.setsockopt(socket.IPPROTO_TCP, option, value)


def raise_descriptor_limit() -> int:
    """Raise the soft limit of file descriptors to the hard one, and return it."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard
