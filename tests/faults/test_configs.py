"""Damaged configs by the hundred, made from the table of keys: each is named before any work, or is harmless and runs.

A damage is a value that a key cannot have, a misspelt key, a key in another section or without a value. What the check
lets through is run with --long.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pymic.net_run.predict as predict
import pymic.net_run.train as train
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pymic.net_run.agent_seg import SegmentationAgent
from pymic.util.parse_config import parse_value_from_string, synchronize_config

import pymic_vf
from pymic_vf.cli import main, parse_file
from pymic_vf.errors import ConfigError, UserError
from pymic_vf.host.agents import pretraining_agent
from pymic_vf.host.execution import EXECUTION_KEYS
from pymic_vf.host.settings.commands import TEST, TRAIN, find_mistakes
from pymic_vf.host.settings.config_keys import (
    DATASET_KEYS,
    NETWORK_KEYS,
    OTHER_DATASET_KEYS,
    OTHER_TRAINING_KEYS,
    SAMPLE_KEYS,
    SCHEDULER_KEYS,
    TESTING_KEYS,
    TRAINING_KEYS,
)
from pymic_vf.host.settings.inference_settings import INFERENCE_KEYS
from pymic_vf.host.settings.known_keys import SECTIONS, known_names
from pymic_vf.host.settings.transform_keys import TRANSFORM_KEYS
from pymic_vf.keys import Key
from pymic_vf.methods import METHODS, method_class
from pymic_vf.methods.method import RECONSTRUCTION
from pymic_vf.networks.pct_net_settings import PCT_NET_KEYS

from conftest import finetuning, merged, pretraining, write_cfg

pymic_vf.register()

# as they stand in a file
VALUES = ("None", "nan", "1e400", "-1", "0", "[1, 2]", "[a, b]", "abc", "True", "no", "1.5", "[-1, -1, -1]",
          "7 # seven", "99999999999999999999", "[0.5, None]", "one\n two = 2")  # fmt: skip
IN_SHORT = 4  # of these for each key, others for the next key
TRANSFORMS = ("NormalizeWithMinMax", "GammaCorrection", "GaussianNoise", "RandomFlip", "RandomRotate", "Pad",
              "RandomCrop", "LabelToProbability")  # fmt: skip
TRANSFORM_VALUES = {
    "NormalizeWithMinMax_channels": [0],
    "NormalizeWithMinMax_threshold_lower": [-200],
    "NormalizeWithMinMax_threshold_upper": [300],
    "Pad_output_size": [16, 32, 32],
    "RandomFlip_flip_depth": False,
    "RandomFlip_flip_height": True,
    "RandomFlip_flip_width": True,
    "RandomRotate_angle_range_d": [-10, 10],
}


@dataclass(frozen=True)
class Base:
    """A right config for one stage, and the rows of what it reads, section by section."""

    stage: str
    sections: Mapping[str, Mapping[str, Any]]
    rows: Mapping[str, tuple[Key, ...]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("configs")


def bases(scans: Path, out: Path) -> dict[str, Base]:
    """The right configs: a pretraining by each method, a fine-tuning and a test."""
    training = tuple(key for key in TRAINING_KEYS if key.name not in ("ckpt_init_name",))
    shared = {
        "training": (*training, *SCHEDULER_KEYS["steplr"], *OTHER_TRAINING_KEYS),
        "network": (*NETWORK_KEYS, *PCT_NET_KEYS, *EXECUTION_KEYS),
    }
    found = {}
    for method in METHODS:
        own = {"dataset": method_class(method).keys}
        rows = {**shared, "dataset": (*DATASET_KEYS, *SAMPLE_KEYS, *method_class(method).keys)}
        found[method] = Base(TRAIN, _pretraining(method, scans, out), rows if method == "VF" else own)
    listed = tuple(key for name in TRANSFORMS for key in TRANSFORM_KEYS[name])
    dataset = {
        "train_transform": TRANSFORMS, "valid_transform": ["NormalizeWithMinMax", "Pad", "LabelToProbability"],
        "test_transform": ["NormalizeWithMinMax", "Pad"], "num_worker": 0, "valid_csv": scans / "labelled.csv",
        **TRANSFORM_VALUES,
    }  # fmt: skip
    supervised = finetuning(scans, out, dataset=dataset)
    read = tuple(key for key in (*DATASET_KEYS, *OTHER_DATASET_KEYS) if "test_" not in key.name)
    found["finetuning"] = Base(TRAIN, supervised, {**shared, "dataset": (*read, *listed)})
    (out / "finetune").mkdir(exist_ok=True)
    (out / "finetune" / "finetune_latest.txt").write_text("2")
    of_test = tuple(key for key in OTHER_DATASET_KEYS if key.name.startswith("test_"))
    found["test"] = Base(TEST, supervised, {"dataset": of_test, "testing": (*TESTING_KEYS, *INFERENCE_KEYS)})
    return found


def _pretraining(method: str, scans: Path, out: Path) -> dict[str, dict[str, Any]]:
    is_reconstruction = method_class(method).task == RECONSTRUCTION
    sizes = {"MIM_block_size": [4, 8, 8], "PatchSwap_size": [4, 8, 8], "Genesis_windows": [20, 20]}
    changes: dict[str, dict[str, Any]] = {
        "dataset": {
            "train_transform": None, "num_worker": 0, "VF_cache_dir": out / "cache", "valid_samples": 2,
            "valid_csv": scans / "pretrain.csv", **{k: v for k, v in sizes.items() if k.startswith(method)},
        },
        "self_supervised_learning": {"method_name": method},
    }  # fmt: skip
    if is_reconstruction:
        changes["dataset"]["task_type"] = "rec"
        changes["network"] = {"class_num": 1, "multiscale_pred": False}
        changes["training"] = {"loss_type": "MAELoss", "loss_weight": None, "deep_supervise": None}
    return pretraining(scans, out, **changes)


NAMES = (*METHODS, "finetuning", "test")


@dataclass(frozen=True)
class Damage:
    """One damaged config.

    Args:
        section, key: where the damage is, the key as a message has to name it.
        sections: the config.
        is_wrong: whether it has to be named; else it may be harmless.
    """

    section: str
    key: str
    what: str
    sections: Mapping[str, Mapping[str, Any]]
    is_wrong: bool


def damages(base: Base, everything: bool) -> Iterator[Damage]:
    """Every damage of a base; a part of the values, others for each key, unless `everything` is asked for."""
    turn = 0
    for section, keys in base.rows.items():
        for key in dict.fromkeys(keys):
            turn += 1
            yield from _damaged_names(base, section, key)
            chosen = VALUES if everything else [VALUES[(turn * 3 + step * 5) % len(VALUES)] for step in range(IN_SHORT)]
            for value in dict.fromkeys(chosen):
                yield _with_value(base, section, key, value)


def _with_value(base: Base, section: str, key: Key, text: str) -> Damage:
    written = _written(base, section, key)
    changed = merged(base.sections, {section: {written: text}})
    value = parse_value_from_string(text)
    absent = value is None and key.none_is_absent and not key.required
    return Damage(section, written, f"= {text}", changed, not absent and not key.kind.fits(value))


def _damaged_names(base: Base, section: str, key: Key) -> Iterator[Damage]:
    written = _written(base, section, key)
    value = base.sections[section].get(written, "x")
    yield Damage(section, written, "empty", merged(base.sections, {section: {written: ""}}), True)
    misspelt = written[:-2] + written[-1] + written[-2] if written[-1] != written[-2] else written[:-1]
    if misspelt.lower() not in known_names(section):
        changed = merged(base.sections, {section: {written: None, misspelt: value}})
        yield Damage(section, misspelt, "misspelt", changed, True)
    elsewhere = next(other for other in ("testing", "training", "dataset") if other != section
                     and written.lower() not in known_names(other))  # fmt: skip
    changed = merged(base.sections, {section: {written: None}, elsewhere: {written: value}})
    yield Damage(elsewhere, written, f"in [{elsewhere}]", changed, True)


def _written(base: Base, section: str, key: Key) -> str:
    return key.former if key.former in base.sections[section] else key.name


def mistakes_of(damage: Damage, base: Base, folder: Path) -> list[str]:
    """What the check says, whose one error is the command's."""
    try:
        config = parse_file(write_cfg(folder / "damaged.cfg", damage.sections))
        return find_mistakes(config, [base.stage], synchronize_config)[1]
    except ConfigError as error:
        return error.mistakes
    except UserError as error:
        return [str(error)]


