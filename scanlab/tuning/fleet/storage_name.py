"""Names of storages, as `--storage` takes them: the one place that parses them, and hides the secrets in them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from scanlab.errors import InputError, did_you_mean

DATABASES = ("sqlite", "postgresql", "postgres", "mysql", "mariadb", "oracle", "mssql")
PROXY = "grpc"

OPTION = "--storage"

HIDDEN = "***"
# A known scheme whose :// is mistyped, as in `mysql:joe` or `postgresql//joe`.
MISTYPED = re.compile(rf"\s*(?:{'|'.join((*DATABASES, PROXY))})(?:\+\w*)?(?::|//)/*", re.IGNORECASE)
# With one slash only where it is known: `joe:/x` may be a user and a password.
SCHEME = re.compile(rf"\s*[\w+.-]*://+|{MISTYPED.pattern}", re.IGNORECASE)
URL = re.compile(rf"\s*(?:{'|'.join((*DATABASES, PROXY))})(?:\+\w*)?://", re.IGNORECASE)
# What no file's name has by chance: an @ written for a URL, and the password of a list of settings.
PASSWORD = r"(?:password|passwd|pwd)\s*="
SETTING = re.compile(rf"%40|{PASSWORD}", re.IGNORECASE)
COLON = re.compile(":|%3A", re.IGNORECASE)
QUERY = re.compile(rf"[?#;]|{PASSWORD}", re.IGNORECASE)
# Colons that do not begin a password: those of ports, and within IPv6 addresses.
PORT = re.compile(r":\d{1,5}(?=[,/]|$)")
ADDRESS = re.compile(r"\[[0-9A-Fa-f:.]*\]")


@dataclass(frozen=True)
class StorageName:
    """A storage, by kind.

    Attributes:
        text: The name as it was given; it may hold a password, so print `masked`.
        kind: A journal file, a database, or optuna's gRPC proxy of a database.
        url: The parts of a URL; None for a journal.
    """

    text: str
    kind: Literal["journal", "database", "proxy"]
    url: SplitResult | None = None

    @classmethod
    def parse(cls, text: str) -> StorageName:
        """Return the storage that `text` names.

        Raises:
            InputError: If it is neither a known URL nor clearly a file, or a part of it is malformed.
        """
        scheme, separator, _ = text.partition("://")
        if not separator:
            if is_explicit_path(text) or not _may_be_a_database(text):
                if not text.strip() or "\0" in text:
                    raise InputError(f"--storage {text!r}: name a file, or a URL such as sqlite:///studies.db.")
                return cls(text, "journal")
            raise InputError(
                f"--storage {mask(text)}: this is neither a file nor a URL that is known. A database is named as"
                " sqlite:///FILE or postgresql://USER:PASSWORD@HOST/NAME, a proxy as grpc://HOST:PORT; a file whose"
                " name has these characters as ./NAME."
            )
        database = scheme.partition("+")[0]
        if database not in (*DATABASES, PROXY):
            known = ", ".join(f"{each}://" for each in (*DATABASES, PROXY))
            given = f"{scheme}://" if re.fullmatch(r"[\w+.-]+", scheme) else "what precedes ://"
            near = did_you_mean(scheme, (*DATABASES, PROXY))
            raise InputError(f"--storage {mask(text)}: {given} is not known; must be one of {known}.{near}")
        try:
            url = urlsplit(text)
            port = url.port
        except ValueError:  # whose message may repeat a part of the password
            raise InputError(
                f"--storage {mask(text)}: its host or its port cannot be read. Write characters of a password that have"
                " a meaning in URLs as %XX: %40 for @, %3A for :, %2F for /, %5B for [."
            ) from None
        if database != PROXY:
            return cls(text, "database", url)
        if not url.hostname or port is None:
            raise InputError(
                f"--storage {mask(text)}: a proxy is named as grpc://HOST:PORT, for example grpc://localhost:13000."
            )
        if url.username is not None:
            raise InputError(f"--storage {mask(text)}: a proxy takes no user or password; name it as grpc://HOST:PORT.")
        return cls(text, "proxy", url)

    @property
    def masked(self) -> str:
        """The name as it may be printed."""
        return mask(self.text)

    @property
    def file(self) -> Path | None:
        """The file of a journal, or the one that SQLAlchemy opens for an SQLite database; None if there is none.

        Raises:
            InputError: If an SQLite database is named by a URI of SQLite's own, or its name cannot be read.
        """
        if self.url is None:
            return Path(self.text)
        if not self.url.scheme.startswith("sqlite"):
            return None
        # Here and not above: most studies live in a journal.
        from sqlalchemy.engine import make_url
        from sqlalchemy.exc import ArgumentError

        try:
            url = make_url(self.text)
        except (ArgumentError, ValueError):
            raise InputError(
                f"--storage {self.masked}: this cannot be read; an SQLite database is named as sqlite:///FILE."
            ) from None
        database = url.database or ""
        if database.startswith("file:") or "uri" in url.query:
            raise InputError(
                f"--storage {self.masked}: a URI of SQLite (file:..., uri=true) is not taken, because it hides which"
                " file is written; name the file itself, as sqlite:///FILE."
            )
        # SQLAlchemy removes .. from the path before it follows symbolic links.
        return None if database in ("", ":memory:") else Path(os.path.normpath(database))


def is_explicit_path(text: str) -> bool:
    """Return whether `text` can only be meant as a path: absolute, or relative with its dots, or of a home folder."""
    return text.startswith(("./", "../", "~/")) or (Path(text).is_absolute() and not text.startswith("//"))


def _may_be_a_database(text: str) -> bool:
    """Return whether `text`, which has no ://, may be a mistyped URL or the settings of a connection."""
    return (
        "@" in text
        or ":/" in text
        or _early_colon(text) is not None
        or MISTYPED.match(text) is not None
        or SETTING.search(text) is not None
    )


