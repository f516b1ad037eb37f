"""Certificates for tests: those that are their own authorities, and those that an authority issued."""

import datetime
import ipaddress
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

HOUR = datetime.timedelta(hours=1)


def write_certificate(path: Path, host: str) -> Path:
    """Write a key and a certificate that is its own authority."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = _name("pushd test")
    certificate = (
        _builder(name, name, key)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(_hosts([host]), critical=False)
        .sign(key, hashes.SHA256())
    )
    path.write_bytes(_pem(key) + certificate.public_bytes(serialization.Encoding.PEM))
    return path


class Authority:
    """An authority of a test's own, whose certificate and key are files in a directory."""

    def __init__(self, directory: Path, name: str = "authority") -> None:
        self.certificate = directory / f"{name}.pem"
        """The certificate alone: what those who trust the authority are given."""
        self.key = directory / f"{name}.key"
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _name(f"pushd test {name}")
        identifier = x509.SubjectKeyIdentifier.from_public_key(self._key.public_key())
        self._identifier = x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier)
        certificate = (
            _builder(self._name, self._name, self._key)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(authority=True), critical=True)
            .add_extension(identifier, critical=False)
            .sign(self._key, hashes.SHA256())
        )
        self.key.write_bytes(_pem(self._key))
        self.certificate.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))

    def issue(self, path: Path, *hosts: str, expired: bool = False) -> Path:
        """Write a key and a certificate for addresses and names, good for a server and for a client."""
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = (
            _builder(_name(f"pushd test {path.stem}"), self._name, key, ago=2 * HOUR if expired else 0 * HOUR)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(authority=False), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(self._identifier, critical=False)
            .add_extension(_hosts(hosts), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        path.write_bytes(_pem(key) + certificate.public_bytes(serialization.Encoding.PEM))
        return path


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, common)])


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    *,
    ago: datetime.timedelta = 0 * HOUR,
) -> x509.CertificateBuilder:
    """Return a certificate to be signed, valid for an hour before and after the present or a time ago."""
    middle = datetime.datetime.now(datetime.UTC) - ago
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(middle - HOUR)
        .not_valid_after(middle + HOUR)
    )


def _hosts(hosts: Sequence[str]) -> x509.SubjectAlternativeName:
    names: list[x509.GeneralName] = []
    for host in hosts:
        try:
            names.append(x509.IPAddress(ipaddress.ip_address(host)))
        except ValueError:
            names.append(x509.DNSName(host))
    return x509.SubjectAlternativeName(names)


def _usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=authority,
        crl_sign=authority,
        encipher_only=False,
        decipher_only=False,
    )


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
