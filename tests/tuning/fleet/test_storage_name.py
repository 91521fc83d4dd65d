"""Names of storages: a mistyped URL becomes no file, and no secret is printed."""

from __future__ import annotations

from pathlib import Path

import pytest

from scanlab.errors import InputError
from scanlab.tuning.fleet.storage_name import StorageName, hide_secrets, mask, mask_words, misplaced


@pytest.mark.parametrize(
    ("text", "kind", "file"),
    [
        ("my.journal", "journal", "my.journal"),
        ("/home/joe@corp/my.journal", "journal", "/home/joe@corp/my.journal"),
        ("./joe@host", "journal", "joe@host"),
        ("./postgresql:studies", "journal", "postgresql:studies"),
        ("/tmp/a%40b.journal", "journal", "/tmp/a%40b.journal"),
        ("~/joe@host", "journal", "~/joe@host"),
        ("./joe:secret", "journal", "joe:secret"),
        ("runs/12:30.journal", "journal", "runs/12:30.journal"),
        ("grpc.journal", "journal", "grpc.journal"),
        ("sqlite:///studies.db", "database", "studies.db"),
        ("sqlite:////tmp/studies.db", "database", "/tmp/studies.db"),
        ("sqlite://", "database", None),
        ("sqlite:///:memory:", "database", None),
        ("postgresql+psycopg://joe@host:5432/db", "database", None),
        ("grpc://localhost:13000", "proxy", None),
    ],
)
def test_a_storage_is_of_one_kind_and_some_have_a_file(text, kind, file):
    name = StorageName.parse(text)
    assert (name.kind, name.file) == (kind, None if file is None else Path(file))
    assert name.masked == text, "there is nothing to hide"


@pytest.mark.parametrize(
    ("text", "file"),
    [
        ("sqlite:///my#data.db", "my#data.db"),
        ("sqlite:///a;b.db?timeout=3", "a;b.db"),
        ("sqlite:///a%20b.db", "a b.db"),
        ("sqlite:///link/../a.db", "a.db"),
        ("sqlite:///?timeout=3", None),
    ],
)
def test_the_file_of_a_database_is_the_one_that_sqlalchemy_opens(text, file):
    assert StorageName.parse(text).file == (None if file is None else Path(file))


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("sqlite:///file:a.db?mode=rwc&uri=true", "name the file itself, as sqlite:///FILE"),
        ("sqlite:///%66ile:a.db", "name the file itself"),
        ("sqlite:///a.db?uri=true&mode=rwc", "name the file itself"),
    ],
)
def test_a_database_whose_file_is_not_plain_is_refused(text, complaint):
    with pytest.raises(InputError, match=complaint):
        _ = StorageName.parse(text).file


@pytest.mark.parametrize(
    "text",
    [
        "postgresql:host/db?user=joe&password=secret",
        "postgresql+psycopg:joe:secret",
        "mysql:joe:secret",
        "MySQL:joe:secret",
        "grpc:h:13000",
        "sqlite:studies.db",
        "host=h password=secret",
        "host=h password = secret url=x://y",
        "joe:secret%40h/db",
        "joe:secret",
        "joe%3Asecret",
        "joe:secret/db",
        "joe:/secret",
        "joe:/secret@host/db",
        "joe:secret.h:5432/db",
        ":secret",
        "//joe:secret.h/db",
        "postgresql//joe:secret.h/db",
        "/tmp/postgresql://joe:secret@h/db",
        "/tmp/postgresql://joe:secret%40h/db",
        "/tmp/postgresql://joe:secret.h/db",
        "/tmp/joe:secret@h/x://y",
    ],
)
def test_a_mistyped_url_is_refused_with_the_cure_and_without_its_secrets(text):
    with pytest.raises(
        InputError, match=r"(sqlite:///FILE or postgresql://USER:PASSWORD@HOST/NAME|must be one of)"
    ) as refused:
        StorageName.parse(text)
    assert "secret" not in str(refused.value) + mask(text)


