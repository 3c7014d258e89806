"""Rescale the left-atrium scans once, for PyMIC's own VolumeFusion, which reads whole scans in every iteration:

    python rescale.py

writes data/left_atrium/rescaled/, with the interpolation of PyMIC's Rescale, so that the arms see the same voxels.
"""

from pathlib import Path

import numpy as np
import pandas as pd
import SimpleITK as sitk
from pymic.transform.rescale import Rescale

DATA = Path("data/left_atrium")

rescale = Rescale({"rescale_output_size": [32, 48, 64], "rescale_inverse": False, "task": "seg"})
(DATA / "rescaled").mkdir(exist_ok=True)
for name in pd.read_csv(DATA / "pretrain.csv")["image"]:
    scan = sitk.GetArrayFromImage(sitk.ReadImage(str(DATA / "volumes" / name)))
    small = rescale({"image": scan[None].astype(np.float32)})["image"][0]
    sitk.WriteImage(sitk.GetImageFromArray(small), str(DATA / "rescaled" / name))
