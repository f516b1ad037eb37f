"""Tells twistd about pushd; nothing of pushd is imported until it is asked for."""

from twisted.application.service import ServiceMaker

pushd = ServiceMaker(
    "pushd",
    "pushd.tap",
    "Deliver what is published in Redis to every TCP client.",
    "pushd",
)
