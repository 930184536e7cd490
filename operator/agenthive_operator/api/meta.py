"""Models that both kinds share: object metadata, conditions, references, environment, resources."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

from agenthive_operator.api import schema as s

GROUP = "agenthive.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"


class InvalidObjectError(ValueError):
    """An object that does not fit its model: it was written past the API server's validation, or by a newer version."""


class ApiModel(BaseModel):
    """Base of every API model: camelCase outside, immutable; fields of a newer version are ignored."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, frozen=True, extra="ignore")

    def dump(self) -> dict[str, Any]:
        """As plain JSON values, camelCase, without what is absent."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


class OwnerReference(ApiModel):
    """One owner of an object."""

    api_version: str
    kind: str
    name: str
    uid: str
    controller: bool = False
    block_owner_deletion: bool = False


class ObjectMeta(ApiModel):
    """The part of Kubernetes' object metadata that the operator reads."""

    name: str
    namespace: str = "default"
    uid: str = ""
    generation: int = 0
    resource_version: str = ""
    labels: dict[str, str] = Field(default_factory=dict)
    annotations: dict[str, str] = Field(default_factory=dict)
    finalizers: tuple[str, ...] = ()
    owner_references: tuple[OwnerReference, ...] = ()
    creation_timestamp: datetime | None = None
    deletion_timestamp: datetime | None = None

    @property
    def deleting(self) -> bool:
        """Deletion was asked for; finalizers hold the object."""
        return self.deletion_timestamp is not None


class Resource(ApiModel):
    """Base of the custom resources."""

    metadata: ObjectMeta

    @classmethod
    def parse(cls, obj: Mapping[str, Any]) -> Self:
        """The model of ``obj`` as an API server returns it.

        Raises:
            InvalidObjectError: ``obj`` does not fit; the text names each field and what is wrong with it.
        """
        try:
            return cls.model_validate(obj)
        except ValidationError as error:
            metadata = obj.get("metadata") or {}
            where = f"{obj.get('kind', cls.__name__)} {metadata.get('namespace', '')}/{metadata.get('name', '')}"
            what = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
            raise InvalidObjectError(f"{where}: {what}") from error


class Condition(ApiModel):
    """One aspect of an object's state, as Kubernetes' metav1.Condition."""

    type: str = Field(max_length=316, description="Aspect, for instance Ready.")
    status: Literal["True", "False", "Unknown"] = Field(description="Whether the condition holds.")
    reason: str = Field(min_length=1, max_length=1024, description="Why, as one word for programs.")
    message: str = Field(max_length=32_768, description="Why, as a sentence for people.")
    last_transition_time: datetime = Field(description="When the status last changed.")
    observed_generation: int | None = Field(None, ge=0, description="Generation of the spec that this speaks of.")


Conditions = Annotated[
    tuple[Condition, ...],
    Field(max_length=32, description="State by aspect.", json_schema_extra=s.list_map("type")),
]


def name_field(description: str) -> Any:
    """The required name of an object in the same namespace."""
    return Field(min_length=1, max_length=s.DNS_SUBDOMAIN_MAX, pattern=s.DNS_SUBDOMAIN, description=description)


class LocalObjectReference(ApiModel):
    """Names an object in the same namespace."""

    model_config = ConfigDict(json_schema_extra=s.atomic_map())

    name: str = name_field("Name of the object, in the same namespace.")


class SecretKeyReference(ApiModel):
    """Names one key of a Secret in the same namespace."""

    model_config = ConfigDict(json_schema_extra=s.atomic_map())

    name: str = name_field("Name of the Secret, in the same namespace.")
    key: str = Field("url", min_length=1, max_length=253, pattern=s.DATA_KEY, description="Key in the Secret.")


class KeySelector(ApiModel):
    """A key of a Secret or ConfigMap that an environment variable is read from."""

    model_config = ConfigDict(json_schema_extra=s.atomic_map())

    name: str = name_field("Name of the object, in the same namespace.")
    key: str = Field(min_length=1, max_length=253, pattern=s.DATA_KEY, description="Key in it.")
    optional: bool | None = Field(None, description="The pod starts without it.")


