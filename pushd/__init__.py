"""pushd: a push gateway from Redis to every TCP client."""

__version__ = "0.1.0"
