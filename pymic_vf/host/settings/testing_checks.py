"""What is wrong with [testing] and what it needs: where the weights are, where the segmentations go."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pymic.util.post_process import PostProcessDict

from pymic_vf.host.settings.config_keys import BY_NAME, TESTING_KEYS
from pymic_vf.host.settings.training_checks import check_folder
from pymic_vf.keys import Section


def check_testing(testing: Section, training: Section, is_next: bool) -> None:
    """Note what a test would fail on.

    Args:
        testing: the section.
        training: the section [training], which says where checkpoints are.
        is_next: whether the test comes now: then its checkpoint has to be there. Else a training makes it first.
    """
    name = testing.get("post_process")
    is_other = isinstance(name, str) and name in PostProcessDict  # one that somebody registered
    values = testing.read(key for key in TESTING_KEYS if not (key.name == "post_process" and is_other))
    _check_checkpoint(testing, training, values, is_next)
    for one, other in (("label_source", "label_target"), ("filename_replace_source", "filename_replace_target")):
        if (one in testing) != (other in testing):
            there, missing = (one, other) if one in testing else (other, one)
            testing.wrong(there, f"needs {missing}, or PyMIC ignores it")
    source, target = values["label_source"], values["label_target"]
    if source and target and len(source) != len(target):
        testing.wrong("label_target", f"must be as long as label_source = {list(source)}")
    if target and max(target) > 255:
        testing.wrong("label_target", "must be of at most 255: segmentations are bytes")
    check_folder(testing, "output_dir")


def _check_checkpoint(testing: Section, training: Section, values: Mapping[str, Any], is_next: bool) -> None:
    mode, name = values["ckpt_mode"], testing.get("ckpt_name")
    if mode in (2, 3) and name is None:
        testing.missing("ckpt_name", f"the checkpoint of ckpt_mode = {mode}")
    elif mode == 2 and isinstance(name, (list, tuple)):
        testing.wrong("ckpt_name", "must be one name for ckpt_mode = 2, and a list for 3")
    elif mode == 3 and isinstance(name, str):
        testing.wrong("ckpt_name", "must be a list of names for ckpt_mode = 3")
    elif mode in (2, 3) and is_next:
        for file in [name] if isinstance(name, str) else name:
            if isinstance(file, str) and not _is_file(file):
                testing.mistakes.append(f"[testing] ckpt_name = {file}: there is no such file")
    elif mode in (0, 1):
        folder = training.read_key(BY_NAME["ckpt_dir"])
        prefix = training.get("ckpt_prefix")
        if folder is not None and prefix is None and folder.endswith("/"):
            training.wrong("ckpt_dir", "must not end with / for a test: PyMIC looks for names that begin with nothing")
        elif folder is not None and is_next and isinstance(prefix or "", str):
            _check_note(testing, folder, prefix or folder.split("/")[-1], mode)


def _check_note(testing: Section, folder: str, prefix: str, mode: int) -> None:
    """The small file that names the last or best checkpoint."""
    note = f"{folder}/{prefix}_{'best' if mode else 'latest'}.txt"
    if not _is_file(note):
        only = "; _best exists only after a validation" if mode else ""
        testing.mistakes.append(
            f"no {note}: with [testing] ckpt_mode = {mode} (0 latest, 1 best) that file names the checkpoint to use, "
            f"and training has not written it{only}"
        )


def _is_file(name: str) -> bool:
    try:
        return Path(name).is_file()
    except (OSError, ValueError):
        return False
