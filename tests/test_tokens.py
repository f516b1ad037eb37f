"""Only what the key's owner signed, for us and for now, grants anything; nothing else gets in the way."""

import base64
import hmac
import json
import math
import string
import subprocess
import sys
import time
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa, x25519
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from hypothesis import example, given
from hypothesis import strategies as st

from pushd.errors import SettingsError
from pushd.patterns import Pattern
from pushd.permissions import Permissions
from pushd.tokens import LONGEST, Grant, TokenError, Tokens

SECRET = b"0123456789abcdef" * 4
FAR = 4102444800  # the year 2100
CLAIMS = {"sub": "neo", "exp": FAR, "pushd": {"subscribe": ["news.*", "snö"], "publish": ["chat"]}}

PRIVATE: dict[str, Any] = {
    "RSA": rsa.generate_private_key(65537, 2048),
    "P-256": ec.generate_private_key(ec.SECP256R1()),
    "P-384": ec.generate_private_key(ec.SECP384R1()),
    "P-521": ec.generate_private_key(ec.SECP521R1()),
    "Ed25519": ed25519.Ed25519PrivateKey.generate(),
    "Ed448": ed448.Ed448PrivateKey.generate(),
    "secret": SECRET,
    "secp256k1": ec.generate_private_key(ec.SECP256K1()),
}
SIGNERS = {
    "RSA": ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512"],
    "P-256": ["ES256"],
    "P-384": ["ES384"],
    "P-521": ["ES512"],
    "Ed25519": ["EdDSA"],
    "Ed448": ["EdDSA"],
    "secret": ["HS256", "HS384", "HS512"],
}


def pem(private: Any) -> bytes:
    public: bytes = private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return public


KEYS = {kind: SECRET if kind == "secret" else pem(PRIVATE[kind]) for kind in SIGNERS}


def tokens(key: bytes = SECRET, audience: str | None = None, issuer: str | None = None) -> Tokens:
    return Tokens(key, audience=audience, issuer=issuer)


def encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def signed(claims: object, header: object = None, secret: bytes = SECRET, digest: str = "sha256") -> str:
    """Sign by hand what no library would: values, or bytes as they are."""
    parts = (header or {"alg": "HS256"}, claims)
    message = ".".join(
        encoded(part if isinstance(part, bytes) else json.dumps(part).encode()) for part in parts
    )
    return f"{message}.{encoded(hmac.digest(secret, message.encode(), digest))}"


def refused(token: str, by: Tokens | None = None) -> tuple[str, str]:
    """Return the code and the text with which a token is refused."""
    with pytest.raises(TokenError) as caught:
        (by or tokens()).verify(token)
    text = str(caught.value)
    assert text.isprintable()
    assert 0 < len(text) <= 300
    assert len(token) < 20 or token not in text
    return caught.value.code, text


def verdict(token: str, by: Tokens) -> Grant | None:
    """Return what any text grants: nothing, if it is refused as it should be."""
    try:
        return by.verify(token)
    except TokenError as raised:
        error = raised
    assert error.code in {"token-expired", "token-not-yet-valid", "token-invalid"}
    assert str(error).isprintable()
    assert 0 < len(str(error)) <= 300
    return None


ALL_SIGNERS = [(kind, algorithm) for kind, algorithms in SIGNERS.items() for algorithm in algorithms]


@pytest.mark.parametrize(("kind", "algorithm"), ALL_SIGNERS)
def test_a_good_token_grants_what_it_says(kind: str, algorithm: str) -> None:
    grant = tokens(KEYS[kind]).verify(jwt.encode(CLAIMS, PRIVATE[kind], algorithm))
    assert (grant.name, grant.expires) == ("neo", float(FAR))
    assert all(
        isinstance(pattern, Pattern) for pattern in grant.permissions.subscribe + grant.permissions.publish
    )
    assert [pattern.matches(b"news.tech") for pattern in grant.permissions.subscribe] == [True, False]
    assert [pattern.matches("snö".encode()) for pattern in grant.permissions.subscribe] == [False, True]
    assert [pattern.matches(b"chat") for pattern in grant.permissions.publish] == [True]


