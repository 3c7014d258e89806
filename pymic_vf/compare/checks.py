"""What can be wrong with a comparison, found before any run: its configs, its lists, and test scans in the lists."""

from __future__ import annotations

import hashlib
import os
import tempfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import pandas as pd
from pymic.util.parse_config import synchronize_config

from pymic_vf.cli import parse_file
from pymic_vf.compare.config_text import ConfigText, changed, value_of, write_text
from pymic_vf.compare.plan import FINETUNING, PRETRAINING, Run
from pymic_vf.data.scan_list import check_files, read_table
from pymic_vf.errors import ConfigError, UserError
from pymic_vf.host.settings.checks import is_supervised
from pymic_vf.host.settings.commands import TEST, TRAIN, find_mistakes

GZIP_TRAILER = 8  # bytes at the end of a .gz: checksum and size of what it holds
BLOCK = 2**20


def check_runs(runs: Sequence[Run]) -> None:
    """Check the configs and lists of all runs.

    Raises:
        ConfigError: with every mistake found.
    """
    mistakes: list[str] = []
    # runs that differ in their seed alone have the same mistakes
    for run in {(run.kind, run.arm, run.labels): run for run in runs}.values():
        where = f"arm {run.arm}, {run.kind}"
        try:
            _check_config(run)
        except ConfigError as error:
            mistakes += [f"{where}: {mistake}" for mistake in error.mistakes]
        except UserError as error:
            mistakes.append(f"{where}: {error}")
    _raise(mistakes + _leaks(runs))


def write_stand_in(run: Run, folder: Path) -> Path:
    """Write a run's config as it can be tried before the comparison begins, and return it: its list of labelled scans
    lies in `folder`, and the weights that are still to be made are left out."""
    text = run.config
    if run.rows is not None:
        run.rows.to_csv(folder / "train.csv", index=False)
        text = changed(text, {("dataset", "train_csv"): str(folder / "train.csv")})
    if run.pretraining is not None:
        text = changed(text, {("training", "ckpt_init_name"): None, ("training", "ckpt_init_mode"): None})
    write_text(text, folder / run.cfg_name)
    return folder / run.cfg_name


def _check_config(run: Run) -> None:
    stages = [TRAIN] if run.kind == PRETRAINING else [TRAIN, TEST]
    with tempfile.TemporaryDirectory() as folder:
        parsed = parse_file(write_stand_in(run, Path(folder)))
        config, mistakes = find_mistakes(parsed, stages, synchronize_config, is_next=False)
    if run.kind == PRETRAINING:
        if config.get("dataset", {}).get("supervise_type") != "self_sup":
            mistakes.append("[dataset] supervise_type must be self_sup in the config of a pretraining")
        _raise(mistakes)
        return
    if not is_supervised(config):
        mistakes.append("[dataset] supervise_type must be fully_sup, or not there, in the config of a fine-tuning")
    truth = run.pairs[["ground_truth"]]
    root = Path(run.evaluation["evaluation"]["ground_truth_folder"])
    check_files(Path(value_of(run.config, "dataset", "test_csv")), root, truth, mistakes)
    _raise(mistakes)


def _raise(mistakes: list[str]) -> None:
    if mistakes:
        raise ConfigError(mistakes)


def _leaks(runs: Iterable[Run]) -> list[str]:
    """Test scans that a run has seen: by the file, and by its content."""
    runs = list({(run.kind, run.arm, run.labels): run for run in runs}.values())
    test = {file for run in runs if run.kind == FINETUNING for file in _files(run.config, "test")}
    contents = _by_quick_key(test)
    messages = {}
    for run in runs:
        for stage in ("train", "valid"):
            csv = value_of(run.config, "dataset", f"{stage}_csv")
            rows = run.rows if stage == "train" else None
            where = f"arm {run.arm}, {run.kind}: {csv if rows is None else 'its labelled scans'}"
            for file in _files(run.config, stage, rows):
                if file in test:
                    messages[where, file] = f"{where} has the test scan {file}"
                elif twin := _twin(file, contents):
                    messages[where, file] = f"{where} has {file}, whose content is that of the test scan {twin}"
    return list(messages.values())


def _files(config: ConfigText, stage: str, rows: pd.DataFrame | None = None) -> list[Path]:
    """The image files of one stage's list, each written in one way."""
    csv = value_of(config, "dataset", f"{stage}_csv")
    table = rows if rows is not None else read_table(Path(csv), []) if csv else None
    if table is None:
        return []
    root = Path(value_of(config, "dataset", f"{stage}_dir") or value_of(config, "dataset", "train_dir"))
    modalities = int(value_of(config, "dataset", "modal_num", "1"))
    names = table[["image"]] if modalities == 1 and "image" in table.columns else table.iloc[:, :modalities]
    return [(root / name).resolve() for row in names.dropna().to_numpy() for name in row]


def _by_quick_key(files: Iterable[Path]) -> dict[tuple[int, int], list[Path]]:
    by_key: dict[tuple[int, int], list[Path]] = {}
    for file in sorted(files):
        if file.is_file():
            by_key.setdefault(_quick_key(file), []).append(file)
    return by_key


def _twin(file: Path, contents: Mapping[tuple[int, int], Sequence[Path]]) -> Path | None:
    """The file of `contents` that holds the same; those of another quick key are not read."""
    if not file.is_file():
        return None
    return next((other for other in contents.get(_quick_key(file), ()) if _hash(file) == _hash(other)), None)


def _quick_key(file: Path) -> tuple[int, int]:
    """Equal for equal contents: of a .gz the checksum and size of what it holds, from its end, however well it was
    compressed; of others the size."""
    size = file.stat().st_size
    if file.suffix != ".gz" or size < GZIP_TRAILER:
        return 0, size
    with file.open("rb") as stream:
        stream.seek(-GZIP_TRAILER, os.SEEK_END)
        trailer = stream.read()
    return int.from_bytes(trailer[:4], "little"), int.from_bytes(trailer[4:], "little")


def _hash(file: Path) -> bytes:
    """A hash of what a file holds, decompressed."""
    digest = hashlib.sha256()
    inflate = zlib.decompressobj(zlib.MAX_WBITS | 16) if file.suffix == ".gz" else None
    with file.open("rb") as stream:
        while block := stream.read(BLOCK):
            digest.update(inflate.decompress(block) if inflate else block)
    return digest.digest()
