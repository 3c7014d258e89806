"""The scans, labels and split of a supervised PyMIC config as a raw dataset of nnU-Net v2, to compare with it.

nnU-Net's format: a folder ``DatasetNNN_NAME`` with ``imagesTr/CASE_0000.nii.gz`` (a number for each channel),
``labelsTr/CASE.nii.gz``, ``imagesTs``, ``dataset.json`` and ``splits_final.json``, one fold whose validation cases are
those of the config. Files that are .nii.gz already are linked where the file system can, and else copied.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from tqdm import tqdm

from pymic_vf.data.scan_list import check_files, read_table
from pymic_vf.errors import ConfigError, UserError
from pymic_vf.host.settings.config_keys import BY_NAME
from pymic_vf.keys import Key, Section, path, whole

log = logging.getLogger(__name__)

ENDING = ".nii.gz"
NAME = re.compile(r"Dataset\d{3}_\w+")  # what nnU-Net looks for
SHOWN = 20  # mistakes of cases in a message
TOLERANCE = {"spacing": 1e-3, "origin": 1e-2, "direction": 1e-3}  # in mm, the last in no unit
CLASS_NUM = Key("class_num", whole(2), "the classes, background included", required=True)


@dataclass(frozen=True)
class Case:
    """One scan: its name in nnU-Net's files, a file for each channel and, but for some of a test, its label."""

    name: str
    images: tuple[Path, ...]
    label: Path | None


def export_nnunet(
    config: Mapping[str, Mapping[str, Any]],
    out: Path,
    channel_names: Sequence[str] = (),
    class_names: Sequence[str] = (),
) -> dict[str, list[Case]]:
    """Write the scans of a supervised config in nnU-Net's format; all is checked before anything is written.

    Args:
        config: as PyMIC parses it.
        out: the new folder, such as ``nnUNet_raw/Dataset001_Organs``.
        channel_names: by default ``channel_0`` and so on. nnU-Net normalises a channel named ``CT`` by the intensities
            of all scans and others by their own.
        class_names: of the labels from 1; by default ``label_1`` and so on.

    Returns:
        the cases of ``train``, ``valid`` and ``test``; the last two empty where the config has no csv of them.

    Raises:
        UserError: `out` has a name that nnU-Net does not find, or is not empty.
        ConfigError: with every mistake of the config, its csv files, images and labels.
    """
    _check_out(out)
    mistakes: list[str] = []
    dataset = Section(config.get("dataset", {}), "dataset", mistakes)
    classes = Section(config.get("network", {}), "network", mistakes).read_key(CLASS_NUM)
    channels = dataset.read_key(BY_NAME["modal_num"])
    _check_names("--channel-names", channel_names, channels, mistakes)
    _check_names("--class-names", class_names, classes and classes - 1, mistakes)
    cases = {stage: _cases(dataset, stage, channels) for stage in ("train", "valid", "test")}
    _check_case_names(cases, mistakes)
    if not mistakes:
        mistakes = _check_cases(cases, classes)
    if mistakes:
        raise ConfigError(mistakes)
    description = {
        "channel_names": dict(enumerate(channel_names or [f"channel_{number}" for number in range(channels)])),
        "labels": {
            "background": 0,
            **{name: value for value, name in enumerate(class_names or _default_names(classes), start=1)},
        },
        "numTraining": len(cases["train"]) + len(cases["valid"]),
        "file_ending": ENDING,
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=out.parent, prefix=".incomplete-"))
    try:
        _write(temporary, cases, description)
        if out.exists():
            out.rmdir()  # empty, see above
        temporary.chmod(0o755)
        temporary.rename(out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return cases


def _check_out(out: Path) -> None:
    if not NAME.fullmatch(out.name):
        raise UserError(f"the folder must be named Dataset, three digits, _ and a name, or nnU-Net finds it not: {out}")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"the folder must be new or empty: {out}")


def _default_names(classes: int) -> list[str]:
    return [f"label_{value}" for value in range(1, classes)]


def _check_names(option: str, names: Sequence[str], count: int | None, mistakes: list[str]) -> None:
    if names and count is not None and len(names) != count:
        mistakes.append(f"{option} must be {count} names, got {len(names)}: {' '.join(names)}")
    if len(set(names)) < len(names) or "background" in names:
        mistakes.append(f"{option} must be different names, none of them background, got {' '.join(names)}")