@pytest.mark.parametrize("kind", SIGNERS)
def test_only_the_keys_own_algorithms_and_owner_sign(kind: str) -> None:
    for signer, algorithm in (*ALL_SIGNERS, ("secp256k1", "ES256K")):
        token = jwt.encode(CLAIMS, PRIVATE[signer], algorithm)
        assert (verdict(token, tokens(KEYS[kind])) is not None) == (kind == signer)


@pytest.mark.parametrize("kind", SIGNERS)
def test_another_key_of_the_same_kind_signs_nothing(kind: str) -> None:
    others: dict[str, Any] = {
        "RSA": lambda: rsa.generate_private_key(65537, 2048),
        "Ed25519": ed25519.Ed25519PrivateKey.generate,
        "Ed448": ed448.Ed448PrivateKey.generate,
        "secret": lambda: SECRET[::-1],
    }
    other = others[kind]() if kind in others else ec.generate_private_key(PRIVATE[kind].curve)
    token = jwt.encode(CLAIMS, other, SIGNERS[kind][0])
    assert refused(token, tokens(KEYS[kind])) == ("token-invalid", "Signature verification failed")


NONES: list[Any] = [
    "none",
    "None",
    "NONE",
    "nOnE",
    "",
    None,
    "hs256",
    "HS256 ",
    "HS1",
    "ES521",
    0,
    [],
    ["HS256"],
    {},
]


@pytest.mark.parametrize("kind", SIGNERS)
def test_odd_algorithms_are_refused(kind: str) -> None:
    for algorithm in NONES:
        token = signed(CLAIMS, {"alg": algorithm}, KEYS[kind])
        assert refused(token, tokens(KEYS[kind]))[0] == "token-invalid"
        assert refused(token.rpartition(".")[0] + ".", tokens(KEYS[kind]))[0] == "token-invalid"


def test_a_token_without_an_algorithm_is_refused() -> None:
    assert refused(signed(CLAIMS, {"typ": "JWT"}))[0] == "token-invalid"


HASHES = {"HS256": "sha256", "HS384": "sha384", "HS512": "sha512"}


@pytest.mark.parametrize("kind", [kind for kind in SIGNERS if kind != "secret"])
def test_a_public_key_is_nobodys_secret(kind: str) -> None:
    key = KEYS[kind]
    public = PRIVATE[kind].public_key()
    der = public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    for secret in (key, key.rstrip(b"\n"), key.replace(b"\n", b"\r\n"), der, b""):
        for algorithm, digest in HASHES.items():
            token = signed(CLAIMS, {"alg": algorithm}, secret, digest)
            expected = ("token-invalid", "The specified alg value is not allowed")
            assert refused(token, tokens(key)) == expected


def test_a_curve_has_one_hash() -> None:
    message = signed(CLAIMS, {"alg": "ES384"}).rpartition(".")[0]
    r, s = decode_dss_signature(PRIVATE["P-256"].sign(message.encode(), ec.ECDSA(SHA384())))
    token = f"{message}.{encoded(r.to_bytes(32, 'big') + s.to_bytes(32, 'big'))}"
    assert refused(token, tokens(KEYS["P-256"])) == (
        "token-invalid",
        "The specified alg value is not allowed",
    )


def test_a_secret_as_short_as_allowed_serves_all_hashes_without_a_warning(
    recwarn: pytest.WarningsRecorder,
) -> None:
    secret = b"s" * 32
    for algorithm, digest in HASHES.items():
        assert tokens(secret).verify(signed(CLAIMS, {"alg": algorithm}, secret, digest)).name == "neo"
    assert not recwarn.list


