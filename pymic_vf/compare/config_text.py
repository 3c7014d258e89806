"""PyMIC's configs as text: read, changed by key and written again, each value as its author wrote it."""

from __future__ import annotations

import configparser
from collections.abc import Mapping
from pathlib import Path

from pymic_vf.errors import UserError
from pymic_vf.files import whole_file

ConfigText = dict[str, dict[str, str]]


def read_text(cfg: Path) -> ConfigText:
    """The sections of a config, their values as text.

    Raises:
        UserError: no such file, or no config.
    """
    parser = _parser()
    try:
        with cfg.open() as file:
            parser.read_file(file)
        return {name: dict(parser.items(name)) for name in parser.sections()}
    except OSError as error:
        raise UserError(f"{cfg}: there is no such config file ({error.strerror})") from error
    except (configparser.Error, UnicodeDecodeError) as error:
        raise UserError(f"{cfg}: PyMIC cannot parse this config ({error})") from error


def changed(config: ConfigText, changes: Mapping[tuple[str, str], str | None]) -> ConfigText:
    """A copy with other values: by (section, key), None for a key that goes. Keys are compared without case."""
    result = {name: dict(values) for name, values in config.items()}
    for (section, key), value in changes.items():
        values = result.setdefault(section, {})
        for written in [name for name in values if name.lower() == key.lower()]:
            del values[written]
        if value is not None:
            values[key] = value
    return result


def value_of(config: ConfigText, section: str, key: str, default: str = "") -> str:
    """The text of a key, which is compared without case."""
    return {name.lower(): value for name, value in config.get(section, {}).items()}.get(key.lower(), default)


def write_text(config: ConfigText, cfg: Path, comment: str = "") -> None:
    """Write the config with a comment above; nothing is written where the file holds the same already."""
    lines = [f"# {line}" for line in comment.splitlines()]
    for name, values in config.items():
        # configparser takes % for the begin of a name to fill in
        lines += ["", f"[{name}]", *(f"{key} = {value.replace('%', '%%')}" for key, value in values.items())]
    text = "\n".join(lines) + "\n"
    if not cfg.is_file() or cfg.read_text() != text:
        with whole_file(cfg) as temporary:
            temporary.write_text(text)


def _parser() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.optionxform = str
    return parser
