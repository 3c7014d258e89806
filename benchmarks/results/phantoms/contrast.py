"""How bright the aorta of each phantom is, and what each pretraining gained where it is brighter than 140 HU and where
not: `python contrast.py DATA scores.csv`, with DATA as `pymic_vf phantom DATA` makes it."""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd
import SimpleITK as sitk

AORTA, BRIGHT = 3, 140
PAIRS = (("pretrained", "scratch"), ("long", "scratch"), ("long_n75", "scratch_n75"), ("long_n300", "scratch_n300"),
         ("long_g300", "scratch_g300"), ("augmented_g300", "scratch_g300"), ("pretrained_g", "scratch_g"),
         ("long_g", "scratch_g"))  # fmt: skip


def aortas(data: Path, part: str) -> pd.Series:
    """Mean HU of the aorta by the name of the scan."""
    found = {}
    for row in pd.read_csv(data / f"{part}.csv").itertuples():
        image, label = (
            sitk.GetArrayFromImage(sitk.ReadImage(str(data / "volumes" / name))) for name in (row.image, row.label)
        )
        found[row.image] = image[label == AORTA].mean()
    return pd.Series(found)


if __name__ == "__main__":
    data, scores = Path(sys.argv[1]), pd.read_csv(sys.argv[2])
    for part in ("train", "test"):
        print(f"{part}: {', '.join(f'{hu:.0f}' for hu in aortas(data, part))} HU")
    is_bright = aortas(data, "test") > BRIGHT
    dice = 100 * scores[scores["metric"] == "dice"].pivot_table("value", "case", "arm")
    for arm, baseline in PAIRS:
        gain = dice[arm] - dice[baseline]
        print(f"{arm} - {baseline}: bright {gain[is_bright].mean():+.1f}, others {gain[~is_bright].mean():+.1f}")