@pytest.mark.parametrize(
    ("key", "secret"),
    [
        (bytes(range(32)), bytes(range(32))),
        (bytes(range(32)) + b"\n", bytes(range(32))),
        (bytes(range(32)) + b"\r\n", bytes(range(32))),
        (b"\xff" * 33 + b"\r", b"\xff" * 33 + b"\r"),
        (b"\n" * 40, b"\n" * 39),
        (b"\r\n" * 20, b"\r\n" * 19),
        (b"x" * 32 + b"\n\r\n", b"x" * 32 + b"\n"),
        (b" \n" + b"x" * 32 + b" ", b" \n" + b"x" * 32 + b" "),
    ],
)
def test_one_final_newline_is_not_of_the_secret(key: bytes, secret: bytes) -> None:
    assert tokens(key).verify(signed(CLAIMS, secret=secret)).name == "neo"


@pytest.mark.parametrize(
    ("claims", "code"),
    [
        ({"exp": FAR}, None),
        ({"exp": FAR + 0.5}, None),
        ({"exp": 1e300}, None),
        ({"exp": FAR, "nbf": 1, "iat": 1.5}, None),
        ({"exp": FAR, "nbf": -1e300}, None),
        ({"exp": FAR, "nbf": FAR}, "token-not-yet-valid"),
        ({"exp": FAR, "iat": FAR}, "token-not-yet-valid"),
        ({"exp": 1, "nbf": FAR}, "token-not-yet-valid"),
        ({"exp": 1}, "token-expired"),
        ({"exp": 0}, "token-expired"),
        ({"exp": -1e300}, "token-expired"),
    ],
)
def test_a_token_holds_for_its_time(claims: dict[str, Any], code: str | None) -> None:
    if code is None:
        assert tokens().verify(signed(claims)).expires == float(claims["exp"])
    else:
        assert refused(signed(claims))[0] == code


def test_the_time_is_that_of_the_clock() -> None:
    now = time.time()
    assert tokens().verify(signed({"exp": now + 30, "nbf": now, "iat": now})).expires == now + 30
    assert refused(signed({"exp": now}))[0] == "token-expired"
    assert refused(signed({"exp": now + 60, "nbf": now + 30}))[0] == "token-not-yet-valid"


WRONG_TIMES = ["null", "true", "false", '"4102444800"', "[]", "{}", "NaN", "Infinity", "-Infinity", "1e999"]


@pytest.mark.parametrize("claim", ["exp", "nbf", "iat"])
def test_a_time_is_a_finite_number(claim: str) -> None:
    for value in (*WRONG_TIMES, "9" * 400, "-" + "9" * 400, "9" * 5000):
        times = {"exp": str(FAR)} | {claim: value}
        claims = ",".join(f'"{name}":{text}' for name, text in times.items())
        assert refused(signed(f"{{{claims}}}".encode()))[0] == "token-invalid"


def test_a_token_must_expire() -> None:
    assert refused(signed({"sub": "neo"})) == ("token-invalid", "its exp is not a number of seconds")


def test_a_wrong_time_is_wrong_however_old() -> None:
    assert refused(signed({"exp": 1, "nbf": "1"}))[0] == "token-invalid"


@pytest.mark.parametrize("audience", ["pushd", ["pushd"], ["other", "pushd"]])
def test_a_token_for_the_audience_is_taken(audience: object) -> None:
    assert tokens(audience="pushd").verify(signed(CLAIMS | {"aud": audience})).name == "neo"


OTHERS: list[Any] = [
    "other",
    "push",
    "pushd ",
    "",
    [],
    ["other"],
    [["pushd"]],
    {"pushd": 1},
    None,
    1,
    ["pushd", 1],
]


@pytest.mark.parametrize("audience", OTHERS)
def test_a_token_for_others_is_refused(audience: Any) -> None:
    assert refused(signed(CLAIMS | {"aud": audience}), tokens(audience="pushd"))[0] == "token-invalid"


def test_a_token_for_nobody_in_particular_is_refused_by_an_audience() -> None:
    assert refused(signed(CLAIMS), tokens(audience="pushd")) == (
        "token-invalid",
        "its aud is not --jwt-audience",
    )