@pytest.mark.parametrize("name", NAMES)
def test_the_bases_are_right(scans: Path, folder: Path, name: str):
    base = bases(scans, folder)[name]
    assert mistakes_of(Damage("", "", "", base.sections, False), base, folder) == []


@pytest.mark.parametrize("name", NAMES)
def test_every_damage_is_named(scans: Path, folder: Path, name: str, request: pytest.FixtureRequest):
    base = bases(scans, folder)[name]
    silent, unnamed = [], []
    for damage in damages(base, request.config.getoption("--long")):
        mistakes = mistakes_of(damage, base, folder)
        if damage.is_wrong and not mistakes:
            silent.append(f"[{damage.section}] {damage.key} {damage.what}")
        elif damage.is_wrong and not any(damage.key.lower() in mistake.lower() for mistake in mistakes):
            unnamed.append(f"[{damage.section}] {damage.key} {damage.what}: {mistakes}")
        assert len(mistakes) == len(set(mistakes))
    assert not silent
    assert not unnamed


def test_there_are_enough(scans: Path, folder: Path):
    assert sum(len(list(damages(base, False))) for base in bases(scans, folder).values()) >= 400


@pytest.mark.long
@pytest.mark.parametrize("name", [name for name in NAMES if name != "test"])
def test_what_is_let_through_runs(scans: Path, folder: Path, tmp_path: Path, name: str, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a cache_dir called no, and the like
    base = bases(scans, folder)[name]
    crashed = []
    for damage in damages(base, everything=True):
        if mistakes_of(damage, base, folder):
            continue
        here = merged(damage.sections, {"training": {"ckpt_dir": tmp_path / "run"}})
        config = synchronize_config(parse_file(write_cfg(folder / "a.cfg", here)))
        (tmp_path / "run").mkdir(exist_ok=True)
        config["training"]["iter_max"] = config["training"]["iter_valid"] = 1
        try:
            (pretraining_agent(config) if name in METHODS else SegmentationAgent(config, "train")).run()
        except UserError:
            continue
        except Exception as error:
            crashed.append(f"[{damage.section}] {damage.key} {damage.what}: {error!r}")
    assert not crashed


# What is not a matter of one key


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"trainning": {"iter_max": 3}}, "there is no section [trainning] (did you mean training?)"),
        ({"dataset": {"iter_sav": 1}}, "[dataset] iter_sav: there is no such key"),
        ({"training": {"iter_sav": 1}}, "[training] iter_sav: there is no such key (did you mean iter_save?)"),
        ({"training": {"ckpt_init_nam": 1}}, "ckpt_init_nam: there is no such key (did you mean ckpt_init_name?)"),
        ({"training": {"randm_seed": 1}}, "randm_seed: there is no such key (did you mean random_seed?)"),
        ({"testing": {"sliding_window_enabel": True}}, "(did you mean sliding_window_enable?)"),
        ({"dataset": {"volume_transfrom": "[Rescale]"}}, "(did you mean volume_transform?)"),
        ({"dataset": {"random_seed": 3}}, "[dataset] random_seed belongs in [training] and would be ignored here"),
        ({"training": {"deep_supervise": "no"}}, "deep_supervise must be True or False, got 'no'"),
        ({"training": {"learning_rate": "1e400"}}, "learning_rate must be a number of at least 0, got inf"),
        ({"training": {"optimizer": "SGD", "momentum": 0}}, "momentum must be above 0 for SGD"),
        ({"training": {"optimizer": "LBFGS"}}, "optimizer must be one of Adam"),
        ({"network": {"net_type": "UNet"}}, "[network] dimension is missing: 3"),
        ({"dataset": {"task_type": "rec"}}, "task_type must be seg for this method, got rec"),
        ({"training": {"ckpt_dir": "/proc/version/x"}}, "must be the name of a folder; /proc/version is a file"),
        ({"training": {"ckpt_init_name": "gone.pt"}}, "ckpt_init_name = gone.pt"),
    ],
)  # fmt: skip
def test_settings_of_a_pretraining(scans: Path, folder: Path, change: dict, message: str):
    base = bases(scans, folder)["VF"]
    mistakes = mistakes_of(Damage("", "", "", merged(base.sections, change), True), base, folder)
    assert any(message in mistake for mistake in mistakes), mistakes


