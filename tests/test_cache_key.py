from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
from pymic import TaskType
from pymic.transform.trans_dict import TransformDict

from pymic_vf.data.cache_key import cache_key, describe, scan_state

DATASET = {
    "task": TaskType.SEGMENTATION,
    "normalizewithminmax_channels": [0],
    "normalizewithminmax_threshold_lower": [-200],
    "normalizewithminmax_threshold_upper": [300],
    "rescale_output_size": [8, 8, 8],
}


def described(*names: str, **changes) -> str:
    return describe([TransformDict[name]({**DATASET, **changes}) for name in names])


def test_parameters_of_the_transforms_used_count():
    base = described("NormalizeWithMinMax")
    assert described("NormalizeWithMinMax", normalizewithminmax_threshold_upper=[301]) != base
    assert described("NormalizeWithMinMax", rescale_output_size=[9, 9, 9]) == base  # another transform's
    assert described("Rescale") != base
    assert described("Rescale", "NormalizeWithMinMax") != described("NormalizeWithMinMax", "Rescale")
    assert describe([]) == ""


def test_description_is_the_same_in_every_process():
    # hashes of text, and so the order of a set, differ between processes
    script = """
from pymic_vf.data.cache_key import describe
class Holder:
    def __init__(self):
        self.names, self.other = {"a", "b", "c", "d"}, object()
print(describe([Holder()]))
"""
    seen = {
        subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": seed}
        ).stdout
        for seed in "12"
    }
    assert len(seen) == 1 and "Holder" in seen.pop()


def test_arrays_and_objects_are_described_by_what_they_hold():
    class Holder:
        def __init__(self, value: object) -> None:
            self.value = value

    texts = [describe([Holder(v)]) for v in (1, 2, np.arange(2), np.arange(2.0), Holder(1), Holder(2), {"a": 1}, int)]
    assert len(set(texts)) == len(texts)
    assert describe([Holder(Holder(3))]) == describe([Holder(Holder(3))])
    assert "0x" not in describe([Holder(object())])


def test_key_is_made_of_path_size_time_and_transforms(tmp_path: Path):
    file = tmp_path / "a.nii.gz"
    file.write_bytes(b"1234")
    state = scan_state([file])
    assert state[0][0] == 4
    keys = {
        cache_key([file], state, ""),
        cache_key([tmp_path / "b.nii.gz"], state, ""),
        cache_key([file], ((5, state[0][1]),), ""),
        cache_key([file], ((4, state[0][1] + 1),), ""),
        cache_key([file], state, "x"),
        cache_key([file, file], state * 2, ""),
    }
    assert len(keys) == 6 and all(len(key) == 40 for key in keys)