@pytest.mark.parametrize("audience", ["pushd", ["pushd"], "", [], None])
def test_a_token_for_somebody_is_refused_where_no_audience_is_set(audience: object) -> None:
    expected = ("token-invalid", "it has an aud, and --jwt-audience is not set")
    assert refused(signed(CLAIMS | {"aud": audience})) == expected


def test_the_issuer_is_the_one_that_is_set() -> None:
    assert tokens(issuer="zion").verify(signed(CLAIMS | {"iss": "zion"})).name == "neo"
    assert tokens().verify(signed(CLAIMS | {"iss": "anyone"})).name == "neo"
    for claims in ({}, *({"iss": issuer} for issuer in ("smith", "zio", "", None, ["zion"], 1))):
        expected = ("token-invalid", "its iss is not --jwt-issuer")
        assert refused(signed(CLAIMS | claims), tokens(issuer="zion")) == expected


@pytest.mark.parametrize("granted", [{}, {"pushd": {}}, {"pushd": {"subscribe": [], "other": 1}}])
def test_what_is_not_granted_is_not(granted: dict[str, Any]) -> None:
    assert tokens().verify(signed({"exp": FAR} | granted)) == Grant(None, float(FAR), Permissions())


@pytest.mark.parametrize("value", [None, True, 1, "*", ["*"]])
def test_a_grant_is_an_object(value: object) -> None:
    assert refused(signed(CLAIMS | {"pushd": value})) == ("token-invalid", "its pushd is not an object")


@pytest.mark.parametrize("name", ["subscribe", "publish"])
@pytest.mark.parametrize("value", [None, True, 1, "*", {"*": 1}, ["*", 1], [["*"]], [None]])
def test_patterns_are_a_list_of_strings(name: str, value: object) -> None:
    expected = ("token-invalid", f"its {name} is not a list of strings")
    assert refused(signed(CLAIMS | {"pushd": {name: value}})) == expected


def test_a_pattern_is_utf_8() -> None:
    assert refused(signed(CLAIMS | {"pushd": {"publish": ["\ud800"]}}))[0] == "token-invalid"


@pytest.mark.parametrize(
    ("sub", "name"),
    [
        ("neo", "neo"),
        ("Trinité 😀", "Trinité 😀"),
        ("a\r\nb\0\x1b[2J\u202e\ud800", "a??b??[2J??"),
        ("x" * 1000, "x" * 100),
        ("", None),
    ],
)
def test_a_name_can_be_shown(sub: str, name: str | None) -> None:
    assert tokens().verify(signed(CLAIMS | {"sub": sub})).name == name


@pytest.mark.parametrize("sub", [None, 1, True, ["neo"], {"neo": 1}])
def test_a_name_is_a_string(sub: object) -> None:
    assert refused(signed(CLAIMS | {"sub": sub})) == ("token-invalid", "its sub is not a string")


DEEP = [b"[" * 40_000, b'{"a":' * 9_000, b'{"exp":4102444800,"x":' + b"[" * 20_000 + b"]" * 20_000 + b"}"]
ODD = [
    b"",
    b"null",
    b"[]",
    b'"claims"',
    b"1",
    b"{",
    b"\xff",
    b"{} {}",
    b"\xef\xbb\xbf{}",
    b"{\0}",
    b"[" * 900,
]


@pytest.mark.parametrize("data", [*DEEP, *ODD], ids=lambda data: repr(data[:10]))
def test_odd_json_is_refused_wherever_it_is(data: bytes) -> None:
    assert refused(signed(data))[0] == "token-invalid"
    assert refused(signed(CLAIMS, data or b" "))[0] == "token-invalid"


def test_claims_are_utf_8_and_nothing_else() -> None:
    for encoding in ("utf-16", "utf-16-le", "utf-32", "utf-8-sig"):
        assert refused(signed(json.dumps(CLAIMS).encode(encoding)))[0] == "token-invalid"


