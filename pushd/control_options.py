"""The options of the control protocol."""

import os
from typing import ClassVar

from pushd.errors import SettingsError
from pushd.option_values import CheckedOptions, named, read_file
from pushd.settings import (
    Control,
    parse_count,
    parse_endpoint,
    parse_limit,
    parse_rate,
    parse_seconds,
    parse_timeout,
)


class ControlOptions(CheckedOptions):
    """A part of the options of ``twistd pushd``."""

    optParameters: ClassVar[tuple[tuple[str, None, str | None, str], ...]] = (
        (
            *("jwt-key", None, None),
            "With --control: a file with a secret of at least 32 bytes, or a public key (PEM). Clients must"
            " show a JSON Web Token then. Needs pip install 'pushd[jwt]'.",
        ),
        ("jwt-audience", None, None, "Who these tokens must be for (aud)."),
        ("jwt-issuer", None, None, "Who must have issued them (iss)."),
        ("auth-timeout", None, "5", "Seconds that a client has to show its token."),
        ("max-subscriptions", None, "128", "How many a client of --control may have."),
        (
            *("command-rate", None, "20"),
            "Commands a second that such a client may send; ten times as many at once after a quiet time.",
        ),
        ("heartbeat", None, "30", "Seconds between two heartbeats that it gets."),
        ("linger", None, "60", "Seconds for which a log is kept that nobody subscribes to any more."),
        ("max-channels", None, "10000", "How many logs may be kept at a time."),
        (
            *("max-patterns", None, "32"),
            "How many of them may be of patterns: each pattern brings a copy of each message it matches.",
        ),
    )

    def __init__(self) -> None:
        super().__init__()
        self._controls: list[str] = []
        self._allow: list[bytes] = []
        self._allow_publish: list[bytes] = []

    def opt_control(self, value: str) -> None:
        """Listen for the control protocol on a port, or an endpoint as with --port. Repeatable."""
        self._controls.append(value)

    def opt_allow(self, value: str) -> None:
        """With --control: what clients may subscribe to, a pattern. Repeatable. Default: what is named."""
        self._allow.append(os.fsencode(value))

    def opt_allow_publish(self, value: str) -> None:
        """With --control: what clients may publish to, a pattern. Repeatable. Default: nothing."""
        self._allow_publish.append(os.fsencode(value))

    def control(self) -> Control:
        """Return what has been chosen for the control protocol."""
        self._check_use()
        return Control(
            endpoints=tuple(named("control", parse_endpoint, endpoint) for endpoint in self._controls),
            allow=tuple(self._allow) or None,
            allow_publish=tuple(self._allow_publish) or None,
            jwt_key=self.read_optional("jwt-key", read_file),
            jwt_audience=self["jwt-audience"],
            jwt_issuer=self["jwt-issuer"],
            auth_timeout=self.read("auth-timeout", parse_timeout),
            max_subscriptions=self.read("max-subscriptions", parse_limit),
            command_rate=self.read("command-rate", parse_rate),
            heartbeat=self.read("heartbeat", parse_timeout),
            linger=self.read("linger", parse_seconds),
            max_channels=self.read("max-channels", parse_limit),
            max_patterns=self.read("max-patterns", parse_count),
        )

    def _check_use(self) -> None:
        """Refuse what would protect nothing: a mistake would be found too late."""
        jwt = [name for name in ("jwt-key", "jwt-audience", "jwt-issuer") if self[name] is not None]
        given = jwt + ["allow"] * bool(self._allow) + ["allow-publish"] * bool(self._allow_publish)
        if given and not self._controls:
            raise SettingsError(f"--{given[0]}: has no use here; allowed: only with --control")
        if jwt and self["jwt-key"] is None:
            raise SettingsError(f"--{jwt[0]}: has no use here; allowed: only with --jwt-key")
