"""JSON Web Tokens: what the client that shows one may do, and until when."""

import base64
import json
import math
import re
import time
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from pushd.errors import SettingsError, one_line
from pushd.patterns import Pattern
from pushd.permissions import Permissions

if TYPE_CHECKING:
    from jwt.algorithms import AllowedPublicKeys

LONGEST = 64 * 1024
"""Characters of a token: a stranger's is taken apart before its signature is known to be wrong."""


class TokenError(Exception):
    """A token is refused. Its text is one line that says why, and never shows the token."""

    def __init__(self, why: str, code: str = "token-invalid") -> None:
        super().__init__(why)
        self.code = code  # token-expired, token-not-yet-valid or token-invalid


@dataclass(frozen=True, slots=True)
class Grant:
    """What a token allows to the one whom it names, until it expires, in seconds since 1970."""

    name: str | None
    expires: float
    permissions: Permissions


class Tokens:
    """Verifies tokens by one key, whose kind says which algorithms may have signed them.

    A token never chooses: else a public key would serve as the secret of its own forgeries. PyJWT checks the
    signature, and no more: its releases differ in what else is a token, some skip crit or take a part of the
    issuer for the whole, and all take strings and booleans for times.
    """

    def __init__(self, key: bytes, *, audience: str | None, issuer: str | None) -> None:
        self._audience = audience
        self._issuer = issuer
        self._key: AllowedPublicKeys | bytes
        try:
            # Optional, and so imported only where tokens are wanted.
            from jwt import InvalidKeyError, PyJWS  # noqa: PLC0415

            self._key, self._algorithms = _public_key(key) if b"-----BEGIN" in key else _secret(key)
            self._jws = PyJWS(self._algorithms)
            self._jws.get_algorithm_by_name(self._algorithms[0]).prepare_key(self._key)
        except ImportError:
            why = "PyJWT with cryptography is not installed; allowed: pip install 'pushd[jwt]'"
            raise SettingsError(why) from None
        except InvalidKeyError:
            raise _wrong_key("it is no secret, but a key in DER, for SSH, or a JWK") from None

    def verify(self, token: str) -> Grant:
        """Return what a token grants now; raises TokenError, and nothing else."""
        try:
            claims = self._claims(token)
            self._check_parties(claims)
            allowed = Permissions(
                subscribe=_patterns(claims, "subscribe"), publish=_patterns(claims, "publish")
            )
            return Grant(_name(claims), _expires(claims), allowed)
        except TokenError:
            raise
        except Exception as error:
            # Whatever a stranger's bytes make a parser raise, even RecursionError, it is they that are wrong.
            from jwt import PyJWTError  # noqa: PLC0415

            why = one_line(error) if isinstance(error, PyJWTError) else "it cannot be read"
            raise TokenError(why) from None

    def _claims(self, token: str) -> dict[str, Any]:
        if len(token) > LONGEST:
            raise TokenError(f"it is longer than {LONGEST} characters")
        if not _THREE_PARTS.fullmatch(token):
            raise TokenError("it is no token: not three parts of base64url, with dots between them")
        with warnings.catch_warnings(action="ignore"):  # of HS512 with a secret that is shorter than its hash
            decoded = self._jws.decode_complete(token, self._key, self._algorithms)
        if "crit" in decoded["header"]:
            raise TokenError("its crit names an extension, and none is understood")
        claims = json.loads(decoded["payload"].decode())
        if not isinstance(claims, dict):
            raise TokenError("its claims are not an object")
        return claims

    def _check_parties(self, claims: dict[str, Any]) -> None:
        if self._audience is None:
            # Who is nobody in particular is not meant by any name: RFC 7519, section 4.1.3.
            if "aud" in claims:
                raise TokenError("it has an aud, and --jwt-audience is not set")
        else:
            aud = claims.get("aud", [])
            if self._audience not in ([aud] if isinstance(aud, str) else _strings(aud, "aud")):
                raise TokenError("its aud is not --jwt-audience")
        if self._issuer is not None and claims.get("iss") != self._issuer:
            raise TokenError("its iss is not --jwt-issuer")


