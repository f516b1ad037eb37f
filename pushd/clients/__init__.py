"""The protocols that clients speak to pushd."""