@pytest.mark.parametrize(
    ("stage", "change", "message"),
    [
        ("finetuning", {"dataset": {"train_transform": "[RandomCrop]"}}, "must have LabelToProbability"),
        ("finetuning", {"dataset": {"train_transform": "LabelToProbability"}}, "must be a list of names"),
        ("finetuning", {"dataset": {"NormalizeWithMinMax_channels": [1]}}, "must be below [network] in_chns = 1"),
        ("finetuning", {"dataset": {"NormalizeWithMinMax_threshold_lower": [400]}}, "must be smaller than"),
        ("finetuning", {"training": {"class_weight": [1, 2, 3]}}, "a weight for each class, [network] class_num = 2"),
        ("finetuning", {"training": {"loss_type": "FocalDiceLoss"}}, "FocalDiceLoss_beta is missing"),
        ("finetuning", {"training": {"random_seed": -1}}, "random_seed must be a whole number"),
        ("test", {"testing": {"ckpt_mode": 2}}, "ckpt_name is missing"),
        ("test", {"testing": {"ckpt_mode": 2, "ckpt_name": "gone.pt"}}, "ckpt_name = gone.pt: there is no such file"),
        ("test", {"testing": {"ckpt_mode": 3, "ckpt_name": "a.pt"}}, "must be a list of names for ckpt_mode = 3"),
        ("test", {"testing": {"ckpt_mode": 1}}, "_best exists only after a validation"),
        ("test", {"testing": {"label_source": [0, 1]}}, "label_source needs label_target"),
        ("test", {"testing": {"label_source": [0, 1], "label_target": [0]}}, "must be as long as label_source"),
        ("test", {"testing": {"post_process": "Keep"}}, "post_process must be one of KeepLargestComponent"),
        ("test", {"testing": {"output_dir": "/proc/version/x"}}, "output_dir must be the name of a folder"),
        ("test", {"testing": {"gpus": 0}}, "gpus must be a list"),
    ],
)  # fmt: skip
def test_settings_of_a_fine_tuning_and_a_test(scans: Path, folder: Path, stage: str, change: dict, message: str):
    base = bases(scans, folder)[stage]
    mistakes = mistakes_of(Damage("", "", "", merged(base.sections, change), True), base, folder)
    assert any(message in mistake for mistake in mistakes), mistakes


