"""The ways into an external server, put together from a hive's spec and the Secrets that it names. Pure.

A URL is whole in a Secret, or in the spec with its login in Secrets. Certificates go along as files: the URL names them
below a folder, which is the operator's own where it connects itself and ``TLS_PATH`` in the pods.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, Literal
from urllib.parse import parse_qsl, quote, urlencode, urlsplit, urlunsplit

from agenthive.urls import split_url
from agenthive_operator.api.external import ExternalPostgres, ExternalRedis, Tls
from agenthive_operator.api.meta import SecretKeyReference
from agenthive_operator.plan.certificates import CertificateError, check_authorities, check_pair

Server = Literal["redis", "postgres"]
External = ExternalRedis | ExternalPostgres
Secrets = Mapping[str, Mapping[str, str] | None]
"""Data by name of Secret; None where there is none."""

TLS_PATH: Final = "/agenthive/tls"
CACHE_FIELD: Final = "spec.redis.cache.urlSecretRef"

_FILES: Final[Mapping[Server, Mapping[str, str]]] = {
    "redis": {"redis-ca.crt": "ssl_ca_certs", "redis-tls.crt": "ssl_certfile", "redis-tls.key": "ssl_keyfile"},
    "postgres": {"postgres-ca.crt": "sslrootcert", "postgres-tls.crt": "sslcert", "postgres-tls.key": "sslkey"},
}
FILE_OPTIONS: Final = frozenset(option for files in _FILES.values() for option in files.values())
FILE_NAMES: Final = frozenset(name for files in _FILES.values() for name in files)
_TLS_MODES: Final = frozenset({"require", "verify-ca", "verify-full"})


class UnusableError(ValueError):
    """There is no way into the server by what the spec and its Secrets say; the text says what to write.

    ``reason`` is one of RedisReady's and PostgresReady's: SecretMissing, InvalidURL or CertificateInvalid.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Ways:
    """URLs of a server by name (``url``, and where there are such ``direct`` and ``admin``), and its certificates.

    Attributes:
        server: What kind it is.
        urls: Without the options that name certificates.
        files: PEM texts by the name of their file.
        warnings: What a person should know of the certificates.
    """

    server: Server
    urls: Mapping[str, str] = field(repr=False)
    files: Mapping[str, str] = field(default_factory=dict, repr=False)
    warnings: tuple[str, ...] = ()

    def below(self, folder: str) -> dict[str, str]:
        """The URLs, with the certificates in this folder. Raises ``UnusableError``."""
        return {name: with_files(url, self.server, self.files, folder) for name, url in self.urls.items()}


def secret_names(external: External, *, admin: bool = True) -> frozenset[str]:
    """The Secrets that an external server's fields name; without ``admin`` those that its hive's processes need."""
    fields = [name for name in type(external).model_fields if name.endswith("_secret_ref")]
    pointers = [getattr(external, name) for name in fields if admin or name != "admin_url_secret_ref"]
    tls = external.tls or Tls()
    return frozenset(
        pointer.name for pointer in (*pointers, tls.ca_secret_ref, tls.client_cert_secret_ref) if pointer is not None
    )


def ways_in(server: Server, external: External, secrets: Secrets, now: datetime, *, admin: bool = True) -> Ways:
    """Every way into a server, or without ``admin`` those of its hive's processes. Raises ``UnusableError``."""
    path = f"spec.{server}.external"
    urls = {"url": _composed(external, path, secrets)}
    for name, pointer in (
        ("direct", external.direct_url_secret_ref if isinstance(external, ExternalPostgres) else None),
        ("admin", external.admin_url_secret_ref if admin else None),
    ):
        if pointer is not None:
            urls[name] = secret_text(pointer, f"{path}.{name}UrlSecretRef", secrets).strip()
    files, warnings = certificates(server, external.tls, secrets, now)
    return Ways(server, urls, files, warnings)


def cache_way(pointer: SecretKeyReference, redis: ExternalRedis | None, secrets: Secrets, now: datetime) -> Ways:
    """The way into the cache's own Redis: over TLS it is known by the certificates of the hive's external one.

    Raises ``UnusableError``.
    """
    url = secret_text(pointer, CACHE_FIELD, secrets).strip()
    secure = url.startswith("rediss") or "sentinel_tls=true" in url
    if redis is None or redis.tls is None or not secure:
        return Ways("redis", {"url": url})
    files, _ = certificates("redis", redis.tls, secrets, now)  # its warnings are the hive's Redis's
    return Ways("redis", {"url": url}, files)


def _composed(external: External, path: str, secrets: Secrets) -> str:
    """The URL that agents use, with its login."""
    if external.url_secret_ref is not None:
        return secret_text(external.url_secret_ref, f"{path}.urlSecretRef", secrets).strip()

    def part(pointer: SecretKeyReference | None, name: str) -> str | None:
        """One part of the login, without the end of line that files have."""
        return secret_text(pointer, f"{path}.{name}SecretRef", secrets).rstrip("\r\n") if pointer else None

    user, password = part(external.username_secret_ref, "username"), part(external.password_secret_ref, "password")
    url = with_user(external.url or "", f"{path}.url", user, password)
    if isinstance(external, ExternalRedis):
        sentinel = part(external.sentinel_password_secret_ref, "sentinelPassword")
        if sentinel is not None:
            return with_options(url, {"sentinel_password": sentinel})
    return url


