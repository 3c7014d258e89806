"""The scans of a config, looked at before days of running: what their headers say and what a few of them hold."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pymic_vf.data.scan import UnusableScanError, read_scan
from pymic_vf.data.scan_header import ScanHeader
from pymic_vf.data.scan_list import read_table
from pymic_vf.data.scan_survey import (
    LOWEST_OF_CT,
    Entry,
    Headers,
    VolumeFacts,
    air_of_crops,
    read_headers,
    read_volumes,
    spread,
)
from pymic_vf.data.volume_transform import VolumeTransform, extremes
from pymic_vf.host.settings.checks import PretrainingPlan
from pymic_vf.host.settings.dataset_checks import make_transform
from pymic_vf.host.settings.transform_keys import TRANSFORM_KEYS
from pymic_vf.host.survey.findings import FAIL, PASS, WARN, Findings

SHOWN = 3
MOST_BYTES = 2**32  # of a volume that is read for its voxels
SPACING_RATIO = 3  # between scans, from which a resampling is worth a thought
MUCH_AIR, AIR_SHARE = 0.9, 0.1  # crops with more air than the first are named where there are more than the second
LABEL_TRANSFORMS = ("LabelConvert", "LabelSelect", "LabelConvertNonzero", "ReduceLabelDim")
RESIZING = ("Rescale", "Resample", "Pad", "RandomRescale", "CropWithBoundingBox", "CropWithForeground", "CenterCrop",
            "CropHumanRegion", "RandomResizedCrop")  # fmt: skip
Config = Mapping[str, Mapping[str, Any]]


class DataCheck:
    """Looks at the scans of a config and says what it finds.

    Args:
        config: PyMIC's parsed config, whose settings are right.
        plan: of a pretraining; None for a supervised training.
        findings: where the lines go.
        jobs: threads.
    """

    def __init__(self, config: Config, plan: PretrainingPlan | None, findings: Findings, jobs: int) -> None:
        self.config, self.plan, self.findings, self.jobs = config, plan, findings, jobs
        self.headers: list[Headers] = []
        self.volumes: list[VolumeFacts] = []
        self.count = 0

    def run(self) -> None:
        """All of it, for the scans to train on and those to validate on or test."""
        for stage in ("train", "valid", "test"):
            entries = self._entries(stage)
            if not entries:
                continue
            headers = read_headers(entries, self.jobs)
            self._headers_lines(stage, entries, headers)
            volumes = self._volumes(stage, [each.entry for each in headers if _is_readable(each)])
            self._volume_lines(stage, volumes)
            if stage == "train":
                self.headers, self.volumes, self.count = headers, volumes, len(entries)

    # The lists

    def _entries(self, stage: str) -> list[Entry]:
        if self.plan is not None:
            scans = {"train": self.plan.train_scans, "valid": self.plan.valid_scans}.get(stage)
            return [] if scans is None else [Entry(tuple(scans.files(index))) for index in range(len(scans))]
        dataset = self.config["dataset"]
        csv, root = dataset.get(f"{stage}_csv"), Path(dataset.get(f"{stage}_dir") or dataset.get("train_dir") or ".")
        if csv is None or (table := read_table(Path(csv), [])) is None:
            return []
        images = list(table.columns[: dataset.get("modal_num", 1)])
        label = dataset.get(f"{stage}_label_key", "label")
        has_label = stage != "test" and label in table.columns
        rows = table[[*images, *([label] if has_label else [])]].dropna().itertuples(index=False)
        return [
            Entry(tuple(root / name for name in row[: len(images)]), root / row[-1] if has_label else None)
            for row in rows
        ]

    # Headers

    def _headers_lines(self, stage: str, entries: Sequence[Entry], headers: Sequence[Headers]) -> None:
        bad = [each.reason for each in headers if each.reason]
        good = [each for each in headers if each.image is not None]
        some = "" if len(headers) == len(entries) else f" (a random sample of {len(entries)})"
        self._line(
            FAIL if bad and self._too_many(len(bad), len(headers)) else WARN if bad else PASS,
            f"{stage}: {len(headers)} headers{some} read, {len(bad)} of them cannot be used", bad,
        )  # fmt: skip
        if not good:
            return
        self._sizes_line(stage, good)
        self._spacings_line(stage, good)
        kinds = statistics.multimode(each.image.orientation for each in good)
        others = [each for each in good if each.image.orientation != kinds[0]]
        found = sorted({each.image.orientation for each in good})
        self._line(
            WARN if others else PASS,
            f"{stage}: orientations {', '.join(found)}{'; the axes of arrays mean different things' * bool(others)}",
            [f"{each.entry.images[0]} is {each.image.orientation}" for each in others],
        )  # fmt: skip
        self._channels_line(stage, good)
        self._labels_lines(stage, [each for each in good if each.label is not None])

    def _too_many(self, bad: int, count: int) -> bool:
        return bad > (0 if self.plan is None else self.plan.dataset["max_bad_fraction"]) * count

    def _sizes_line(self, stage: str, good: Sequence[Headers]) -> None:
        least, median, most = (
            [int(side) for side in sides] for sides in spread(each.image.size for each in good)
        )  # fmt: skip
        crop, padded, key = self._crop(stage)
        small = [] if crop is None else [each for each in good if _is_smaller(each.image, crop)]
        text = f"{stage}: sizes from {least} to {most}, median {median} voxels"
        if small and not self._resizes(stage):
            ends = "padded by mirroring" if padded else "PyMIC's RandomCrop ends the run there: Pad before it"
            text += f"; {len(small)} are smaller than {key} = {list(crop)}, {ends}"
            self._line(
                WARN if padded else FAIL, text, [f"{each.entry.images[0]}: {list(each.image.size)}" for each in small]
            )
        else:
            self._line(PASS, text)

    def _crop(self, stage: str) -> tuple[Sequence[int] | None, bool, str]:
        """The size of crops, whether a smaller scan is made larger, and the key."""
        if self.plan is not None:
            return self.plan.crop_size, True, "crop_size"
        names = self._transforms(stage)
        size = self.config["dataset"].get("randomcrop_output_size")
        if "RandomCrop" not in names or not isinstance(size, (list, tuple)) or len(size) != 3:
            return None, True, ""
        padded = "Pad" in names[: names.index("RandomCrop")]
        return (None if padded else [side or 1 for side in size]), padded, "RandomCrop_output_size"

    def _transforms(self, stage: str) -> list[str]:
        if self.plan is not None:
            return list(self.plan.dataset["volume_transform"])
        names = self.config["dataset"].get(f"{stage}_transform")
        return list(names) if isinstance(names, (list, tuple)) else []

    def _resizes(self, stage: str) -> bool:
        return any(name in RESIZING or name not in TRANSFORM_KEYS for name in self._transforms(stage))

    def _spacings_line(self, stage: str, good: Sequence[Headers]) -> None:
        known = [each.image.spacing for each in good if each.image.spacing is not None]
        if not known:
            self._line(WARN, f"{stage}: no spacings in these files")
            return
        least, median, most = spread(known)
        differ = any(high > SPACING_RATIO * low for low, high in zip(least, most, strict=True))
        differ = differ and "Resample" not in self._transforms(stage)
        shown = [[round(value, 3) for value in values] for values in (least, most, median)]
        text = f"{stage}: spacings from {shown[0]} to {shown[1]}, median {shown[2]} mm"
        self._line(WARN if differ else PASS, text + ("; Resample would make them alike" if differ else ""))

    def _channels_line(self, stage: str, good: Sequence[Headers]) -> None:
        wanted = self.config["network"].get("in_chns") or self.config["dataset"].get("modal_num", 1)
        wrong = [each for each in good if each.image.channels != wanted]
        if wrong:
            self._line(
                FAIL if self._too_many(len(wrong), len(good)) else WARN,
                f"{stage}: {len(wrong)} scans have not [network] in_chns = {wanted} channels",
                [f"{each.entry.images[0]}: {each.image.channels}" for each in wrong],
            )

    def _labels_lines(self, stage: str, labelled: Sequence[Headers]) -> None:
        if not labelled:
            return
        sizes = [each for each in labelled if each.label.size != each.image.size]
        self._line(
            FAIL if sizes else PASS,
            f"{stage}: {len(sizes)} of {len(labelled)} labels differ from their image in size",
            [f"{each.entry.label}: {list(each.label.size)}, the image {list(each.image.size)}" for each in sizes],
        )
        places = [each for each in labelled if each not in sizes and not each.image.same_place(each.label)]
        if places:
            self._line(
                WARN,
                f"{stage}: {len(places)} labels lie elsewhere than their image by spacing, origin or direction; PyMIC "
                "compares sizes alone",
                [str(each.entry.label) for each in places],
            )

    # Voxels

    def _volumes(self, stage: str, entries: Sequence[Entry]) -> list[VolumeFacts]:
        dataset = self.config["dataset"]
        if self.plan is not None:
            smallest = [-(-side // 4) for side in self.plan.crop_size]
            transform = VolumeTransform([make_transform(name, dataset) for name in self._transforms(stage)],
                                        self.config["network"]["in_chns"], smallest)  # fmt: skip
            return read_volumes(entries, lambda entry: self._of_pretraining(entry, transform), self.jobs)
        converters = [make_transform(name, dataset) for name in self._transforms(stage) if name in LABEL_TRANSFORMS]
        return read_volumes(entries, lambda entry: _of_supervised(entry, converters), self.jobs)

    def _of_pretraining(self, entry: Entry, transform: VolumeTransform) -> VolumeFacts:
        start = time.monotonic()
        try:
            voxels = transform.decode(entry.images)
            ends = extremes(voxels)
            transform.volume(entry.images, voxels, ends)
        except UnusableScanError as error:
            return VolumeFacts(entry, reason=str(error))
        seconds = time.monotonic() - start
        air = air_of_crops(voxels, self.plan.crop_size)
        return VolumeFacts(entry, float(ends.min()), float(ends.max()), seconds, air=air, extra=voxels.nbytes)

    def _volume_lines(self, stage: str, volumes: Sequence[VolumeFacts]) -> None:
        bad, good = [each for each in volumes if each.reason], [each for each in volumes if not each.reason]
        self._line(
            FAIL if bad and self._too_many(len(bad), len(volumes)) else WARN if bad else PASS,
            f"{stage}: {len(volumes)} scans read whole, {len(bad)} of them cannot be used",
            [each.reason for each in bad],
        )
        if not good:
            return
        self._intensities_line(stage, good)
        self._air_line(stage, [share for each in good for share in each.air])
        if stage != "test" and any(each.classes for each in good):
            self._classes_lines(stage, good)

    def _intensities_line(self, stage: str, good: Sequence[VolumeFacts]) -> None:
        low, high = min(each.lowest for each in good), max(each.highest for each in good)
        text = f"{stage}: intensities from {low:g} to {high:g}"
        outside = [each for each in good if self._is_outside(stage, each)]
        others = [each for each in good if each.lowest > LOWEST_OF_CT]
        if outside:
            text += f"; {len(outside)} scans lie wholly outside of the window of NormalizeWithMinMax"
            self._line(WARN, text, [_range(each) for each in outside])
        elif 0 < len(others) < len(good):
            text += f"; some reach {LOWEST_OF_CT} as HU do, {len(others)} do not"
            self._line(WARN, text, [_range(each) for each in others])
        else:
            self._line(PASS, text)

    def _is_outside(self, stage: str, facts: VolumeFacts) -> bool:
        dataset = self.config["dataset"]
        if "NormalizeWithMinMax" not in self._transforms(stage)[:1]:
            return False
        lower, upper = (dataset.get(f"normalizewithminmax_threshold_{end}") for end in ("lower", "upper"))
        lower, upper = (limit[0] if isinstance(limit, (list, tuple)) and limit else None for limit in (lower, upper))
        return (lower is not None and facts.highest <= lower) or (upper is not None and facts.lowest >= upper)

    def _air_line(self, stage: str, shares: Sequence[float]) -> None:
        if not shares:
            return
        share = float(np.mean(np.array(shares) > MUCH_AIR))
        text = f"{stage}: {share:.1%} of {len(shares)} drawn crops are over {MUCH_AIR:.0%} air"
        hint = "; [dataset] crop_min_foreground draws others" if share > AIR_SHARE else ""
        self._line(WARN if share > AIR_SHARE else PASS, text + hint)

    def _classes_lines(self, stage: str, good: Sequence[VolumeFacts]) -> None:
        count = self.config["network"]["class_num"]
        beyond = [each for each in good if any(value < 0 or value >= count or value % 1 for value in each.classes)]
        seen = {int(value) for each in good for value in each.classes}
        self._line(
            FAIL if beyond else PASS,
            f"{stage}: labels of {len(good)} scans hold {sorted(seen)}"
            + (f", and [network] class_num = {count} has 0 to {count - 1}" if beyond else ""),
            [f"{each.entry.label}: {[_plain(value) for value in each.classes]}" for each in beyond],
        )
        if missing := sorted(set(range(count)) - seen):
            self._line(WARN, f"{stage}: no label that was read has the classes {missing}")
        if empty := [str(each.entry.label) for each in good if set(each.classes) == {0}]:
            self._line(WARN, f"{stage}: {len(empty)} labels that were read are background alone", empty)

    def _line(self, level: str, text: str, examples: Sequence[str] = ()) -> None:
        shown = "".join(f"\n        {example}" for example in examples[:SHOWN])
        more = f"\n        and {len(examples) - SHOWN} more" if len(examples) > SHOWN else ""
        self.findings.add(level, text + shown + more)


def _of_supervised(entry: Entry, converters: Sequence[Any]) -> VolumeFacts:
    start = time.monotonic()
    try:
        image = read_scan(entry.images)
        classes: tuple[float, ...] = ()
        if entry.label is not None:
            sample = {"label": read_scan([entry.label]).voxels}
            for converter in converters:
                sample = converter(sample)
            classes = tuple(np.unique(sample["label"])[:1000].tolist())
    except UnusableScanError as error:
        return VolumeFacts(entry, reason=str(error))
    voxels = image.voxels
    return VolumeFacts(entry, float(voxels.min()), float(voxels.max()), time.monotonic() - start, classes,
                       extra=voxels.nbytes)  # fmt: skip


def _is_readable(each: Headers) -> bool:
    return each.image is not None and each.image.bytes <= MOST_BYTES


def _is_smaller(header: ScanHeader, crop: Sequence[int]) -> bool:
    return any(side < least for side, least in zip(header.size, crop, strict=True))


def _range(facts: VolumeFacts) -> str:
    return f"{facts.entry.images[0]}: {facts.lowest:g} to {facts.highest:g}"


def _plain(value: float) -> float | int:
    return int(value) if value == int(value) else value
