"""Tests of pushd, module by module."""