def _early_colon(text: str) -> re.Match[str] | None:
    """Return the first colon before the first folder, as between a user and a password; a folder may hold others."""
    return re.match(r"(?P<user>/*[^/]*?)(?::|%3A)", text, re.IGNORECASE)


def mask(text: str) -> str:
    """Return the name of a storage as it may be printed: scheme, user, hosts and database, and nothing in doubt.

    A password may hold any character, so that it reaches up to the last @, or to the end where a query may have begun.
    """
    if is_explicit_path(text) and "://" not in text:
        return text
    scheme, rest = _split(text)
    user, at, place = rest.rpartition("@")
    query = QUERY.search(rest)
    password = COLON.search(rest)
    if at and query is not None and query.start() < len(user):
        start = query.start() if password is None else min(password.start(), query.start())
        return f"{scheme}{rest[:start]}{HIDDEN}"
    shown, query = place, QUERY.search(place)
    if query is not None:
        shown = f"{place[: query.start()]}{query.group()}{HIDDEN}"
    early = _early_colon(shown)
    if not at and not scheme and early is not None:
        return f"{early['user']}{HIDDEN}"
    if not at:
        has_host = not scheme.startswith("sqlite") if scheme else "://" in shown or "%40" in shown
        return scheme + (_mask_host(shown) if has_host else shown)
    name, *secret = COLON.split(user, maxsplit=1)
    name = HIDDEN if "/" in name else name
    if secret and not _is_host(place):
        return f"{scheme}{name}:{HIDDEN}"
    return f"{scheme}{name}{f':{HIDDEN}' if secret else ''}@{_mask_host(shown)}"


def _is_host(place: str) -> bool:
    """Return whether what follows the last @ is a host with a port or a database, rather than the end of a password."""
    return "/" in place or PORT.search(place) is not None


def _split(text: str) -> tuple[str, str]:
    """Return the beginning of a URL up to its user or host, empty where there is none, and the rest."""
    found = SCHEME.match(text)
    return ("", text) if found is None else (found.group(), text[found.end() :])


def _mask_host(place: str) -> str:
    """Return hosts with their ports and a database, up to a colon that belongs to neither."""
    known = ADDRESS.sub(lambda found: "_" * len(found.group()), place)
    known = PORT.sub(lambda found: "_" * len(found.group()), known)
    odd = re.search(r":|%3A|%40|\[|\]", known, re.IGNORECASE)
    return place if odd is None else place[: odd.start()] + HIDDEN


def mask_words(words: Iterable[str]) -> list[str]:
    """Return the words of a command line, with the names of storages masked."""
    masked: list[str] = []
    for word in words:
        option, equals, name = word.partition("=")
        if masked and masked[-1] == OPTION:
            masked.append(mask(word))
        else:
            masked.append(f"{option}={mask(name)}" if equals and option == OPTION else word)
    return masked


def misplaced(words: Sequence[str]) -> str | None:
    """Return the first URL of a storage, masked, that stands elsewhere in a command line than behind --storage."""
    for before, word in zip(("", *words), words, strict=False):
        option, _, value = word.partition("=") if word.startswith("-") else ("", "", word)
        if OPTION not in (before, option) and URL.match(value):
            return mask(value)
    return None


def hide_secrets(message: str, text: str) -> str:
    """Return `message` with the secrets of the storage called `text` replaced, as a driver may repeat them."""
    _, rest = _split(text)
    user, _, place = rest.rpartition("@")
    passwords = COLON.split(user, maxsplit=1)[1:]
    secrets = [
        text,
        rest,
        *passwords,
        *([place] if passwords and not _is_host(place) else ()),
        *re.split("[?#;&]", rest)[1:],
    ]
    secrets += [value for _, value in parse_qsl(QUERY.split(rest, maxsplit=1)[-1] if QUERY.search(rest) else "")]
    secrets += [value for _, value in parse_qsl(QUERY.split(place, maxsplit=1)[-1] if QUERY.search(place) else "")]
    for secret in sorted({*secrets, *map(unquote, secrets)} - {""}, key=len, reverse=True):
        message = message.replace(secret, HIDDEN)
    return message
