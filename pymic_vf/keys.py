"""Config keys: a row for each says its name, what it must be, its default and what it means.

From these rows come the checks of a config, their messages, the closest names and the tables of the documentation.
PyMIC hands on keys in lower case and values parsed: int, float, bool, list, None or text. Messages show a key as its
row writes it.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pymic_vf.errors import did_you_mean

LARGEST = 2**63 - 1
NEAR = 0.8  # similarity from which an unknown key is taken for a misspelt one; PyMIC's own keys stay below 0.76


@dataclass(frozen=True)
class Kind:
    """What a value must be.

    Args:
        rule: ends the sentence "must be ...".
        fits: whether a value is one.
        plural: ends the sentence "must be a list of 3 ...".
        convert: what is made of a value that fits.
        hint: what is added to the message about a value that does not.
    """

    rule: str
    fits: Callable[[Any], bool]
    plural: str = ""
    convert: Callable[[Any], Any] = lambda value: value
    hint: Callable[[Any], str] = lambda _value: ""


def whole(least: int, most: int | None = None) -> Kind:
    """A whole number in [least, most]; without `most` as large as torch counts."""
    limits = f"of at least {least}" + ("" if most is None else f" and at most {most}")

    def fits(value: Any) -> bool:
        return _is_int(value) and least <= value <= (LARGEST if most is None else most)

    def hint(value: Any) -> str:
        return f" and below {LARGEST}" if _is_int(value) and value > LARGEST else ""

    return Kind(f"a whole number {limits}", fits, f"whole numbers {limits}", hint=hint)


def number(least: float = float("-inf"), most: float = float("inf"), below: bool = False) -> Kind:
    """A finite number in [least, most], or in [least, most) with `below`."""
    limits = f" from {least:g} to {'below ' if below else ''}{most:g}"
    if most == float("inf"):
        limits = f" of at least {least:g}" if least > float("-inf") else ""

    def fits(value: Any) -> bool:
        if not (_is_int(value) or isinstance(value, float)) or abs(value) == float("inf"):
            return False
        return least <= value <= most and not (below and value == most)

    return Kind(f"a number{limits}", fits, f"numbers{limits}", float)


def flag() -> Kind:
    """True or False."""
    return Kind("True or False", lambda value: isinstance(value, bool))


def one_of(*choices: Any) -> Kind:
    """One of some names or numbers."""

    def fits(value: Any) -> bool:
        return not isinstance(value, bool) and value in choices  # True == 1 in Python

    def hint(value: Any) -> str:
        return did_you_mean(value, choices) if isinstance(value, str) else ""

    return Kind(f"one of {', '.join(map(str, choices))}", fits, hint=hint)


def name_of(*choices: str) -> Kind:
    """One of some names that PyMIC compares without case."""
    by_lower = {choice.lower() for choice in choices}

    def fits(value: Any) -> bool:
        return isinstance(value, str) and value.lower() in by_lower

    return Kind(f"one of {', '.join(choices)}", fits, hint=lambda value: did_you_mean(value, choices))


def path(what: str) -> Kind:
    """The name of a file or folder."""

    def hint(value: Any) -> str:
        if isinstance(value, str):
            return " (a comment needs a line of its own; a line that begins with a space goes on with the one before)"
        # PyMIC takes the name 2018 for a number
        return f" (./{value} where that is its name)" if _is_number(value) else ""

    return Kind(f"the name of {what}", lambda value: isinstance(value, str) and _is_name_alone(value), what, hint=hint)


def text() -> Kind:
    """A name that PyMIC takes as it is."""

    def hint(value: Any) -> str:
        return "" if isinstance(value, str) else " (PyMIC reads this one as something else)"

    return Kind("a name", lambda value: isinstance(value, str) and _is_name_alone(value), "names", hint=hint)


def none() -> Kind:
    """None, where PyMIC gives it a meaning."""
    return Kind("None", lambda value: value is None, "None")


def names() -> Kind:
    """A list of names, or one name; empty ones are left out."""

    def fits(value: Any) -> bool:
        return isinstance(value, str) or (_is_list(value) and all(isinstance(item, str) for item in value))

    def convert(value: Any) -> tuple[str, ...]:
        return tuple(name for name in ([value] if isinstance(value, str) else value) if name)

    return Kind("a list of names", fits, convert=convert)


def list_of(kind: Kind, length: int | None = None, what: str = "") -> Kind:
    """A list of so many values of one kind; without `length` of at least one."""

    def fits(value: Any) -> bool:
        right = _is_list(value) and (len(value) == length if length else len(value) > 0)
        return right and all(kind.fits(item) for item in value)

    count = f"{length} " if length else ""
    rule = f"a list of {count}{kind.plural}{f' ({what})' if what else ''}"
    return Kind(rule, fits, convert=lambda value: tuple(kind.convert(item) for item in value))


def either(*kinds: Kind) -> Kind:
    """A value of any of the kinds."""

    def convert(value: Any) -> Any:
        return next(kind for kind in kinds if kind.fits(value)).convert(value)

    def fits(value: Any) -> bool:
        return any(kind.fits(value) for kind in kinds)

    plurals = [kind.plural for kind in kinds if kind.plural]
    plural = " or ".join(plurals) if len(plurals) == len(kinds) else ""
    return Kind(" or ".join(kind.rule for kind in kinds), fits, plural, convert)


def anything() -> Kind:
    """Whatever PyMIC takes there."""
    return Kind("a value", lambda _value: True)


def _is_name_alone(value: str) -> bool:
    """Whether a value is a name alone, without the next line or a comment, which configparser would leave in it."""
    return not any(part in value for part in ("\n", "\r", "\0", " #", " ;", "\t#"))


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_list(value: Any) -> bool:
    return isinstance(value, (list, tuple))


@dataclass(frozen=True)
class Key:
    """One key of a config.

    Args:
        name: as the documentation writes it.
        kind: what its value must be.
        meaning: for the documentation, and for the message where a required key is missing.
        default: the value without the key.
        required: whether it must be there.
        former: an earlier name, which goes on working.
        none_is_absent: whether the value None counts as no value; not where PyMIC reads the key and fails on it.
    """

    name: str
    kind: Kind
    meaning: str
    default: Any = None
    required: bool = False
    former: str = ""
    none_is_absent: bool = True


class Section:
    """One section of a config, which notes every mistake and goes on.

    Args:
        values: the section as PyMIC parsed it.
        name: its name, for the messages.
        mistakes: where the messages are collected.
    """

    def __init__(self, values: Mapping[str, Any], name: str, mistakes: list[str]) -> None:
        self.values, self.name, self.mistakes = values, name, mistakes

    def __contains__(self, name: str) -> bool:
        """Whether the key is there with a value."""
        return self.values.get(name.lower()) is not None

    def get(self, name: str, default: Any = None) -> Any:
        """The value as it is; None counts as absent."""
        value = self.values.get(name.lower())
        return default if value is None else value

    def wrong(self, name: str, rule: str) -> None:
        """Note that a key breaks a rule, such as "must be ..."."""
        self.mistakes.append(f"[{self.name}] {name} {rule}, got {self.values.get(name.lower())!r}")

    def missing(self, name: str, why: str) -> None:
        """Note that a key is not there."""
        self.mistakes.append(f"[{self.name}] {name} is missing: {why}")

    def read(self, keys: Iterable[Key]) -> dict[str, Any]:
        """The values of some keys by their names, each the default where it is absent or wrong."""
        return {key.name: self.read_key(key) for key in keys}

    def read_key(self, key: Key) -> Any:
        """The value of a key, its default where it is absent or wrong."""
        name = self.written_name(key)
        value = self.values.get(name.lower())
        if value is None and (key.none_is_absent or name.lower() not in self.values):
            if key.required:
                self.missing(key.name, key.meaning)
            return key.default
        if key.kind.fits(value):
            return key.kind.convert(value)
        self.wrong(name, f"must be {key.kind.rule}{key.kind.hint(value)}")
        return key.default

    def written_name(self, key: Key) -> str:
        """The name under which a key is written here: its own or its former one."""
        if not key.former or key.former.lower() not in self.values:
            return key.name
        if key.name.lower() in self.values:
            self.wrong(key.former, f"is the former name of {key.name}, which is there too: one of them has to go")
        return key.former


def misspelt(section: Section, keys: Sequence[Key], others: Sequence[str] = (), prefixes: tuple[str, ...] = ()) -> None:
    """Note the keys of a section that look like one of `keys`, or begin as ours do, but are none and would be ignored.

    Args:
        section: of the config.
        keys: those that it may have.
        others: keys that somebody else reads, in lower case.
        prefixes: what a key that is ours begins with, in lower case.
    """
    known = {name.lower(): name for key in keys for name in (key.name, key.former) if name}
    for name in section.values:
        if name in known or name in others:
            continue
        if name.startswith(prefixes) or difflib.get_close_matches(name, known, 1, NEAR):
            closest = did_you_mean(name, known.values())
            section.mistakes.append(
                f"[{section.name}] {name}: there is no such key{closest}; it would be ignored, "
                f"got {section.values[name]!r}"
            )


def text_table(keys: Iterable[Key]) -> str:
    """The rows as a terminal shows them."""
    lines = []
    for key in keys:
        start = "(required)" if key.required else "" if key.default is None else f"= {_as_written(key.default)}"
        lines += [f"  {key.name} {start}".rstrip(), f"      {key.meaning}; {key.kind.rule}"]
    return "\n".join(lines)


def markdown_table(keys: Iterable[Key]) -> str:
    """The rows as the documentation has them."""
    lines = ["| key | value | default | meaning |", "|---|---|---|---|"]
    for key in keys:
        default = "required" if key.required else "none" if key.default is None else f"`{_as_written(key.default)}`"
        lines.append(f"| `{key.name}` | {key.kind.rule} | {default} | {key.meaning} |")
    return "\n".join(lines)


def _as_written(value: Any) -> str:
    return f"[{', '.join(map(str, value))}]" if isinstance(value, (list, tuple)) else str(value)