def secret_text(pointer: SecretKeyReference, field_path: str, secrets: Secrets) -> str:
    """What a Secret's key holds. Raises ``UnusableError`` where that is nothing."""
    data = secrets.get(pointer.name)
    if data is None:
        raise UnusableError("SecretMissing", f"Secret {pointer.name!r} of {field_path} does not exist; create it")
    if not data.get(pointer.key, "").strip():
        keys = ", ".join(sorted(data)) or "none"
        text = f"Secret {pointer.name!r} of {field_path} has no key {pointer.key!r}; its keys: {keys}"
        raise UnusableError("SecretMissing", text)
    return data[pointer.key]


def with_user(url: str, field_path: str, user: str | None, password: str | None) -> str:
    """``url`` with a login, whatever characters that has. Raises ``UnusableError`` for what is no URL."""
    if user is None and password is None:
        return url
    try:
        parts = split_url(url, field_path)
    except ValueError as error:
        raise UnusableError("InvalidURL", str(error)) from None
    known, _, hosts = parts.netloc.rpartition("@")
    login = quote(user, safe="") if user is not None else known
    if password is not None:
        login += f":{quote(password, safe='')}"
    return urlunsplit(parts._replace(netloc=f"{login}@{hosts}"))


# ---- certificates


def certificates(
    server: Server, tls: Tls | None, secrets: Secrets, now: datetime
) -> tuple[dict[str, str], tuple[str, ...]]:
    """The files that ``spec.<server>.external.tls`` asks for, and what a person should know of them.

    Raises ``UnusableError``: a Secret or its key is missing, or holds what cannot be used.
    """
    files: dict[str, str] = {}
    warnings: list[str | None] = []
    path = f"spec.{server}.external.tls"
    try:
        if tls is not None and (authority := tls.ca_secret_ref) is not None:
            field_path = f"{path}.caSecretRef"
            pem = secret_text(authority, field_path, secrets)
            where = f"Secret {authority.name!r} of {field_path}, key {authority.key!r}"
            warnings.append(check_authorities(pem, where, now))
            files[f"{server}-ca.crt"] = pem
        if tls is not None and (client := tls.client_cert_secret_ref) is not None:
            field_path = f"{path}.clientCertSecretRef"
            pair = [
                secret_text(SecretKeyReference(name=client.name, key=key), field_path, secrets)
                for key in ("tls.crt", "tls.key")
            ]
            warnings.append(check_pair(pair[0], pair[1], f"Secret {client.name!r} of {field_path}", now))
            files[f"{server}-tls.crt"], files[f"{server}-tls.key"] = pair
    except CertificateError as error:
        raise UnusableError("CertificateInvalid", str(error)) from None
    return files, tuple(warning for warning in warnings if warning)


def with_files(url: str, server: Server, files: Mapping[str, str], folder: str) -> str:
    """``url`` with the options that name ``files`` in ``folder``.

    Raises ``UnusableError`` where the URL wants no TLS, or names files itself.
    """
    if not files:
        return url
    path = f"spec.{server}.external.tls"
    try:
        parts = split_url(url, "the URL")
    except ValueError as error:
        raise UnusableError("InvalidURL", str(error)) from None
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    wanted = {option: f"{folder}/{name}" for name, option in _FILES[server].items() if name in files}
    if twice := sorted(options.keys() & wanted.keys()):
        text = f"the URL names a file by {twice[0]}, and {path} gives that certificate, too; take {twice[0]} out"
        raise UnusableError("InvalidURL", text)
    if server == "redis":
        if not parts.scheme.startswith("rediss") and options.get("sentinel_tls") != "true":
            scheme = parts.scheme.replace("redis", "rediss", 1)
            raise UnusableError("InvalidURL", f"{path} has certificates and the URL wants no TLS; write {scheme}://")
    else:
        mode = options.get("sslmode", "verify-full" if "postgres-ca.crt" in files else "require")
        if mode not in _TLS_MODES:
            text = f"{path} has certificates and the URL says sslmode={mode}; write verify-full, or leave sslmode out"
            raise UnusableError("InvalidURL", text)
        wanted["sslmode"] = mode
    return with_options(url, wanted)


def with_options(url: str, options: Mapping[str, str]) -> str:
    """``url`` with more options in its query; paths stay readable."""
    parts = urlsplit(url)
    query = dict(parse_qsl(parts.query, keep_blank_values=True)) | dict(options)
    return urlunsplit(parts._replace(query=urlencode(query, safe="/", quote_via=quote)))


def without_files(url: str, files: Container[str]) -> str:
    """``url`` without the options that name these files, as ``with_files`` takes it."""
    parts = urlsplit(url)
    query = [
        (option, value)
        for option, value in parse_qsl(parts.query, keep_blank_values=True)
        if option not in FILE_OPTIONS or value.rpartition("/")[2] not in files
    ]
    return urlunsplit(parts._replace(query=urlencode(query, safe="/", quote_via=quote)))


def mounted_files(url: str) -> list[str]:
    """The files below ``TLS_PATH`` that the options of an Agent's URL name."""
    return [name for _, folder, name in file_names(url) if folder == TLS_PATH]


def file_names(url: str) -> Iterator[tuple[str, str, str]]:
    """The files that a URL's options name: option, folder and name."""
    for option, path in parse_qsl(urlsplit(url).query, keep_blank_values=True):
        if option in FILE_OPTIONS:
            folder, _, name = path.rpartition("/")
            yield option, folder, name
