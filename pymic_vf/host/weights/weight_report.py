"""What a checkpoint gives a network, in a table that fits a screen, and in a file with every name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from pymic_vf.errors import UserError
from pymic_vf.files import whole_file
from pymic_vf.host.weights.channel_inflation import can_be_inflated

FILE = "weights_loaded.txt"
MOST_LINES = 15  # of the table
DEEP = 2  # components of a name that weights of a group without a common reason share


@dataclass(frozen=True)
class Misfit:
    """A weight that is not loaded: why, for the table, and both shapes, for the file."""

    name: str
    reason: str = ""
    detail: str = ""


@dataclass(frozen=True)
class WeightReport:
    """What is loaded and what is not."""

    loaded: list[str]
    mis_shaped: list[Misfit]
    missing: list[Misfit]
    unused: list[Misfit]
    inflated: list[str] = field(default_factory=list)

    @property
    def rows(self) -> dict[str, list[Misfit]]:
        return {"mis-shaped": self.mis_shaped, "missing": self.missing, "unused": self.unused}

    def table(self, title: str) -> str:
        """Counts, then what was not loaded, in groups by reason: at most `MOST_LINES` lines."""
        lines = [title, f"  {'loaded':<11}{len(self.loaded):>5}"]
        lines += [f"  {name:<11}{len(misfits):>5}" for name, misfits in self.rows.items()]
        if self.inflated:
            lines.append(f"  inflated: {_some(self.inflated)}, repeated for more channels and divided")
        groups = {name: _groups(misfits) for name, misfits in self.rows.items()}
        for name, room in _shares(groups, MOST_LINES - len(lines)).items():
            shown = groups[name] if room == len(groups[name]) else groups[name][: room - 1]
            lines += [f"  {name}: {group}" for group in shown]
            if left := len(groups[name]) - len(shown):
                lines.append(f"  {name}: {left} more groups")
        return "\n".join(lines)

    def full_text(self, title: str) -> str:
        """Every name, a line each."""
        lines = [title, f"\nloaded ({len(self.loaded)})", *(f"  {name}" for name in self.loaded)]
        if self.inflated:
            lines += [f"\nof these inflated ({len(self.inflated)})", *(f"  {name}" for name in self.inflated)]
        for row, misfits in self.rows.items():
            lines.append(f"\n{row} ({len(misfits)})")
            for misfit in misfits:
                why = "; ".join(text for text in (misfit.detail, misfit.reason) if text)
                lines.append(f"  {misfit.name}{': ' if why else ''}{why}")
        return "\n".join(lines) + "\n"

    def write(self, folder: Path, title: str) -> Path:
        """Write the full text into `FILE` of a folder.

        Raises:
            UserError: it cannot be written.
        """
        path = folder / FILE
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with whole_file(path) as temporary:
                temporary.write_text(self.full_text(title))
        except OSError as error:
            raise UserError(f"{path}: cannot be written ({error.strerror})") from error
        return path


def compare_weights(
    given: Mapping[str, Tensor],
    wanted: Mapping[str, Tensor],
    explain: Callable[[str], str | None] = lambda _name: None,
    class_num: int | None = None,
    in_chns: int | None = None,
) -> WeightReport:
    """Compare a checkpoint's weights with a network's.

    Args:
        given: the checkpoint's state dict.
        wanted: the network's, or the part of it that may be loaded.
        explain: for a name that does not fit, why; None where the network has nothing to say.
        class_num: output channels of the network; weights that differ in them are its heads.
        in_chns: its input channels.
    """
    loaded, mis_shaped = [], []
    for name, own in wanted.items():
        if name not in given:
            continue
        if fits(given[name], own):
            loaded.append(name)
        else:
            reason = _reason(given[name], own, class_num, in_chns) or explain(name) or ""
            shapes = f"{tuple(given[name].shape)} in the file, {tuple(own.shape)} in the network"
            mis_shaped.append(Misfit(name, reason, shapes))
    missing = [Misfit(name) for name in wanted if name not in given]
    unused = [Misfit(name, explain(name) or "") for name in given if name not in wanted]
    return WeightReport(loaded, mis_shaped, missing, unused)


def fits(given: Tensor, wanted: Tensor) -> bool:
    """Whether a weight has the shape, and is of whole numbers where the network's is."""
    is_same_kind = given.is_floating_point() == wanted.is_floating_point() and not given.is_complex()
    return given.shape == wanted.shape and is_same_kind


def _kind(weight: Tensor) -> str:
    return str(weight.dtype).removeprefix("torch.")


def _reason(given: Tensor, own: Tensor, class_num: int | None, in_chns: int | None) -> str:
    if given.shape == own.shape:
        return f"{_kind(given)} in the file, {_kind(own)} in the network"
    if given.dim() == own.dim() > 0 and given.shape[1:] == own.shape[1:] and own.shape[0] == class_num:
        return f"class_num is {given.shape[0]} in the file and {class_num} here, new heads start from random weights"
    if can_be_inflated(given, own, in_chns):
        return (
            f"in_chns is {given.shape[1]} in the file and {in_chns} here; [network] in_chns_inflate = True would "
            "repeat the file's"
        )
    return ""


def _groups(misfits: list[Misfit]) -> list[str]:
    """Weights that share a reason become one line; without a reason, those of one part of the network."""
    groups: dict[tuple[str, str], list[Misfit]] = {}
    for misfit in misfits:
        part = "" if misfit.reason else ".".join(misfit.name.split(".")[:DEEP])
        groups.setdefault((part, misfit.reason), []).append(misfit)
    lines = []
    for (part, reason), members in groups.items():
        alone = len(members) == 1
        what = f"{part}.* ({len(members)} weights)" if part and not alone else _some([m.name for m in members])
        why = reason or (members[0].detail if alone else "")
        lines.append(f"{what}{': ' if why else ''}{why}")
    return lines


def _shares(groups: Mapping[str, list[str]], lines: int) -> dict[str, int]:
    """How many of `lines` the groups of each row may take: the longest rows give way."""
    shares = {name: len(each) for name, each in groups.items()}
    while sum(shares.values()) > lines:
        shares[max(shares, key=shares.__getitem__)] -= 1
    return shares


def _some(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{len(names)} weights, {names[0]} and others"
