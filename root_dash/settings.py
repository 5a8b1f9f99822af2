"""The settings of the server. Each comes from an option of the command, from ROOT_DASH_* in the environment, or is a
default."""

from __future__ import annotations

import ipaddress
import os
import secrets
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, SecretStr, ValidationInfo, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach a server that is bound to the host."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


_SECRETS = "/run/secrets"


def _as_text(given: Any) -> Any:
    return os.fspath(given) if isinstance(given, os.PathLike) else given


class Settings(BaseSettings):
    """The server's settings: built once when the process starts, and passed on.

    Raises:
        pydantic.ValidationError: a setting is wrong. This is a ValueError, also for a value of a wrong type, because
            people write settings as texts.
    """

    # The secrets of a container are files in this folder: root_dash_db, a URL with its password, and root_dash_token.
    model_config = SettingsConfigDict(
        env_prefix="ROOT_DASH_", frozen=True, extra="ignore", secrets_dir=_SECRETS if os.path.isdir(_SECRETS) else None
    )

    db: Annotated[str, BeforeValidator(_as_text), Field(repr=False)] = "root-dash.db"
    """The database to show: a path, or a URL, which may hold a password."""

    host: str = "127.0.0.1"
    """The host to bind to. On loopback only this machine can reach the server."""

    port: Annotated[int, Field(ge=0, le=65535)] = 8050
    """The port to listen on. 0 is any free port; the real port then replaces the 0."""

    token: SecretStr | None = Field(default_factory=lambda: SecretStr(secrets.token_urlsafe(32)))
    """The token that a request must show, also on loopback, which other users of this machine can reach. If None, no
    token is needed."""

    write_token: SecretStr = Field(default_factory=lambda: SecretStr(secrets.token_urlsafe(32)))
    """The token that a trainer must show to send recordings. It allows nothing else, and `token` cannot replace it."""

    read_only: bool = False
    """Whether the server refuses recordings."""

    allowed_hosts: Annotated[tuple[str, ...], NoDecode] = ()
    """Names by which a browser may reach the server, beside the bound host and the names of loopback."""

    @field_validator("allowed_hosts", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        return [name.strip() for name in value.split(",") if name.strip()] if isinstance(value, str) else value

    @field_validator("token", "write_token")
    @classmethod
    def _not_empty(cls, token: SecretStr | None, info: ValidationInfo) -> SecretStr | None:
        if token is not None and not token.get_secret_value().strip():
            raise ValueError(f"{info.field_name} must not be empty")
        return token

    @model_validator(mode="after")
    def _guarded(self) -> Self:
        if self.token is None and not is_loopback(self.host):
            raise ValueError(f"host {self.host} can be reached by others: it needs a token")
        if self.token == self.write_token:
            raise ValueError("token and write_token must differ: who may look may not send")
        return self