HEADERS: list[dict[str, Any]] = [
    {"crit": ["exp"], "exp": FAR},
    {"crit": ["b64"], "b64": True},
    {"crit": ["b64"], "b64": False},
    {"crit": []},
    {"crit": None},
    {"crit": "b64", "b64": True},
    {"crit": ["\n" * 1000]},
    {"b64": False},
    {"kid": 1},
]


@pytest.mark.parametrize("header", HEADERS, ids=repr)
def test_extensions_are_refused(header: dict[str, Any]) -> None:
    if "kid" not in header:
        assert refused(signed(CLAIMS, {"alg": "HS256"} | header))[0] == "token-invalid"
    verdict(signed(CLAIMS, {"alg": "HS256"} | header), tokens())  # not every PyJWT minds an odd kid


def test_a_detached_payload_is_refused() -> None:
    head = encoded(b'{"alg":"HS256","b64":false,"crit":["b64"]}')
    for payload in ("", json.dumps(CLAIMS)):
        signature = encoded(hmac.digest(SECRET, f"{head}.{payload}".encode(), "sha256"))
        assert refused(f"{head}..{signature}")[0] == "token-invalid"
        assert refused(f"{head}.{payload}.{signature}")[0] == "token-invalid"


def test_a_header_may_say_more() -> None:
    header = {"alg": "HS256", "typ": "at+jwt", "kid": "1", "jku": "http://localhost/", "jwk": {"kty": "oct"}}
    assert tokens().verify(signed(CLAIMS, header)).name == "neo"


GOOD = signed(CLAIMS)


@pytest.mark.parametrize(
    "token",
    [
        "",
        ".",
        "..",
        "...",
        "a.b.c",
        "é.é.é",
        "\ud800.\ud800.\ud800",
        "\0",
        GOOD + ".",
        GOOD + ".AAAA",
        "." + GOOD,
        GOOD.rpartition(".")[0],
        GOOD.rpartition(".")[0] + ".",
        GOOD[:-1],
        GOOD + "A",
        GOOD + "é",
        GOOD.replace(".", ". "),
        GOOD.replace(".", "==."),
        GOOD.replace(".", "\uff0e"),
        GOOD.replace("a", "\u0430"),
        GOOD + "\n",
        "Bearer " + GOOD,
        GOOD + "x" * 8192,
    ],
)
def test_what_is_no_token_is_refused(token: str) -> None:
    assert refused(token)[0] == "token-invalid"


def test_the_other_base64_is_none() -> None:
    # Both letters are there that the two alphabets do not share.
    token = next(
        token
        for token in (signed(CLAIMS | {"jti": str(n)}) for n in range(10_000))
        if "-" in token and "_" in token
    )
    assert tokens().verify(token)
    assert refused(token.replace("-", "+").replace("_", "/"))[0] == "token-invalid"


def test_padding_is_let_pass() -> None:
    parts = (b'{"alg": "HS256"}', json.dumps(CLAIMS).encode())
    message = b".".join(map(base64.urlsafe_b64encode, parts))
    signature = base64.urlsafe_b64encode(hmac.digest(SECRET, message, "sha256"))
    assert message.count(b"==.") == 1
    assert tokens().verify(f"{message.decode()}.{signature.decode()}").name == "neo"


def test_a_long_token_is_taken_up_to_a_limit() -> None:
    def of(length: int) -> str:
        filler = length - len(signed(CLAIMS | {"x": ""}))
        return signed(CLAIMS | {"x": "x" * math.floor(filler * 3 / 4)})

    assert len(of(8192)) > 8000
    assert tokens().verify(of(8192)).name == "neo"
    assert tokens().verify(of(LONGEST - 8)).name == "neo"
    for length in (LONGEST + 8, 1024**2):
        assert refused(of(length)) == ("token-invalid", "it is longer than 65536 characters")


@pytest.mark.parametrize("letter", ["a", ".", "=", "-", "\x00", "é", "[", "😀"])
def test_length_costs_little(letter: str) -> None:
    begun = time.process_time()
    for length in (LONGEST, 1024**2):
        for token in (letter * length, f"{GOOD.partition('.')[0]}.{letter * (length - 40)}.AAAA"):
            assert refused(token)[0] == "token-invalid"
    assert time.process_time() - begun < 2  # measured: 0.01


