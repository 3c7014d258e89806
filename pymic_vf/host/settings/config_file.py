"""A config file as PyMIC's commands read it, every fault of the file named by its line.

PyMIC takes configparser's exceptions as they come, drops keys without a value, and fails on values such as ``[]`` by an
IndexError that names nothing.
"""

from __future__ import annotations

import configparser
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from pymic_vf.errors import ConfigError, UserError

UTF_16 = (b"\xff\xfe", b"\xfe\xff")
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class ReadConfig(dict):
    """PyMIC's parsed config, which also knows the keys that have no value, which PyMIC leaves out.

    Args:
        sections: the parsed config.
        empty: the (section, key) of these.
    """

    def __init__(self, sections: Mapping[str, Any], empty: tuple[tuple[str, str], ...] = ()) -> None:
        super().__init__(sections)
        self.empty = empty


def read_configs_plainly(host: ModuleType) -> None:
    """PyMIC's parser ends in a traceback for most faults of a file: name them all, by line or key."""
    stock: Callable = host.parse_config
    if getattr(stock, "is_plain", False):
        return

    @functools.wraps(stock)
    def parse_config(args: Any) -> ReadConfig:
        from pymic.util.parse_config import parse_value_from_string

        empty, mistakes = [], []
        for section, key, value in entries(Path(args.cfg)):
            given = getattr(args, key, None)
            value = value if given is None else str(given)
            if not value:
                empty.append((section, key))
                continue
            try:
                parse_value_from_string(value)
            except (IndexError, ValueError):
                mistakes.append(f"[{section}] {key} {_rule(value)}, got {_shown(value)}")
        if mistakes:
            raise ConfigError(mistakes)
        return ReadConfig(stock(args), tuple(empty))

    parse_config.is_plain = True
    host.parse_config = parse_config


def entries(path: Path) -> list[tuple[str, str, str]]:
    """The (section, key, value) of a config file, as texts.

    Raises:
        UserError: it cannot be read as a config; with the line where that is known.
    """
    parser = configparser.ConfigParser()
    try:
        parser.read_string(_text(path), str(path))
        found = [(section, key) for section in parser.sections() for key in parser[section]]
    except configparser.Error as error:
        raise UserError(f"{path}: {_plainly(error)}") from error
    if not found:
        raise UserError(f"{path}: has no key in any [section]")
    values, mistakes = [], []
    for section, key in found:
        try:
            values.append((section, key, parser[section][key]))
        except configparser.InterpolationError:
            raw = parser.get(section, key, raw=True)
            mistakes.append(f"[{section}] {key} has a % with a meaning (%% stands for the sign itself), got {raw!r}")
    if mistakes:
        raise ConfigError(mistakes)
    return values


def _text(path: Path) -> str:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: this config file cannot be read ({error.strerror})") from error
    if content.startswith(UTF_16):
        raise UserError(f"{path}: is written in UTF-16; save it as UTF-8")
    if content.startswith(BYTE_ORDER_MARK):
        raise UserError(f"{path}: begins with a byte order mark, which PyMIC takes for text; save it as UTF-8 without")
    if b"\0" in content:
        raise UserError(f"{path}: is no text file; a config has lines `key = value` below lines `[section]`")
    try:
        return path.read_text()  # in the encoding that configparser takes, the locale's
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise UserError(f"{path}: line {line} has a character that is not in {error.encoding.upper()}") from error


def _plainly(error: configparser.Error) -> str:
    if isinstance(error, configparser.MissingSectionHeaderError):
        return f"line {error.lineno} stands before the first [section]: {_shown(error.line.strip())}"
    if isinstance(error, configparser.ParsingError):
        lines = [f"line {number}: {line}" for number, line in error.errors[:5]]
        more = f" and {len(error.errors) - 5} more" if len(error.errors) > 5 else ""
        return f"neither `key = value` nor `[section]`: {'; '.join(lines)}{more}"
    if isinstance(error, configparser.DuplicateOptionError):
        return f"line {error.lineno}: [{error.section}] has {error.option} already"
    if isinstance(error, configparser.DuplicateSectionError):
        return f"line {error.lineno}: there is a section [{error.section}] already"
    return str(error)


def _rule(value: str) -> str:
    if value.startswith("["):
        return "must be a list without empty entries"
    return "must be a value that PyMIC can read"


def _shown(value: str, most: int = 80) -> str:
    return repr(value if len(value) <= most else f"{value[:most]}...")
