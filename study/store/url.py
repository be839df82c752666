"""A database's URL as it may be read by others: every URL that leaves this process goes through `shown`."""

from __future__ import annotations

import re

from vae.errors import UserError

_HIDDEN = "***"
#: Below this many letters a password is part of too many words to be masked wherever it stands.
_LONG_ENOUGH = 4


def shown(url: str) -> str:
    """The URL without password and options, whatever it looks like: also one that is no URL."""
    scheme, separator, rest = url.partition("://")
    if not separator:
        scheme, rest = "", url
    place = rest.split("?")[0]
    user = re.split("[:@?]", rest)[0]
    if "@" in place:
        credentials, _, host = place.rpartition("@")
        password = f":{_HIDDEN}" if credentials != user else ""
        return f"{scheme}{separator}{user}{password}@{host}"
    if "@" in rest:  # a '?' in the password
        return f"{scheme}{separator}{user}:{_HIDDEN}"
    return f"{scheme}{separator}{place}"


def without_secrets(message: str, secrets: list[str]) -> str:
    """A message of the database's own without these passwords."""
    for secret in filter(None, secrets):
        if len(secret) >= _LONG_ENOUGH:
            message = message.replace(secret, _HIDDEN)
        else:
            message = re.sub(
                rf"((?:password\s*=\s*|:)'?){re.escape(secret)}(?=['@\s]|$)", rf"\1{_HIDDEN}", message
            )
    return message


def check_readable(url: str) -> None:
    """Raises UserError where a URL would be read as another one than was meant."""
    scheme, _, rest = url.partition("://")
    place, question, _ = rest.partition("?")
    if scheme.startswith("sqlite") and question:
        raise UserError(
            f"--storage {shown(url)}?...: a '?' begins options, and a SQLite file takes none here. Leave them out; a "
            "file with a '?' in its name must be renamed."
        )
    if scheme.startswith("postgres") and place.count("@") > 1:
        raise UserError(f"--storage {shown(url)}: in a user's name or a password, write '@' as %40.")