def test_every_mistake_at_once(scans: Path, folder: Path):
    base = bases(scans, folder)["finetuning"]
    change = {
        "dataset": {"task_type": "sge", "train_batch_size": 0, "volume_transfrom": 1, "test_batch_size": "a"},
        "network": {"window_sizes": 5}, "training": {"ckpt_dir": 5, "momentum": "nan"}, "testing": {"tta_mode": 9},
    }  # fmt: skip
    config = parse_file(write_cfg(folder / "all.cfg", merged(base.sections, change)))
    mistakes = " ".join(find_mistakes(config, [TRAIN, TEST], synchronize_config, is_next=False)[1])
    for key in ("task_type", "train_batch_size", "volume_transfrom", "test_batch_size", "window_sizes", "ckpt_dir",
                "momentum", "tta_mode"):  # fmt: skip
        assert key in mistakes


@pytest.mark.parametrize(("command", "stage"), [(train, "VF"), (train, "finetuning"), (predict, "test")])
def test_check_says_what_the_commands_say(scans: Path, folder: Path, command: Any, stage: str, monkeypatch, capsys):
    """The commands' own main, up to where it stops: no folder is made, no log begun."""
    change = {"training": {"randm_seed": 1}, "testing": {"tta_mod": 1}, "network": {"depths": [1]}}
    sections = merged(bases(scans, folder)[stage].sections, change)
    sections["training"]["ckpt_dir"], out = folder / "finetune", folder / "not_made"
    if stage == "test":
        sections["testing"]["output_dir"] = out
        sections["dataset"] = {k: v for k, v in sections["dataset"].items() if k != "train_csv"}
        sections["training"] = {k: sections["training"][k] for k in ("ckpt_dir", "randm_seed")}
    else:
        sections["training"]["ckpt_dir"] = out
    cfg = write_cfg(folder / "same.cfg", sections)
    monkeypatch.setattr(sys, "argv", ["pymic", str(cfg)])
    with pytest.raises(ConfigError) as caught:
        command.main()
    assert not out.exists()
    capsys.readouterr()
    assert main(["check", str(cfg)]) == 1
    said = capsys.readouterr().err.strip()
    assert said == f"Error: {caught.value}"
    assert "randm_seed" in said and "tta_mod" in said and "depths" in said