@pytest.mark.parametrize(
    "text",
    [
        "joe:secret@host/db",
        "joe@host/db",
        "postgresql:/joe:secret@h/db",
        "postgresql:/host/db",
        "postgres//joe:secret@host/db",
        "//joe:secret@host/db",
        "postgre://joe:secret@host/db",
        "://joe:secret@host/db",
        "http://joe:secret@host/db",
        "grpc://joe:secret@host",
        "grpc://joe:secret@host:13000",
        "grpc://host:secret",
        "postgresql://joe:secret[@host/db",
        "postgresql://joe:secret/secret@host/db",
        "postgresql://joe:secret@[host/db",
        "postgresql://joe:secret@host:port/db",
        "postgresql://joe:12:secret@host:99999/db",
        "",
        " ",
        "a\0b",
    ],
)
def test_what_is_neither_a_file_nor_a_known_url_is_refused_without_its_secrets(text):
    with pytest.raises(InputError, match="--storage") as refused:
        StorageName.parse(text)
    if "@" in text:
        assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("postgresql://joe:secret@host/db", "postgresql://joe:***@host/db"),
        ("postgresql://joe@corp:secret@host/db", "postgresql://joe@corp:***@host/db"),
        ("postgresql://joe%3Asecret@host/db", "postgresql://joe:***@host/db"),
        ("postgresql://joe:secret%40host/db", "postgresql://joe***"),
        ("postgresql://joe:se@cr/et@host:5432/db", "postgresql://joe:***@host:5432/db"),
        ("postgresql://joe:se?cr@et@host/db", "postgresql://joe***"),
        ("postgresql://host:5432/db?password=se@cret", "postgresql://host***"),
        ("postgresql://:secret@host/db", "postgresql://:***@host/db"),
        ("postgresql://host/db?user=joe&password=secret&secret", "postgresql://host/db?***"),
        ("postgresql://host/db#password=secret", "postgresql://host/db#***"),
        ("postgresql://host/db;password=secret", "postgresql://host/db;***"),
        ("postgresql://joe@[::1]:5432,other:5433/db", "postgresql://joe@[::1]:5432,other:5433/db"),
        ("joe:secret@host/db", "joe:***@host/db"),
        ("postgresql:/joe:secret@h/db", "postgresql:/joe:***@h/db"),
        ("postgresql://joe@host:5432/db", "postgresql://joe@host:5432/db"),
        ("/tmp/postgresql://joe:secret@h/db", "***:***@h/db"),
        ("postgresql//joe:secret@h/db", "postgresql//joe:***@h/db"),
        ("mysql:joe:secret", "mysql:joe***"),
        ("joe:secret%40h/db", "joe***"),
        ("joe:secret", "joe***"),
        ("joe:12345", "joe***"),
        ("joe:secret?sslmode=off", "joe***"),
        ("joe:/secret", "joe***"),
        ("joe:/secret@host/db", "joe:***@host/db"),
        ("joe:pa@secret", "joe:***"),
        ("postgresql://joe:pa@secret", "postgresql://joe:***"),
        ("postgresql://joe:secret@host:5432", "postgresql://joe:***@host:5432"),
        ("postgresql://joe@host", "postgresql://joe@host"),
        ("host=h password=secret", "host=h password=***"),
        ("sqlite:studies.db", "sqlite:studies.db"),
        ("sqlite:///C:/studies.db", "sqlite:///C:/studies.db"),
        ("runs/a:b.journal", "runs/a:b.journal"),
    ],
)
def test_what_is_printed_shows_no_secret(text, shown):
    assert mask(text) == shown


def test_a_command_line_keeps_all_but_the_secrets_of_a_storage():
    url, shown = "mysql://joe:pass@host/db?password=secret", "mysql://joe:***@host/db?***"
    words = ["tune", "--storage", url, "--budget=3m", f"--storage={url}", url]
    assert mask_words(words) == ["tune", "--storage", shown, "--budget=3m", f"--storage={shown}", url]


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (["fleet", "postgresql://joe:secret@h/db"], "postgresql://joe:***@h/db"),
        (["tune", "--out", "mysql+pymysql://joe:secret@h/db"], "mysql+pymysql://joe:***@h/db"),
        (["tune", "--out=grpc://joe:secret@h:1"], "grpc://joe:***@h:1"),
        (["tune", "--stroage", "sqlite:///a.db"], "sqlite:///a.db"),
        (["tune", "--storage", "postgresql://joe:secret@h/db"], None),
        (["tune", "--storage=postgresql://joe:secret@h/db", "--out", "runs/postgresql"], None),
        (["bench", "--problem", "batch=1,dim=4"], None),
    ],
)
def test_a_url_elsewhere_than_behind_its_option_is_found(words: list[str], shown: str | None) -> None:
    assert misplaced(words) == shown


def test_a_driver_s_message_is_cleared_of_the_secrets_it_repeats():
    text = "postgresql://joe:p%40ss@host/db?sslpassword=hush&user=joe"
    assert hide_secrets("no jim with p@ss, p%40ss or hush", text) == "no jim with ***, *** or ***"
    assert hide_secrets(f"cannot parse {text}", text) == "cannot parse ***"
    assert hide_secrets("no host 'ss'", "postgresql://joe:pa@ss") == "no host '***'"
