"""compare.cfg: which arms are compared, with how many labels and which seeds."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pymic.util.parse_config import parse_value_from_string

from pymic_vf.compare.config_text import read_text
from pymic_vf.errors import ConfigError, did_you_mean
from pymic_vf.host.settings.config_keys import LARGEST_SEED
from pymic_vf.keys import Key, Kind, Section, flag, list_of, names, one_of, path, whole

ALL = "all"
METRICS = ("dice", "assd", "hd95", "iou")
SECTION, SLURM, ARM = "compare", "slurm", "arm:"
SECTIONS = ("dataset", "self_supervised_learning", "network", "training", "testing")  # of PyMIC's configs
OVERRIDE = re.compile(r"(?:(pretrain|finetune)\.)?(\w+)\.(\w+)")


def _labels() -> Kind:
    def fits(value: Any) -> bool:
        return value == ALL or (isinstance(value, int) and not isinstance(value, bool) and value >= 1)

    return Kind("a number of scans or all", fits, "numbers of scans, or all")


def _seed_or_csv() -> Kind:
    seed = whole(0, LARGEST_SEED)
    return Kind(f"csv or {seed.rule}", lambda value: value == "csv" or seed.fits(value))


COMPARE_KEYS = (
    Key("out", path("a folder"), "where the runs and the report go", required=True),
    Key("finetune", path("a config"), "the fine-tuning and its test, for the arms that name no other one"),
    Key("baseline", path("an arm"), "what the other arms are compared with; by default the first arm without "
        "pretraining"),
    Key("seeds", list_of(whole(0, LARGEST_SEED)), "a fine-tuning for each: its initial weights and crops follow from "
        "it", (1, 2, 3)),
    Key("pretrain_seeds", list_of(whole(0, LARGEST_SEED)), "a pretraining for each, shared by the fine-tunings in "
        "turn; by default the seeds: a pretraining of its own for each fine-tuning seed"),
    Key("labels", list_of(_labels()), "numbers of labelled scans, such as [2, 4, all]", (ALL,)),
    Key("label_order", _seed_or_csv(), "which labelled scans: the first ones of an order that this seed draws, or of "
        "the csv; the same for every arm and seed, a small number's among a larger one's", 1),
    Key("pretrained_checkpoint", one_of("last", "best"), "of a pretraining; best needs its valid_csv", "last"),
    Key("metrics", names(), f"of {', '.join(METRICS)}, as pymic_eval_seg computes them", ("dice", "assd")),
    Key("class_names", names(), "of the labels 1, 2, ...; by default the numbers", ()),
    Key("absent", one_of("scored", "left_out"), "a class that the truth of a test scan lacks: scored as pymic_eval_seg "
        "does it, or left out, for scans in which not everything was drawn", "scored"),
    Key("keep_checkpoints", flag(), "False: a run's checkpoints go as soon as no run needs them; a "
        "pretraining that a later one needs is repeated", True),
)  # fmt: skip
ARM_KEYS = (
    Key("pretrain", path("a config"), "the pretraining; without it and without weights the arm starts from scratch"),
    Key("weights", path("a checkpoint"), "weights from elsewhere, instead of a pretraining"),
    Key("finetune", path("a config"), "instead of [compare] finetune"),
    Key("baseline", path("an arm"), "instead of [compare] baseline, such as another network from scratch"),
)
# of a job; the names are those of sbatch, as submitit has them
SLURM_KEYS = (
    Key("timeout_min", whole(1), "minutes; a run that takes longer is queued again and goes on", 1440),
    Key("cpus_per_task", whole(1), "cores", 4),
    Key("gpus_per_node", whole(0), "GPUs", 1),
    Key("mem_gb", whole(1), "memory in GB", 32),
    Key("array_parallelism", whole(1), "jobs of an array at once", 16),
    Key("partition", path("a partition"), "by default the cluster's"),
    Key("account", path("an account"), "by default the user's"),
    Key("qos", path("a quality of service"), "by default the account's"),
    Key("constraint", path("a feature"), "of the nodes"),
)
OF_SLURM_ALONE = ("array_parallelism", "partition", "account", "qos", "constraint")


@dataclass(frozen=True)
class Arm:
    """One way to get a segmentation.

    Args:
        name: as in ``[arm:NAME]``.
        finetune: its config.
        pretrain: the config of its pretraining; None without one.
        weights: a checkpoint from elsewhere; None without one.
        baseline: the arm that it is compared with; None for a baseline.
        overrides: values of its configs by (stage or "" for both, section, key); "" for a key that goes.
    """

    name: str
    finetune: Path
    pretrain: Path | None = None
    weights: Path | None = None
    baseline: str | None = None
    overrides: Mapping[tuple[str, str, str], str] = field(default_factory=dict)

    def changes(self, stage: str) -> dict[tuple[str, str], str | None]:
        """The overrides of pretrain or finetune by (section, key)."""
        mine = {key: text for key, text in self.overrides.items() if key[0] in ("", stage)}
        return {(section, key): text or None for (_stage, section, key), text in mine.items()}


@dataclass(frozen=True)
class Settings:
    """A checked compare.cfg: the values of [compare], of which the table `COMPARE_KEYS` tells, the arms, and submitit's
    parameters."""

    out: Path
    arms: tuple[Arm, ...]
    seeds: tuple[int, ...]
    pretrain_seeds: tuple[int, ...]
    labels: tuple[int | str, ...]
    label_order: int | str
    pretrained_checkpoint: str
    metrics: tuple[str, ...]
    class_names: tuple[str, ...]
    absent: str
    keep_checkpoints: bool
    slurm: Mapping[str, Any]

    def arm(self, name: str) -> Arm:
        return next(arm for arm in self.arms if arm.name == name)

    def pretrain_seed(self, seed: int) -> int:
        """The seed of the pretraining from which a fine-tuning of `seed` starts."""
        return self.pretrain_seeds[self.seeds.index(seed) % len(self.pretrain_seeds)]


def read_settings(cfg: Path) -> Settings:
    """Read and check a compare.cfg. Names of files in it are relative to the current folder, as in PyMIC's configs.

    Raises:
        UserError: no such file, or no config.
        ConfigError: with every mistake found.
    """
    text, mistakes = read_text(cfg), []
    if SECTION not in text:
        raise ConfigError([f"{cfg}: has no section [{SECTION}]; its sections are {list(text)}"])
    for name in text:
        if name not in (SECTION, SLURM) and not name.startswith(ARM):
            known = f"there are [{SECTION}], [{SLURM}] and an [{ARM}NAME] for each arm"
            mistakes.append(f"[{name}]: no such section; {known}")
    section = _section(text[SECTION], SECTION, mistakes)
    _note_unknown(section, COMPARE_KEYS)
    values = section.read(COMPARE_KEYS)
    slurm = _section(text.get(SLURM, {}), SLURM, mistakes)
    _note_unknown(slurm, SLURM_KEYS)
    parameters = {
        f"slurm_{key}" if key in OF_SLURM_ALONE else key: value
        for key, value in slurm.read(SLURM_KEYS).items()
        if value is not None
    }
    arms = [_read_arm(name, text[name], values, mistakes) for name in text if name.startswith(ARM)]
    if not arms:
        mistakes.append(f"there is no arm: each is a section [{ARM}NAME]")
    arms = _with_baselines(arms, values["baseline"], mistakes)
    for key in ("seeds", "pretrain_seeds", "labels"):
        if values[key] and len(set(values[key])) < len(values[key]):
            section.wrong(key, "must not have a value twice")
    for metric in values["metrics"]:
        if metric not in METRICS:
            section.wrong("metrics", f"must be of {', '.join(METRICS)}{did_you_mean(metric, METRICS)}")
    if mistakes:
        raise ConfigError(mistakes)
    del values["baseline"], values["finetune"]
    values["out"] = Path(values["out"])
    values["pretrain_seeds"] = values["pretrain_seeds"] or values["seeds"]
    return Settings(arms=tuple(arms), slurm=parameters, **values)


def _section(values: Mapping[str, str], name: str, mistakes: list[str]) -> Section:
    parsed = {key.lower(): parse_value_from_string(value) for key, value in values.items() if value}
    return Section(parsed, name, mistakes)


def _note_unknown(section: Section, keys: tuple[Key, ...]) -> None:
    known = {key.name.lower(): key.name for key in keys}
    for name in section.values:
        if name not in known:
            closest = did_you_mean(name, known.values())
            section.mistakes.append(f"[{section.name}] {name}: there is no such key{closest}")


def _read_arm(title: str, text: Mapping[str, str], compare: Mapping[str, Any], mistakes: list[str]) -> Arm:
    name = title.removeprefix(ARM)
    if not re.fullmatch(r"[\w.+-]+", name) or name.startswith("."):
        mistakes.append(f"[{title}]: an arm's name names a folder: letters, digits and . + - _, got {name!r}")
    section = _section({key: value for key, value in text.items() if "." not in key}, title, mistakes)
    _note_unknown(section, ARM_KEYS)
    values = section.read(ARM_KEYS)
    finetune = values["finetune"] or compare["finetune"]
    if finetune is None:
        section.missing("finetune", f"a config, here or in [{SECTION}]")
    if values["pretrain"] and values["weights"]:
        section.wrong("weights", "must not be there beside pretrain: one or the other")
    files = {}
    for key, value in (("pretrain", values["pretrain"]), ("weights", values["weights"]), ("finetune", finetune)):
        files[key] = None if value is None else Path(value)
        if files[key] and not files[key].is_file():
            mistakes.append(f"[{title}] {key} = {value}: there is no such file")
    overrides = {}
    for key, value in text.items():
        if "." not in key:
            continue
        parts = OVERRIDE.fullmatch(key)
        if parts is None or (parts[1] == "pretrain" and not values["pretrain"]):
            mistakes.append(
                f"[{title}] {key}: must be pretrain.SECTION.KEY (of an arm with pretrain), finetune.SECTION.KEY, or "
                "SECTION.KEY for both"
            )
            continue
        if parts[2] not in SECTIONS:
            closest = did_you_mean(parts[2], SECTIONS)
            mistakes.append(f"[{title}] {key}: there is no section {parts[2]}{closest}: {', '.join(SECTIONS)}")
        overrides[parts[1] or "", parts[2], parts[3]] = value
    return Arm(name, files["finetune"], files["pretrain"], files["weights"], values["baseline"], overrides)


def _with_baselines(arms: list[Arm], default: str | None, mistakes: list[str]) -> list[Arm]:
    """The arms, each with the one that it is compared with."""
    known = [arm.name for arm in arms]
    if default is None:
        default = next((arm.name for arm in arms if arm.pretrain is None and arm.weights is None), None)
    elif default not in known:
        mistakes.append(f"[{SECTION}] baseline: there is no arm {default}{did_you_mean(default, known)}")
    if default is None and arms:
        mistakes.append(f"[{SECTION}] baseline is missing: every arm is pretrained, so name one to compare with")
    baselines = {arm.baseline for arm in arms if arm.baseline} | {default}
    result = []
    for arm in arms:
        if arm.baseline and arm.baseline not in known:
            mistakes.append(f"[{ARM}{arm.name}] baseline: there is no arm {arm.baseline}")
        own = arm.baseline or (None if arm.name in baselines else default)
        result.append(Arm(**{**vars(arm), "baseline": None if own == arm.name else own}))
    return result