def _cases(dataset: Section, stage: str, channels: int) -> list[Case]:
    """The cases of a csv, in its order; what is wrong with it is noted."""
    needed = stage == "train"
    csv = dataset.read_key(Key(f"{stage}_csv", path("a csv file"), "the list of images and labels", required=needed))
    root_key = f"{stage}_dir" if f"{stage}_dir" in dataset else "train_dir"
    root = dataset.read_key(Key(root_key, path("a folder"), "the folder of the images", required=needed))
    table = None if csv is None or root is None else read_table(Path(csv), dataset.mistakes)
    if table is None:
        return []
    columns = list(table.columns[:channels])
    label = dataset.get(f"{stage}_label_key", "label")
    has_label = label in table.columns
    if len(table.columns) < channels or (stage != "test" and not has_label):
        dataset.mistakes.append(
            f"{csv}: needs {channels} columns of images and one named {label!r}; its columns are {list(table.columns)}"
        )
        return []
    files = table[columns + [label] * has_label]
    before = len(dataset.mistakes)
    check_files(Path(csv), Path(root), files, dataset.mistakes)
    if len(dataset.mistakes) > before:
        return []
    folder = Path(root)
    return [
        Case(
            _case_name(row[0]), tuple(folder / name for name in row[:channels]), folder / row[-1] if has_label else None
        )
        for row in files.itertuples(index=False, name=None)
    ]


def _case_name(image: str) -> str:
    """The image's name without its suffixes, folders joined by _."""
    name = os.path.normpath(image).replace(os.sep, "_")
    return re.sub(r"(\.nii)?\.\w+$", "", name)


def _check_case_names(cases: Mapping[str, list[Case]], mistakes: list[str]) -> None:
    stages: dict[str, str] = {}
    for stage, several in cases.items():
        for case in several:
            if case.name in stages:
                where = stage if stages[case.name] == stage else f"{stages[case.name]} and {stage}"
                mistakes.append(f"two images would be the case {case.name} ({where}): one scan must be in one set once")
            stages[case.name] = stage


def _check_cases(cases: Mapping[str, list[Case]], classes: int) -> list[str]:
    """What is wrong with images and labels."""
    mistakes = []
    for case in tqdm([case for several in cases.values() for case in several], desc="checking", disable=None):
        mistakes += _mistakes_of(case, classes)
    more = len(mistakes) - SHOWN
    return mistakes[:SHOWN] + ([f"... and {more} more"] if more > 0 else [])


def _mistakes_of(case: Case, classes: int) -> list[str]:
    headers = {}
    for file in (*case.images, *([case.label] if case.label else [])):
        try:
            headers[file] = _header(file)
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1]
            return [f"{file}: cannot be read as an image ({reason}); nnU-Net takes what SimpleITK reads"]
    first, *others = headers.items()
    mistakes = [f"{first[0]}: must have three axes, has size {first[1]['size']}"] if len(first[1]["size"]) != 3 else []
    for file, header in others:
        for what, value in header.items():
            wanted, tolerance = first[1][what], TOLERANCE.get(what, 0)
            if len(value) != len(wanted) or not np.allclose(value, wanted, rtol=0, atol=tolerance):
                mistakes.append(f"{file}: {what} must be that of {first[0].name}, {wanted}, is {value}")
    if case.label is not None and not mistakes:
        values = np.unique(sitk.GetArrayFromImage(sitk.ReadImage(str(case.label))))
        if strange := [value for value in values.tolist() if value not in range(classes)]:
            mistakes.append(
                f"{case.label}: labels must be whole numbers from 0 to class_num - 1 = {classes - 1}, has {strange[:5]}"
            )
    return mistakes


def _header(file: Path) -> dict[str, tuple[float, ...]]:
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(file))
    reader.ReadImageInformation()
    return {
        "size": reader.GetSize(),
        "spacing": reader.GetSpacing(),
        "origin": reader.GetOrigin(),
        "direction": reader.GetDirection(),
    }


def _write(out: Path, cases: Mapping[str, list[Case]], description: Mapping[str, Any]) -> None:
    labelled = cases["train"] + cases["valid"]
    for folder in ("imagesTr", "labelsTr", "imagesTs"):
        (out / folder).mkdir()
    for case in tqdm(labelled + cases["test"], desc="writing", disable=None):
        is_test = case in cases["test"]
        for channel, image in enumerate(case.images):
            _link(image, out / ("imagesTs" if is_test else "imagesTr") / f"{case.name}_{channel:04d}{ENDING}")
        if not is_test:
            _link(case.label, out / "labelsTr" / f"{case.name}{ENDING}")
    _write_json(out / "dataset.json", description)
    if cases["valid"]:
        split = {"train": [case.name for case in cases["train"]], "val": [case.name for case in cases["valid"]]}
        _write_json(out / "splits_final.json", [split])
    rows = [f"{case.label.resolve()},{case.name}{ENDING}" for case in cases["test"] if case.label is not None]
    if rows:
        (out / "evaluation.csv").write_text("\n".join(["label,segmentation", *rows]) + "\n")


def _link(source: Path, target: Path) -> None:
    """The same file under another name where it is .nii.gz already, or a conversion."""
    if not source.name.endswith(ENDING):
        sitk.WriteImage(sitk.ReadImage(str(source)), str(target), useCompression=True)
        return
    try:
        os.link(source.resolve(), target)
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, target)


def _write_json(file: Path, content: Any) -> None:
    file.write_text(json.dumps(content, indent=2) + "\n")