# Padding should not be there, but some issuers write it.
_THREE_PARTS: Final = re.compile(r"[A-Za-z0-9_-]+={0,2}(\.[A-Za-z0-9_-]+={0,2}){2}")


def _name(claims: dict[str, Any]) -> str | None:
    name = claims.get("sub", "")
    if not isinstance(name, str):
        raise TokenError("its sub is not a string")
    return "".join(letter if letter.isprintable() else "?" for letter in name[:100]) or None


def _expires(claims: dict[str, Any]) -> float:
    """Return when claims that hold now expire."""
    expires = _seconds(claims.get("exp"), "exp")
    starts = max(_seconds(claims.get(name, 0), name) for name in ("nbf", "iat"))
    now = time.time()
    if starts > now:
        raise TokenError("its nbf or iat is yet to come", "token-not-yet-valid")
    if expires <= now:
        raise TokenError("its exp is past", "token-expired")
    return expires


def _seconds(value: object, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise TokenError(f"its {name} is not a number of seconds")
    return float(value)


def _patterns(claims: dict[str, Any], name: str) -> tuple[Pattern, ...]:
    granted = claims.get("pushd", {})
    if not isinstance(granted, dict):
        raise TokenError("its pushd is not an object")
    return tuple(Pattern(text.encode()) for text in _strings(granted.get(name, []), name))


def _strings(value: object, name: str) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise TokenError(f"its {name} is not a list of strings")
    return value


def _secret(key: bytes) -> tuple[bytes, tuple[str, ...]]:
    secret = re.sub(rb"\r?\n\Z", b"", key)
    if len(secret) < 32:
        raise _wrong_key(f"it is a secret of {len(secret)} bytes")
    if b"-----" in secret or _is_bare_key(secret):
        # Taken for a secret, a public key would let everybody sign.
        raise _wrong_key("it is no secret, but a key without the lines that PEM has around it")
    return secret, ("HS256", "HS384", "HS512")


def _is_bare_key(secret: bytes) -> bool:
    from cryptography.hazmat.primitives.serialization import load_der_public_key  # noqa: PLC0415

    try:
        load_der_public_key(base64.b64decode(b"".join(secret.split()), validate=True))
    except Exception:  # as with all that is no key
        return False
    return True


def _public_key(pem: bytes) -> "tuple[AllowedPublicKeys, tuple[str, ...]]":
    from cryptography.exceptions import UnsupportedAlgorithm  # noqa: PLC0415
    from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa  # noqa: PLC0415
    from cryptography.hazmat.primitives.serialization import load_pem_public_key  # noqa: PLC0415

    if b"PRIVATE KEY-----" in pem:
        raise _wrong_key("it holds a private key, and the public key belongs there")
    if pem.count(b"-----BEGIN") > 1:
        raise _wrong_key("it holds more than one thing in PEM")
    try:
        key = load_pem_public_key(pem)
    except (ValueError, UnsupportedAlgorithm):
        raise _wrong_key("it is PEM, but no public key that is understood") from None
    match key:
        case rsa.RSAPublicKey() if key.key_size >= 2048:
            return key, ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")
        case ec.EllipticCurvePublicKey() if key.curve.name in _CURVES:
            return key, (_CURVES[key.curve.name],)
        case ed25519.Ed25519PublicKey() | ed448.Ed448PublicKey():
            return key, ("EdDSA",)
        case _:
            raise _wrong_key("it is a public key of another kind or size")


_CURVES: Final = {"secp256r1": "ES256", "secp384r1": "ES384", "secp521r1": "ES512"}


def _wrong_key(why: str) -> SettingsError:
    return SettingsError(
        f"{why}; allowed: a PEM public key (RSA from 2048 bits, P-256, P-384, P-521, Ed25519, Ed448),"
        " or a secret of at least 32 bytes"
    )
