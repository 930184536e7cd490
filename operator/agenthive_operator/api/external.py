"""Servers that someone else runs, as a hive names them: their URLs and certificates, in Secrets."""

from __future__ import annotations

from pydantic import Field

from agenthive_operator.api.meta import ApiModel, LocalObjectReference, SecretKeyReference


class Tls(ApiModel):
    """How a server of someone else's is known, and how its clients are known to it."""

    ca_secret_ref: SecretKeyReference | None = Field(
        None,
        description="Secret key that holds the certificates (PEM) of authorities that may have signed the server's; "
        "absent means those of the image.",
    )
    client_cert_secret_ref: LocalObjectReference | None = Field(
        None, description="Secret of type kubernetes.io/tls with the certificate that clients show (tls.crt, tls.key)."
    )


class ExternalRedis(ApiModel):
    """A Redis that someone else runs."""

    url_secret_ref: SecretKeyReference = Field(
        description="Secret key that holds the server's URL, e.g. redis://:password@host:6379/0, "
        "redis+sentinel://:password@host,host/service and redis+cluster://:password@host,host."
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

    url_secret_ref: SecretKeyReference = Field(
        description="Secret key that holds the URL that agents use, postgresql://user:password@host:5432/database; "
        "it may lead through PgBouncer."
    )
    direct_url_secret_ref: SecretKeyReference | None = Field(
        None,
        description="Secret key that holds a URL past PgBouncer, for migrations and housekeeping; absent means that "
        "urlSecretRef leads straight to the server.",
    )
    admin_url_secret_ref: SecretKeyReference | None = Field(
        None,
        description="Secret key that holds a direct URL of a role that may create roles and schemas. With it each "
        "Agent gets a login of its own, which sees its own rows only; it also migrates. Agents never see it.",
    )
    tls: Tls | None = Field(None, description="Certificates, where the URL has an sslmode that wants them.")
