"""Values of options: read from the command line and from files; what is wrong names the option."""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from twisted.python import usage

from pushd.errors import SettingsError

T = TypeVar("T")

MAX_FILE_BYTES = 4 * 1024**2
"""Keys and passwords are far smaller; a bundle of all public authorities is a quarter of a megabyte."""


class CheckedOptions(usage.Options):
    """Options whose values are checked when all are known. What is wrong raises SettingsError."""

    def read(self, option: str, parse: Callable[[str], T]) -> T:
        """Return the value of an option that has a default."""
        return named(option, parse, self[option])

    def read_optional(self, option: str, parse: Callable[[str], T]) -> T | None:
        """Return the value of an option; None where it is not given."""
        return None if self[option] is None else self.read(option, parse)


def named(option: str, parse: Callable[[str], T], value: str) -> T:
    """Parse a value; what is wrong with it begins with the option's name."""
    try:
        return parse(value)
    except SettingsError as error:
        raise SettingsError(f"--{option}: {error}") from None


def read_file(path: str) -> bytes:
    """Return what a file holds, which is less than MAX_FILE_BYTES."""
    try:
        with Path(path).open("rb") as file:
            data = file.read(MAX_FILE_BYTES)
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else str(error)
        raise SettingsError(f"cannot read {path!r}: {why}; allowed: a readable file") from None
    if len(data) == MAX_FILE_BYTES:
        raise SettingsError(f"{path!r} is too large; allowed: a file of less than {MAX_FILE_BYTES} bytes")
    return data


def read_password(path: str) -> bytes:
    """Return the first line of a file."""
    password = read_file(path).partition(b"\n")[0].removesuffix(b"\r")
    if not password:
        raise SettingsError(f"{path!r} has an empty first line; allowed: the password there")
    return password
