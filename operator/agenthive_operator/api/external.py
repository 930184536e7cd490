"""Servers that someone else runs, as a hive names them: their URLs and certificates, in Secrets."""

from __future__ import annotations

from typing import Any

from pydantic import ConfigDict, Field

from agenthive_operator.api import schema as s
from agenthive_operator.api.meta import ApiModel, LocalObjectReference, SecretKeyReference

URL_MAX = 2048


def _login_rules(scheme: str, example: str) -> tuple[s.Rule, ...]:
    """Rules on the two forms of a server's URL: whole in a Secret, or written here with its login in Secrets."""
    return (
        s.Rule(
            "has(self.url) != has(self.urlSecretRef)",
            "set exactly one of urlSecretRef (a Secret key with the whole URL) and url (without a password, which "
            "passwordSecretRef names)",
        ),
        s.Rule(
            f"!has(self.url) || self.url.matches('^{scheme}://[^/?# ]+')",
            f"url is not one of this server's: write {example}",
            ".url",
        ),
        s.Rule(
            "!has(self.url) || !(self.url.matches('^[^/]*//[^/?#]*:[^/?#]*@')"
            " || self.url.matches('[?&][a-z_]*password='))",
            "url holds a password: leave it out and name its Secret and key in passwordSecretRef",
            ".url",
        ),
        s.Rule(
            "has(self.url) || !(has(self.usernameSecretRef) || has(self.passwordSecretRef))",
            "usernameSecretRef and passwordSecretRef go with url: the Secret of urlSecretRef holds the whole URL",
        ),
        s.Rule(
            "!has(self.url) || !has(self.usernameSecretRef) || !self.url.matches('^[^/]*//[^/?#]*@')",
            "url names a user and usernameSecretRef does so, too: set one of them",
            ".url",
        ),
    )


def _ref(description: str, **more: Any) -> Any:
    return Field(None, description=description, **more)


USERNAME = "Secret key that holds the user of url, as it is; absent means the one in url, or none."
PASSWORD = "Secret key that holds the password of url, as it is (nothing is quoted there); absent means none."  # noqa: S105


def _key(default: str) -> Any:
    return Field(default, min_length=1, max_length=253, pattern=s.DATA_KEY, description="Key within the Secret.")


class AuthorityReference(SecretKeyReference):
    """Names the key of a Secret that holds certificates of authorities."""

    key: str = _key("ca.crt")


class UsernameReference(SecretKeyReference):
    """Names the key of a Secret that holds a user."""

    key: str = _key("username")


class PasswordReference(SecretKeyReference):
    """Names the key of a Secret that holds a password."""

    key: str = _key("password")


class Tls(ApiModel):
    """How a server of someone else's is known, and how its clients are known to it."""

    ca_secret_ref: AuthorityReference | None = Field(
        None,
        description="Secret key that holds the certificates (PEM) of authorities that may have signed the server's; "
        "absent means those of the image.",
    )
    client_cert_secret_ref: LocalObjectReference | None = Field(
        None, description="Secret of type kubernetes.io/tls with the certificate that clients show (tls.crt, tls.key)."
    )


class ExternalRedis(ApiModel):
    """A Redis that someone else runs."""

    model_config = ConfigDict(
        json_schema_extra=s.rules(
            *_login_rules(
                "rediss?([+]sentinel|[+]cluster)?",
                "redis://host:6379/0, rediss:// for TLS, redis+sentinel://host,host/service or redis+cluster://host,host",
            ),
            s.Rule(
                "!has(self.sentinelPasswordSecretRef) || (has(self.url) && self.url.contains('+sentinel://'))",
                "sentinelPasswordSecretRef goes with a url of redis+sentinel:// or rediss+sentinel://",
            ),
        )
    )

    url_secret_ref: SecretKeyReference | None = _ref(
        "Secret key that holds the server's URL, e.g. redis://:password@host:6379/0, "
        "redis+sentinel://:password@host,host/service and redis+cluster://:password@host,host."
    )
    url: str | None = _ref(
        "The server's URL without a password, in place of urlSecretRef, e.g. redis://host:6379/0.",
        min_length=1,
        max_length=URL_MAX,
    )
    username_secret_ref: UsernameReference | None = _ref(USERNAME)
    password_secret_ref: PasswordReference | None = _ref(PASSWORD)
    sentinel_password_secret_ref: PasswordReference | None = _ref(
        "Secret key that holds the password of the sentinels themselves; absent means they want none."
    )
    admin_url_secret_ref: SecretKeyReference | None = Field(
        None,
        description="Secret key that holds a URL of a user that may manage users (ACL) and functions. With it each "
        "Agent gets a user of its own, which is let in to what it needs only. Agents never see it.",
    )
    tls: Tls | None = Field(
        None, description="Certificates, where the URL is rediss:// (or sentinels and nodes use TLS)."
    )


class ExternalPostgres(ApiModel):
    """A PostgreSQL that someone else runs."""

    model_config = ConfigDict(
        json_schema_extra=s.rules(*_login_rules("postgres(ql)?", "postgresql://host:5432/database"))
    )

    url_secret_ref: SecretKeyReference | None = _ref(
        "Secret key that holds the URL that agents use, postgresql://user:password@host:5432/database; "
        "it may lead through PgBouncer."
    )
    url: str | None = _ref(
        "The server's URL without a password, in place of urlSecretRef, e.g. postgresql://host:5432/database.",
        min_length=1,
        max_length=URL_MAX,
    )
    username_secret_ref: UsernameReference | None = _ref(USERNAME)
    password_secret_ref: PasswordReference | None = _ref(PASSWORD)
    direct_url_secret_ref: SecretKeyReference | None = Field(
        None,
        description="Secret key that holds a URL past PgBouncer, for migrations and housekeeping; absent means that "
        "urlSecretRef (or url) leads straight to the server.",
    )
    admin_url_secret_ref: SecretKeyReference | None = Field(
        None,
        description="Secret key that holds a direct URL of a role that may create roles and schemas. With it each "
        "Agent gets a login of its own, which sees its own rows only; it also migrates. Agents never see it.",
    )
    tls: Tls | None = Field(None, description="Certificates, where the URL has an sslmode that wants them.")