@given(st.text())
@example(GOOD)
def test_any_text_is_a_grant_or_an_error(text: str) -> None:
    assert (verdict(text, tokens()) is None) == (text != GOOD)


@given(
    st.sampled_from(sorted(SIGNERS)),
    st.lists(
        st.tuples(st.floats(0, 1), st.integers(0, 3), st.text(string.printable, max_size=4)), min_size=1
    ),
)
def test_a_token_that_was_changed_grants_nothing_more(
    kind: str, changes: list[tuple[float, int, str]]
) -> None:
    token = changed = TOKENS[kind]
    for where, length, new in changes:
        start = int(where * len(changed))
        changed = changed[:start] + new + changed[start + length :]
    grant = verdict(changed, VERIFIERS[kind])
    if grant is not None:
        # A signature, and nothing else, may be written in more than one way.
        assert changed.rpartition(".")[0] == token.rpartition(".")[0]


TOKENS = {kind: jwt.encode(CLAIMS, PRIVATE[kind], SIGNERS[kind][0]) for kind in SIGNERS}
VERIFIERS = {kind: tokens(key) for kind, key in KEYS.items()}

values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.sampled_from([FAR, 10**400, "pushd"]),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["subscribe", "publish", "x"]), inner),
)
names = st.sampled_from(["exp", "nbf", "iat", "aud", "iss", "sub", "jti", "pushd"])


@given(st.dictionaries(names, values), st.sampled_from([None, "pushd"]), st.sampled_from([None, "pushd"]))
@example({"exp": FAR, "aud": "pushd", "iss": "pushd"}, "pushd", "pushd")
def test_any_signed_claims_are_a_grant_or_an_error(
    claims: dict[str, Any], audience: str | None, issuer: str | None
) -> None:
    grant = verdict(signed({"exp": FAR} | claims), tokens(audience=audience, issuer=issuer))
    if grant is not None:
        assert math.isfinite(grant.expires)
        assert grant.expires > time.time() - 60
        assert grant.expires == claims.get("exp", FAR)
        assert claims.get("aud", audience) == audience or audience in claims["aud"]
        assert claims.get("iss") == issuer or issuer is None


@given(st.dictionaries(st.sampled_from(["alg", "crit", "b64", "kid", "typ"]), values))
def test_any_header_is_a_grant_or_an_error(header: dict[str, Any]) -> None:
    verdict(signed(CLAIMS, {"alg": "HS256"} | header), tokens())


@given(
    st.binary(max_size=80) | st.binary(min_size=32).map(lambda data: b"-----BEGIN PUBLIC KEY-----\n" + data)
)
def test_any_key_is_taken_or_refused(key: bytes) -> None:
    try:
        tokens(key)
    except SettingsError as error:
        text = str(error)
    else:
        text = "; allowed: " * (len(key) >= 32)
    assert text.isprintable()
    assert "; allowed: " in text


def wrong(key: bytes) -> str:
    """Return what is wrong with a key."""
    with pytest.raises(SettingsError) as caught:
        tokens(key)
    why, _, allowed = str(caught.value).partition("; allowed: ")
    assert allowed.startswith("a PEM public key (RSA from 2048 bits, ")
    return why


@pytest.mark.parametrize("key", [b"", b"\n", b"x" * 31, b"x" * 31 + b"\n", b"x" * 31 + b"\r\n"])
def test_a_short_secret_is_refused(key: bytes) -> None:
    assert wrong(key) == f"it is a secret of {len(key.rstrip())} bytes"