def test_keys_of_others_are_left_alone(scans: Path, folder: Path, caplog: pytest.LogCaptureFixture):
    from pymic.transform.trans_dict import TransformDict

    base = bases(scans, folder)["finetuning"]
    change = {"dataset": {"Mine_size": 3, "Resample_output_spacing": 5, "train_csv_unlab": "x"},
              "evaluation": {"anything": 1}, "semi_supervised_learning": {"ema_decay": 0.9},
              "testing": {"random_seed": 1}, "training": {"random_seed": 1, "iter_start": 0}}  # fmt: skip
    TransformDict["Mine"] = object
    try:
        assert mistakes_of(Damage("", "", "", merged(base.sections, change), False), base, folder) == []
    finally:
        del TransformDict["Mine"]
    stock = merged(base.sections, {"network": {"net_type": "UNet", "precision": "bf16", "whatever": 1},
                                   "dataset": {"iter_sav": 2}})  # fmt: skip
    config = parse_file(write_cfg(folder / "stock.cfg", stock))
    assert find_mistakes(config, [TRAIN], synchronize_config)[1] == []
    from pymic_vf.host.settings.checks import warnings_of_stock

    lines = " ".join(warnings_of_stock(config))
    assert "iter_sav" in lines and "dimension is missing" in lines


def test_the_demo_of_mis_fm_passes(scans: Path, folder: Path):
    """Its left-atrium config, with another data folder."""
    (folder / "pctnet_ct10k_volf.pt").touch()
    flips = {f"RandomFlip_flip_{axis}": True for axis in ("depth", "height", "width")}
    size = [64, 128, 128]
    config = {
        "dataset": {
            "task_type": "seg", "tensor_type": "float", "train_dir": scans / "volumes",
            "train_csv": scans / "labelled.csv", "valid_csv": scans / "labelled.csv",
            "test_csv": scans / "labelled.csv", "modal_num": 1,
            "train_batch_size": 2, "valid_batch_size": 1, "patch_size": size,
            "train_transform": ["RandomCrop", "NormalizeWithMeanStd", "RandomFlip", "LabelToProbability"],
            "valid_transform": ["NormalizeWithMeanStd", "LabelToProbability"],
            "test_transform": ["NormalizeWithMeanStd"], "NormalizeWithMeanStd_channels": [0],
            "RandomCrop_foreground_focus": False, "RandomCrop_foreground_ratio": "None",
            "RandomCrop_mask_label": "None",
            **flips,
        },
        "network": {"net_type": "PCTNet", "class_num": 2, "in_chns": 1, "input_size": size,
                    "feature_chns": [24, 48, 128, 256, 512], "dropout": [0, 0, 0.2, 0.2, 0.2], "resolution_mode": 1,
                    "multiscale_pred": True},
        "training": {"gpus": [0], "deep_supervise": True, "loss_type": ["DiceLoss", "CrossEntropyLoss"],
                     "loss_weight": [0.5, 0.5], "optimizer": "Adam", "learning_rate": "1e-3", "momentum": 0.9,
                     "weight_decay": "1e-5", "lr_scheduler": "PolynomialLR", "lr_power": 0.8,
                     "early_stop_patience": 3000, "ckpt_dir": folder / "demo", "iter_max": 6000, "iter_valid": 250,
                     "iter_save": 6000, "ckpt_init_name": folder / "pctnet_ct10k_volf.pt", "ckpt_init_mode": 0},
        "testing": {"gpus": [0], "ckpt_mode": 1, "output_dir": folder / "result", "sliding_window_enable": True,
                    "sliding_window_size": size, "sliding_window_stride": [32, 64, 64], "sliding_window_batch": 8},
    }  # fmt: skip
    parsed = parse_file(write_cfg(folder / "demo.cfg", config))
    assert find_mistakes(parsed, [TRAIN, TEST], synchronize_config, is_next=False)[1] == []


# Files


