"""Tests of the whole with real processes, servers and sockets."""