@pytest.mark.parametrize("kind", [kind for kind in SIGNERS if kind != "secret"])
def test_a_private_key_is_refused(kind: str) -> None:
    formats = [(PrivateFormat.PKCS8, NoEncryption()), (PrivateFormat.PKCS8, BestAvailableEncryption(b"x"))]
    if kind[0] in "RP":
        formats.append((PrivateFormat.TraditionalOpenSSL, NoEncryption()))
    for form, encryption in formats:
        key = PRIVATE[kind].private_bytes(Encoding.PEM, form, encryption)
        for file in (key, key + KEYS[kind], KEYS[kind] + key):
            assert wrong(file) == "it holds a private key, and the public key belongs there"


CERTIFICATE = "-----BEGIN CERTIFICATE-----\nMIIBszCCAVmgAwIBAgIUQ0xvY2s=\n-----END CERTIFICATE-----\n"


@pytest.mark.parametrize(
    "key",
    [
        b"-----BEGIN",
        b"-----BEGIN PUBLIC KEY-----\n-----END PUBLIC KEY-----\n",
        b"-----BEGIN PUBLIC KEY-----\nnonsense\n-----END PUBLIC KEY-----\n",
        KEYS["P-256"][:-40],
        KEYS["P-256"].replace(b"\nM", b"\nA"),
        CERTIFICATE.encode(),
        b"x" * 40 + b"-----BEGIN NOTHING-----",
    ],
)
def test_pem_that_is_no_public_key_is_refused(key: bytes) -> None:
    assert wrong(key) == "it is PEM, but no public key that is understood"


def test_one_of_two_public_keys_would_be_left_out() -> None:
    assert wrong(KEYS["P-256"] + KEYS["RSA"]) == "it holds more than one thing in PEM"


@pytest.mark.parametrize(
    "private",
    [
        rsa.generate_private_key(65537, 1024),
        PRIVATE["secp256k1"],
        ec.generate_private_key(ec.BrainpoolP256R1()),
        x25519.X25519PrivateKey.generate(),
    ],
)
def test_other_kinds_and_sizes_are_refused(private: Any) -> None:
    assert wrong(pem(private)) == "it is a public key of another kind or size"


def test_a_key_in_another_format_is_no_secret() -> None:
    public = PRIVATE["RSA"].public_key()
    ssh = public.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    assert wrong(ssh) == "it is no secret, but a key in DER, for SSH, or a JWK"


def test_rsa_has_a_pem_of_its_own() -> None:
    key = PRIVATE["RSA"].public_key().public_bytes(Encoding.PEM, PublicFormat.PKCS1)
    for file in (key, key.replace(b"\n", b"\r\n"), b"# ours\n" + key):
        assert tokens(file).verify(TOKENS["RSA"]).name == "neo"


def test_nothing_shows_the_key() -> None:
    assert SECRET.decode() not in repr(tokens())


MISSING = "PyJWT with cryptography is not installed; allowed: pip install 'pushd[jwt]'"


@pytest.mark.parametrize(
    ("package", "kind"), [("jwt", "secret"), ("jwt", "RSA"), ("cryptography.exceptions", "RSA")]
)
def test_without_its_libraries_it_says_what_to_do(
    package: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(SettingsError, match="^" + MISSING.replace("[", r"\[") + "$"):
        tokens(KEYS[kind])


def test_a_process_without_pyjwt_imports_it_all_the_same() -> None:
    program = (
        "import sys; sys.modules['jwt'] = sys.modules['cryptography'] = None\n"
        "import pushd.tokens, pushd.errors\n"
        "try: pushd.tokens.Tokens(b'x' * 32, audience=None, issuer=None)\n"
        "except pushd.errors.SettingsError as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    assert (done.stdout, done.stderr) == (MISSING + "\n", "")


@pytest.mark.parametrize("kind", KEYS)
def test_a_public_key_without_its_lines_is_no_secret(kind: str) -> None:
    pem = KEYS[kind]
    if not pem.startswith(b"-----"):
        return
    bare = b"\n".join(line for line in pem.splitlines() if not line.startswith(b"-----"))
    for key in (bare, bare.replace(b"\n", b""), pem.replace(b"BEGIN", b"Begin")):
        with pytest.raises(SettingsError, match="a key without the lines that PEM has around it"):
            tokens(key)
