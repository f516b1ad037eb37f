"""What is told to the user when something is wrong."""


class SettingsError(Exception):
    """A setting is wrong. Its text is one line: what was wrong, and what is allowed."""


def one_line(error: BaseException | None) -> str:
    """Return what an error says, as part of a line: 300 characters at most, its type if it says nothing."""
    text = " ".join(str(error).split()).rstrip(".") or type(error).__name__
    return "".join(letter if letter.isprintable() else "?" for letter in text[:300])
