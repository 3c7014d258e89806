"""Errors for people: one clear message for a user's mistake, shown without a traceback by PyMIC's commands."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """A mistake that the user can mend: the message names the key or file, the rule and the value received."""


class ConfigError(UserError):
    """Every mistake of a config together.

    Args:
        mistakes: one message a mistake, each complete in itself.
    """

    def __init__(self, mistakes: list[str]) -> None:
        self.mistakes = list(dict.fromkeys(mistakes))  # two stages may share a mistake
        count = f"{len(self.mistakes)} mistakes" if len(self.mistakes) > 1 else "a mistake"
        super().__init__(f"{count} in the configuration:\n" + "\n".join(f"  - {m}" for m in self.mistakes))


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """' (did you mean X?)' with the choice closest to `name`, compared without case; '' where none is close."""
    by_lower = {str(choice).lower(): str(choice) for choice in choices}
    close = difflib.get_close_matches(str(name).lower(), list(by_lower), n=1, cutoff=0.6)
    return f" (did you mean {by_lower[close[0]]}?)" if close else ""


def one_line(text: object, most: int = 500) -> str:
    """Text as a message may have it: on one line, nothing that steers a terminal, at most so many characters."""
    text = str(text)
    text = text if len(text) <= most else f"{text[: most // 2]} ... {text[-(most // 4) :]}"
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