class ObjectFieldSelector(ApiModel):
    """A field of the pod."""

    model_config = ConfigDict(json_schema_extra=s.atomic_map())

    field_path: str = Field(min_length=1, max_length=512, description="Field of the pod, e.g. spec.nodeName.")
    api_version: str | None = Field(None, max_length=64, description="Version of the pod's schema.")


class ResourceFieldSelector(ApiModel):
    """A resource of a container."""

    model_config = ConfigDict(json_schema_extra=s.atomic_map())

    resource: str = Field(min_length=1, max_length=128, description="Resource, e.g. limits.memory.")
    container_name: str | None = Field(None, max_length=63, description="Container; absent means this one.")
    divisor: int | str | None = Field(None, description="Unit of the value.")


class EnvVarSource(ApiModel):
    """Where the value of an environment variable comes from."""

    model_config = ConfigDict(
        json_schema_extra=s.rules(
            s.Rule(
                "[has(self.secretKeyRef), has(self.configMapKeyRef), has(self.fieldRef), has(self.resourceFieldRef)]"
                ".exists_one(x, x)",
                "valueFrom needs exactly one of secretKeyRef, configMapKeyRef, fieldRef and resourceFieldRef",
            )
        )
    )

    secret_key_ref: KeySelector | None = Field(None, description="Key of a Secret.")
    config_map_key_ref: KeySelector | None = Field(None, description="Key of a ConfigMap.")
    field_ref: ObjectFieldSelector | None = Field(None, description="Field of the pod.")
    resource_field_ref: ResourceFieldSelector | None = Field(None, description="Resource of a container.")


class EnvVar(ApiModel):
    """One environment variable."""

    model_config = ConfigDict(
        json_schema_extra=s.rules(
            s.RESERVED_ENV,
            s.Rule("!(has(self.value) && has(self.valueFrom))", "set either value or valueFrom, not both"),
        )
    )

    name: str = Field(min_length=1, max_length=256, pattern=s.ENV_NAME, description="Name of the variable.")
    value: str | None = Field(None, max_length=s.MAX_ENV_VALUE, description="Value; $(OTHER) is expanded.")
    value_from: EnvVarSource | None = Field(None, description="Where the value comes from.")


class EnvSource(ApiModel):
    """A Secret or ConfigMap whose keys become variables."""

    model_config = ConfigDict(json_schema_extra=s.atomic_map())

    name: str = name_field("Name of the object, in the same namespace.")
    optional: bool | None = Field(None, description="The pod starts without it.")


class EnvFromSource(ApiModel):
    """Environment variables from all keys of a Secret or ConfigMap."""

    model_config = ConfigDict(
        json_schema_extra=s.rules(
            s.Rule(
                "has(self.secretRef) != has(self.configMapRef)",
                "an item of envFrom needs exactly one of secretRef and configMapRef",
            )
        )
    )

    prefix: str | None = Field(None, max_length=128, description="Put before each key.")
    secret_ref: EnvSource | None = Field(None, description="The Secret.")
    config_map_ref: EnvSource | None = Field(None, description="The ConfigMap.")


Env = Annotated[
    tuple[EnvVar, ...],
    Field(max_length=s.MAX_ENV, description="Environment variables.", json_schema_extra=s.list_map("name")),
]
EnvFrom = Annotated[
    tuple[EnvFromSource, ...],
    Field(
        max_length=s.MAX_REFS,
        description="Environment variables from all keys of Secrets and ConfigMaps.",
        json_schema_extra=s.atomic(),
    ),
]
PullSecrets = Annotated[
    tuple[LocalObjectReference, ...],
    Field(
        max_length=s.MAX_REFS,
        description="Secrets with registry credentials, in the same namespace.",
        json_schema_extra=s.list_map("name"),
    ),
]
PullPolicy = Annotated[
    Literal["Always", "IfNotPresent", "Never"] | None, Field(description="When the image is pulled.")
]
Quantities = Annotated[dict[str, int | str], Field(max_length=32)]


class ResourceRequirements(ApiModel):
    """Compute resources of a container."""

    requests: Quantities = Field(default_factory=dict, description="What is set aside, e.g. cpu: 100m, memory: 128Mi.")
    limits: Quantities = Field(default_factory=dict, description="What is not exceeded.")
