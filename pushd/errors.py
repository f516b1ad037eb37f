"""What is told to the user when something is wrong."""


class SettingsError(Exception):
    """A setting is wrong. Its text is one line: what was wrong, and what is allowed."""


def one_line(error: BaseException | None) -> str:
    """Return what an error says, as a part of a line; its type where it says nothing."""
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__