GOOD = "[dataset]\ntask_type = seg\n[network]\nclass_num = 2\n[training]\nckpt_dir = x\n"
FILES = [
    (b"", "has no key in any [section]"),
    (b"task_type = seg\n", "line 1 stands before the first [section]: 'task_type = seg'"),
    ((GOOD + "momentum\n").encode(), "line 7: 'momentum\\n'"),
    ((GOOD + "ckpt_dir = y\n").encode(), "line 7: [training] has ckpt_dir already"),
    ((GOOD + "[dataset]\na = 1\n").encode(), "line 7: there is a section [dataset] already"),
    ((GOOD + "learning_rate = 10%\n").encode(), "[training] learning_rate has a % with a meaning"),
    ((GOOD + "gpus = []\n").encode(), "[training] gpus must be a list without empty entries, got '[]'"),
    ((GOOD + "gpus = [0,]\n").encode(), "[training] gpus must be a list without empty entries"),
    ((GOOD + "momentum = -\n").encode(), "[training] momentum must be a value that PyMIC can read, got '-'"),
    (b"\xef\xbb\xbf" + GOOD.encode(), "begins with a byte order mark"),
    (GOOD.encode("utf-16"), "is written in UTF-16"),
    (GOOD.encode() + b"\0\0\0", "is no text file"),
    (GOOD.encode() + b"a = \xff\n", "line 7 has a character that is not in UTF-8"),
    (b"[network]\nclass_num = 2\n[training]\nckpt_dir = x\n", "there is no section [dataset]"),
    (b"[dataset]\ntask_type = seg\n[network]\nclass_num = 2\n", "there is no section [training]"),
]


@pytest.mark.parametrize(("content", "message"), FILES)
def test_damaged_files(tmp_path: Path, content: bytes, message: str, capsys, monkeypatch):
    cfg = tmp_path / "a.cfg"
    cfg.write_bytes(content)
    assert main(["check", str(cfg)]) == 1
    said = capsys.readouterr().err
    assert message in said
    monkeypatch.setattr(sys, "argv", ["pymic_train", str(cfg)])
    with pytest.raises(UserError) as caught:
        train.main()
    assert said.strip() == f"Error: {caught.value}"


def test_line_ends_of_windows(scans: Path, folder: Path):
    base = bases(scans, folder)["VF"]
    cfg = write_cfg(folder / "crlf.cfg", base.sections)
    cfg.write_bytes(cfg.read_bytes().replace(b"\n", b"\r\n"))
    assert find_mistakes(parse_file(cfg), [TRAIN], synchronize_config)[1] == []


def test_no_file(tmp_path: Path, capsys):
    for path in (tmp_path, tmp_path / "gone.cfg"):
        assert main(["check", str(path)]) == 1
        assert "there is no such config file" in capsys.readouterr().err


quick = functools.partial(
    settings, deadline=None, database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip
TEXT = st.text(st.characters(codec="utf-8"), max_size=60)
LINES = st.lists(
    st.one_of(
        st.sampled_from([f"[{name}]" for name in SECTIONS]), TEXT,
        st.builds("{} = {}".format, st.sampled_from(sorted(known_names("training"))), TEXT),
    ), max_size=20,
)  # fmt: skip


def _is_read_or_named(content: bytes, folder: Path) -> None:
    cfg = folder / "any.cfg"
    cfg.write_bytes(content)
    try:
        config = parse_file(cfg)
    except UserError:
        return
    assert isinstance(config, dict)
    try:
        find_mistakes(config, [TRAIN, TEST], synchronize_config)
    except UserError:
        return


@quick(max_examples=150)
@given(content=st.one_of(st.binary(max_size=200), LINES.map(lambda lines: "\n".join(lines).encode())))
def test_any_file_is_read_or_named(folder: Path, content: bytes):
    _is_read_or_named(content, folder)


@quick(max_examples=60)
@given(data=st.data())
def test_any_value_of_any_key_is_read_or_named(scans: Path, folder: Path, data: st.DataObject):
    base = bases(scans, folder)[data.draw(st.sampled_from(["VF", "finetuning", "test"]))]
    section = data.draw(st.sampled_from(sorted(base.rows)))
    key = data.draw(st.sampled_from(base.rows[section]))
    text = data.draw(st.one_of(TEXT, st.integers().map(str), st.floats().map(str),
                               st.lists(st.integers(-2, 99)).map(str)))  # fmt: skip
    sections = merged(base.sections, {section: {key.name: text}})
    _is_read_or_named(write_cfg(folder / "b.cfg", sections).read_bytes(), folder)


# The commands themselves


def test_a_command_ends_with_the_mistakes_alone(run, scans: Path, folder: Path):
    sections = merged(bases(scans, folder)["finetuning"].sections, {"training": {"ckpt_dir": 5, "random_seed": -1}})
    done = run("pymic_train", write_cfg(folder / "command.cfg", sections), status=1, cwd=folder)
    assert "Traceback" not in done.stderr + done.stdout
    assert "[training] ckpt_dir must be the name of a folder (./5 where that is its name), got 5" in done.stderr
    assert "[training] random_seed must be a whole number of at least 0" in done.stderr
    assert not (folder / "5").exists()
