"""Checkpoints that somebody made to harm, or that a disk has harmed: each is refused in one line that names the file.

No file of these runs code, hangs, or takes more memory than it has bytes; what loads has the values that were saved.
"""

from __future__ import annotations

import bz2
import gzip
import importlib
import io
import json
import lzma
import os
import pickle
import resource
import struct
import tarfile
import time
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pymic
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pymic.net_run.agent_seg import SegmentationAgent
from safetensors.torch import save_file
from torch import nn

import pymic_vf
from pymic_vf.cli import main
from pymic_vf.errors import UserError
from pymic_vf.host.agents import pretraining_agent
from pymic_vf.host.weights.checkpoint import load, save_whole
from pymic_vf.host.weights.checkpoint_file import allow_numpy_scalars

from conftest import finetuning, parsed, pretraining, write_cfg

pymic_vf.register()
allow_numpy_scalars()
EXECUTED = "executed"  # the file that code in a checkpoint would leave in the current folder
GIB = 2**30


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder, which shall have no trace of code in the end."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


# How hostile checkpoints are made: functions of the file to write


class Bomb:
    """A pickle that runs a function when it is read."""

    def __init__(self, function: Callable, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def good() -> dict[str, Any]:
    return {
        "iteration": 3,
        "valid_pred": np.float64(0.5),
        "model_state_dict": {"w": torch.arange(12.0).reshape(3, 4), "b": torch.zeros(3), "n": torch.tensor(7)},
        "optimizer_state_dict": {"state": {0: {"exp_avg": torch.ones(3, 4)}}, "param_groups": [{"lr": 0.1}]},
    }


def saved(content: Any, **options: Any) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, **options)
    return file.getvalue()


def weights(**named: Any) -> bytes:
    return saved({"model_state_dict": named})


def rewritten(change: Callable[[str, bytes], bytes | None], compression: int = zipfile.ZIP_STORED) -> bytes:
    """A good checkpoint with entries changed, by functions of name and content; None leaves an entry out."""
    source, target = zipfile.ZipFile(io.BytesIO(saved(good()))), io.BytesIO()
    with zipfile.ZipFile(target, "w", compression) as archive:
        for name in source.namelist():
            if (content := change(name, source.read(name))) is not None:
                archive.writestr(name, content)
    return target.getvalue()


def pickled_as(data: bytes) -> bytes:
    return rewritten(lambda name, content: data if name.endswith("data.pkl") else content)


def with_entry(name: str, content: bytes) -> bytes:
    file = io.BytesIO(saved(good()))
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr(name, content)
    return file.getvalue()


def touch(name: str = EXECUTED) -> bytes:
    """A pickle that opens a file, by its bare instructions."""
    return b"cio\nopen\n(V" + name.encode() + b"\nVw\ntR."


def script() -> bytes:
    file = io.BytesIO()
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), file)
    return file.getvalue()


def flipped(at: float) -> bytes:
    content = bytearray(saved(good()))
    content[int(at * len(content))] ^= 16
    return bytes(content)


def flipped_weight() -> bytes:
    content = bytearray(saved(good()))
    content[content.index(np.arange(12, dtype=np.float32).tobytes()) + 6] ^= 1
    return bytes(content)


def bomb_of_zeros() -> bytes:
    """2 GiB of zeros in 2 MB."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("a/data.pkl", pickle.dumps({}, 2))
        with archive.open("a/data/0", "w", force_zip64=True) as entry:
            for _ in range(64):
                entry.write(bytes(2**20))
    content = bytearray(file.getvalue())
    at = content.rindex(b"PK\x01\x02")  # the last entry of the directory, whose size is a lie
    content[at + 24 : at + 28] = struct.pack("<I", 2**31)
    return bytes(content)


def overlapping() -> bytes:
    """Two entries of the directory at one place of the file."""
    content = saved(good())
    end = content.rindex(b"PK\x05\x06")
    start = struct.unpack("<I", content[end + 16 : end + 20])[0]
    directory, tail = content[start:end], bytearray(content[end:])
    entry = directory[: directory.index(b"PK\x01\x02", 4)].replace(b"data.pkl", b"extr.pkl")
    count = struct.unpack("<H", tail[10:12])[0] + 1
    tail[8:12] = struct.pack("<HH", count, count)
    tail[12:16] = struct.pack("<I", len(directory) + len(entry))
    return content[:start] + directory + entry + bytes(tail)


def tar() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("pickle"), io.BytesIO())
    return file.getvalue()


def more_values_than_the_record() -> bytes:
    """A storage of a billion values over a record of twelve."""
    return rewritten(
        lambda name, content: content.replace(b"K\x0ct", b"J" + struct.pack("<i", 10**9) + b"t", 1)
        if name.endswith("data.pkl") else content
    )  # fmt: skip


def legacy_of_terabytes() -> bytes:
    return saved(good(), _use_new_zipfile_serialization=False).replace(b"K\x0cN", b"\x8a\x06" + b"\0\0\0\0\0\1" + b"N")


def nested_tuples(depth: int) -> bytes:
    """A dict whose key is a tuple of twice a tuple of twice ..."""
    inner = b"".join(b"h" + bytes([n]) + b"\x86q" + bytes([n + 1]) for n in range(1, depth))
    return b"\x80\x02}K\0K\0\x86q\x01" + inner + b"K\0s."


def wide_tuples() -> bytes:
    """The same by few tuples of a thousand members."""
    inner = b"".join(b"(" + 1000 * (b"h" + bytes([n])) + b"tq" + bytes([n + 1]) for n in range(1, 6))
    return b"\x80\x02}K\0q\x01" + inner + b"K\0s."


def legacy_of(data: bytes) -> bytes:
    """A legacy file with that pickle as its content."""
    start = saved({}, _use_new_zipfile_serialization=False)
    return start.replace(pickle.dumps({}, 2), data, 1)


def safetensors(header: bytes, data: bytes = b"") -> bytes:
    return struct.pack("<Q", len(header)) + header + data


def safetensors_flipped() -> bytes:
    from pymic_vf.host.weights.checkpoint_file import CHECKSUM, checksum

    named = {"w": torch.arange(100.0)}
    save_file(named, "good.safetensors", metadata={CHECKSUM: checksum(named)})
    content = bytearray(Path("good.safetensors").read_bytes())
    content[-9] ^= 1
    return bytes(content)


ENTRY = b'{"w":{"dtype":"F32","shape":[%d],"data_offsets":[0,%d]}}'
CODE = r"this file contains code"
BAD = r"not a (checkpoint|safetensors file) that can be loaded"
HOSTILE: dict[str, tuple[Callable[[], bytes], str]] = {
    # code
    "touch in a pickle": (lambda: pickle.dumps(Bomb(open, EXECUTED, "w"), 2), CODE),
    "touch in an archive": (lambda: saved({"model_state_dict": {"w": Bomb(open, EXECUTED, "w")}}), CODE),
    "touch in a legacy file": (
        lambda: saved({"model_state_dict": Bomb(open, EXECUTED, "w")}, _use_new_zipfile_serialization=False), CODE),
    "os.system": (lambda: saved(Bomb(os.system, f"touch {EXECUTED}")), rf"{CODE} \(\w+\.system\)"),
    "eval": (lambda: saved({"model_state_dict": Bomb(eval, f"open('{EXECUTED}', 'w')")}), CODE),
    "beside good weights": (lambda: saved({**good(), "extra": Bomb(open, EXECUTED, "w")}), CODE),
    "as the iteration": (lambda: saved({**good(), "iteration": Bomb(open, EXECUTED, "w")}), CODE),
    "bare instructions": (lambda: pickled_as(touch()), CODE),
    "torch.load within": (lambda: saved({"model_state_dict": Bomb(torch.load, "other.pt")}), CODE),
    "a class of Python's": (lambda: saved({"model_state_dict": {}, "path": Path("x")}), CODE),
    "a whole network": (lambda: saved(nn.Linear(2, 2)), CODE),
    "an array of objects": (
        lambda: saved({"model_state_dict": {"w": np.array([Bomb(open, EXECUTED, "w")], object)}}), CODE),
    "an array of numpy": (lambda: saved({"model_state_dict": {"w": np.ones(3)}}), CODE),
    "an object as numpy's scalar": (
        lambda: pickled_as(b"cnumpy._core.multiarray\nscalar\n(cnumpy\ndtype\n(VO8\ntRVtext\ntR."), BAD),
    "a scalar that is cut off": (
        lambda: pickled_as(b"cnumpy._core.multiarray\nscalar\n(cnumpy\ndtype\n(Vf8\ntRVtext\ntR."), BAD),
    "a TorchScript program": (script, rf"{CODE} \(a TorchScript program\)"),
    # no file of weights
    "empty": (lambda: b"", "the file is empty"),
    "text": (lambda: b"iteration = 3\n" * 100, BAD),
    "a web page": (lambda: b"<!DOCTYPE html><html>404</html>", "was the download an error page"),
    "a pointer of git lfs": (lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs"),
    "gzip": (lambda: gzip.compress(saved(good())), "compressed by gzip: unpack it first"),
    "a bomb of gzip": (lambda: gzip.compress(bytes(2**24)), "compressed by gzip"),
    "bzip2": (lambda: bz2.compress(saved(good())), "compressed by bzip2"),
    "xz": (lambda: lzma.compress(saved(good())), "compressed by xz"),
    "tar": (tar, "a tar archive"),
    "an array file": (lambda: b"\x93NUMPY\x01\0" + bytes(100), "an array of numpy"),
    "HDF5": (lambda: b"\x89HDF\r\n\x1a\n" + bytes(100), "an HDF5 file"),
    "random bytes": (lambda: np.random.default_rng(0).bytes(1000), BAD),
    "zeros": (lambda: bytes(1000), BAD),
    "a plain pickle": (lambda: pickle.dumps({"model_state_dict": {}}), "a pickle of Python, which can be code"),
    "another zip archive": (lambda: rewritten(lambda n, content: None if "data.pkl" in n else content), "no data.pkl"),
    # damaged
    "cut off in the middle": (lambda: saved(good())[:1500], BAD),
    "cut off at the end": (lambda: saved(good())[:-1], BAD),
    "its first byte alone": (lambda: b"P", BAD),
    "its magic alone": (lambda: b"PK\x03\x04", BAD),
    "a legacy file cut off": (lambda: saved(good(), _use_new_zipfile_serialization=False)[:-20], BAD),
    "a flipped bit of a weight": (flipped_weight, "damaged, the checksum of .* in it is wrong"),
    "a flipped bit of the directory": (lambda: flipped(0.99), BAD + "|damaged|announces"),
    "a pickle that is empty": (lambda: pickled_as(b""), BAD),
    "a pickle without an end": (lambda: pickled_as(b"\x80\x02}q\x00"), BAD),
    "a pickle of a later protocol": (lambda: pickled_as(pickle.dumps({}, 5)), BAD),
    "a missing record": (lambda: rewritten(lambda name, content: None if name.endswith("data/0") else content), BAD),
    "an unknown byte order": (lambda: rewritten(lambda n, c: b"middle" if n.endswith("byteorder") else c), BAD),
    # that take more than they have
    "a zip bomb": (bomb_of_zeros, "a compressed archive|announces"),
    "a compressed archive": (lambda: rewritten(lambda _n, c: c, zipfile.ZIP_DEFLATED), "a compressed archive"),
    "an archive by lzma": (lambda: rewritten(lambda _n, c: c, zipfile.ZIP_LZMA), "a compressed archive"),
    "overlapping entries": (overlapping, BAD + "|announces"),
    "two entries of one name": (lambda: with_entry("archive/data.pkl", touch()), "two entries of the same name"),
    "a storage larger than its record": (more_values_than_the_record, BAD),
    "a legacy storage of terabytes": (legacy_of_terabytes, BAD),
    "tuples whose hash takes years": (lambda: pickled_as(nested_tuples(50)), "nested so that reading them would take"),
    "the same in a legacy file": (lambda: legacy_of(nested_tuples(50)), "nested so that reading them would take"),
    "wide tuples": (lambda: pickled_as(wide_tuples()), "nested so that reading them would take"),
    "a text of terabytes": (lambda: b"\x80\x02\x8e" + struct.pack("<Q", 2**42) + b"x.", BAD),
    "a text of terabytes in an archive": (lambda: pickled_as(b"\x80\x02\x8e" + struct.pack("<Q", 2**42) + b"x."), BAD),
    "a pickle of nothing but instructions": (lambda: pickled_as(b"\x80\x02" + bytes(2**25)), "of it are no weights"),
    "one value as a billion": (lambda: weights(w=torch.zeros(1).expand(10**9)), r"announce 4000000000 bytes"),
    "many views of one storage": (
        lambda: weights(**{f"w{n}": torch.zeros(10**5).expand(100, 10**5) for n in range(20)}), "announce"),
    # whose weights are none
    "a list": (lambda: saved([1, 2]), "this file holds a list"),
    "a tensor": (lambda: saved(torch.ones(3)), "this file holds a Tensor"),
    "nothing": (lambda: saved(None), "this file holds a NoneType"),
    "an empty dict": (lambda: saved({}), "no weights in it .*; it holds nothing"),
    "no weights in it": (lambda: saved({"epoch": 3, "loss": [1.0]}), r"it holds 'epoch' \(int\), 'loss' \(list\)"),
    "weights that are a list": (lambda: saved({"model_state_dict": [torch.ones(2)]}), "no weights in it"),
    "a weight that is a list": (lambda: weights(w=[1.0, 2.0]), "weights are tensors, w is a list"),
    "a weight that is text": (lambda: weights(w="text"), "weights are tensors, w is a str"),
    "names that are numbers": (lambda: saved({0: torch.ones(2)}), r"names of weights are text, got 0 \(int\)"),
    "names with control characters": (lambda: saved({"\x1b[2Jw": torch.ones(2)}), "names of weights are text"),
    "sparse": (lambda: weights(w=torch.eye(3).to_sparse()), "w is no plain tensor but sparse_coo"),
    "meta": (lambda: weights(w=torch.ones(3, device="meta")), "w is no plain tensor but meta"),
    "quantized": (
        lambda: weights(w=torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)), "no plain tensor|" + BAD),
    "NaN": (lambda: weights(w=torch.tensor([1.0, float("nan")])), r"1 of its 1 weights are not finite.*\(w\)"),
    "infinite": (lambda: weights(a=torch.ones(1), w=torch.tensor([float("inf")]).half()), "1 of its 2 weights are not"),
    "NaN of a head": (lambda: saved({"model_state_dict": {}, "head_state_dict": {"h": [1]}}), "h is a list"),
    # safetensors
    "safetensors of NaN": (
        lambda: safetensors(ENTRY % (1, 4), np.float32("nan").tobytes()), "1 of its 1 weights are not finite"),
    "safetensors that announce more": (lambda: safetensors(ENTRY % (10**9, 4 * 10**9), bytes(8)), BAD),
    "safetensors of a wrong shape": (lambda: safetensors(ENTRY % (3, 8), bytes(8)), BAD),
    "safetensors without a header": (lambda: struct.pack("<Q", 2**62) + b"{}", BAD),
    "safetensors of no JSON": (lambda: safetensors(b"{" * 5000), BAD),
    "safetensors with a flipped bit": (safetensors_flipped, "damaged, the checksum of its weights is wrong"),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")  # torch's, about what it reads
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_refused_in_one_line(name: str, here: Path):
    make, message = HOSTILE[name]
    (here / "bad.pt").write_bytes(make())
    (here / EXECUTED).unlink(missing_ok=True)  # if making it ran it
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    with pytest.raises(UserError, match=message) as raised:
        load("bad.pt", weights_only=False)  # as PyMIC's test asks for
    text = str(raised.value)
    assert text.startswith("bad.pt: ") and "\n" not in text and len(text) < 400
    assert "weights_only" not in text and "Traceback" not in text and "add_safe_globals" not in text
    assert not (here / EXECUTED).exists()
    assert time.monotonic() - start < 20
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < GIB // 2**10 // 4  # in KiB


def test_there_are_enough_of_them():
    assert len(HOSTILE) >= 60


# What is no file, or cannot be read


def test_no_file_hangs_or_ends_in_a_traceback(here: Path):
    os.mkfifo("pipe.pt")
    Path("folder.pt").mkdir()
    Path("loop.pt").symlink_to("loop.pt")
    Path("gone.pt").symlink_to("nowhere.pt")
    for path, message in {
        "pipe.pt": "a checkpoint is a file, this is a device or a pipe",
        "/dev/zero": "a checkpoint is a file, this is a device or a pipe",
        "folder.pt": "a checkpoint is a file, this is a folder",
        "loop.pt": "no checkpoint loop.pt|cannot be read",
        "gone.pt": "no checkpoint gone.pt",
        "a\0b.pt": "no checkpoint|cannot be read",
        "x" * 5000: "no checkpoint|cannot be read",
        "": "this is a folder",
        "../../../../../../../etc/passwd": BAD + "|no checkpoint",
    }.items():
        with pytest.raises(UserError, match=message):
            load(path)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs to become another user for a moment")
def test_a_file_without_permission_is_named(tmp_path_factory):
    folder = tmp_path_factory.mktemp("closed")
    save_whole(good(), folder / "a.pt")
    (folder / "a.pt").chmod(0)
    (folder / "inner").mkdir(mode=0o700)
    os.seteuid(65534)
    try:
        for path in (folder / "a.pt", folder / "inner" / "a.pt"):
            with pytest.raises(UserError, match=r"a\.pt: cannot be read \(Permission denied\)"):
                load(path)
    finally:
        os.seteuid(0)


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"../../x", b"3\n4", b"9" * 10**6])
def test_a_file_that_names_no_iteration(here: Path, content: bytes):
    Path("run_latest.txt").write_bytes(content)
    with pytest.raises(UserError, match=r"run_latest\.txt"):
        load("latest")


def test_a_pipe_that_names_an_iteration(here: Path):
    os.mkfifo("run_latest.txt")
    with pytest.raises(UserError, match=r"run_latest\.txt: must be a file that names an iteration"):
        load("latest")


# What looks odd and is good


@pytest.mark.parametrize(
    "content",
    [
        saved(good()),
        saved(good(), _use_new_zipfile_serialization=False),
        saved(good()["model_state_dict"]),
        saved({"state_dict": good()["model_state_dict"], "epoch": 3}),
        saved({"network_weights": good()["model_state_dict"]}),
        saved({"model": {f"module._orig_mod.{name}": w for name, w in good()["model_state_dict"].items()}}),
        saved(OrderedDict({f"_orig_mod.{name}": w for name, w in good()["model_state_dict"].items()})),
        with_entry("archive/../../escaped", b"kept inside"),
        rewritten(lambda _name, data: data),
    ],
)
def test_good_files_of_every_kind_load(here: Path, content: bytes):
    Path("good.pt").write_bytes(content)
    same_values(load("good.pt", map_location="cpu")["model_state_dict"], good()["model_state_dict"])
    assert not (here.parent / "escaped").exists()


def test_weights_that_share_memory_load(here: Path):
    one = torch.arange(1000.0)
    Path("a.pt").write_bytes(weights(a=one, b=one, c=one.view(10, 100).T))
    loaded = load("a.pt")["model_state_dict"]
    assert torch.equal(loaded["c"], one.view(10, 100).T)


def same_values(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    assert list(found) == list(wanted)
    for name, weight in wanted.items():
        assert found[name].dtype == weight.dtype and torch.equal(found[name], weight)


# Any damage at all


@pytest.fixture(scope="module")
def damaged_folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("damaged")


CHANGES = st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), min_size=1, max_size=4)


def examples(count: int) -> Callable:
    return settings(
        max_examples=count, deadline=20_000, suppress_health_check=[HealthCheck.function_scoped_fixture], database=None,
        derandomize=True,
    )  # fmt: skip


def read_damaged(folder: Path, content: bytes, has_checksums: bool) -> None:
    """It is refused, or it has the values that were saved: in an archive all of them."""
    path = folder / "a.pt"
    path.write_bytes(content)
    try:
        found = load(path, map_location="cpu")
    except UserError as error:
        assert "\n" not in str(error) and "weights_only" not in str(error)
        return
    if has_checksums:
        wanted = good()
        same_values(found["model_state_dict"], wanted["model_state_dict"])
        assert found["iteration"] == wanted["iteration"] and found["valid_pred"] == wanted["valid_pred"]


def changed(content: bytes, changes: list[tuple[float, int]], cut: float) -> bytes:
    result = bytearray(content)
    for at, bits in changes:
        result[int(at * len(result))] ^= bits
    return bytes(result[: max(1, int(cut * len(result)))])


@pytest.mark.filterwarnings("ignore")
@examples(120)
@given(changes=CHANGES)
def test_changed_bytes(damaged_folder: Path, changes):
    read_damaged(damaged_folder, changed(ARCHIVE, changes, 1), has_checksums=True)


@pytest.mark.filterwarnings("ignore")
@examples(40)
@given(changes=CHANGES, cut=st.floats(0, 1))
def test_changed_bytes_of_a_legacy_file(damaged_folder: Path, changes, cut):
    read_damaged(damaged_folder, changed(LEGACY, changes, cut), has_checksums=False)


@pytest.mark.filterwarnings("ignore")
@examples(60)
@given(changes=CHANGES)
def test_changed_instructions_with_right_checksums(damaged_folder: Path, changes):
    data = changed(PICKLE, changes, 1)
    read_damaged(damaged_folder, pickled_as(data), has_checksums=False)


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")
@examples(5000)
@given(
    changes=CHANGES, cut=st.one_of(st.just(1.0), st.floats(0, 1)), kind=st.sampled_from(["archive", "legacy", "pickle"])
)
def test_any_damage_at_length(damaged_folder: Path, changes, cut, kind):
    content = {"archive": ARCHIVE, "legacy": LEGACY, "pickle": PICKLE}[kind]
    damaged = changed(content, changes, cut)
    read_damaged(damaged_folder, pickled_as(damaged) if kind == "pickle" else damaged, has_checksums=kind == "archive")


ARCHIVE, LEGACY = saved(good()), saved(good(), _use_new_zipfile_serialization=False)
PICKLE = zipfile.ZipFile(io.BytesIO(ARCHIVE)).read("archive/data.pkl")


# By every way in


def modules_that_load() -> list[str]:
    """Every module of the installed PyMIC that calls torch.load, but for the copy of one that nobody imports."""
    root = Path(pymic.__file__).parent
    files = (file for file in root.rglob("*.py") if "torch.load(" in file.read_text())
    modules = (".".join(("pymic", *file.relative_to(root).with_suffix("").parts)) for file in files)
    return sorted(module for module in modules if "net2d.trans2d" not in module)


@pytest.mark.parametrize("module", modules_that_load())
@pytest.mark.parametrize("options", [{}, {"weights_only": False}], ids=["", "unsafe"])
def test_no_module_of_pymic_runs_what_it_loads(here: Path, module: str, options: dict):
    Path("bad.pt").write_bytes(HOSTILE["touch in an archive"][0]())
    with pytest.raises((UserError, pickle.UnpicklingError)):
        importlib.import_module(module).torch.load("bad.pt", **options)
    assert not Path(EXECUTED).exists()


def test_pymic_averages_checkpoints_as_before(here: Path):
    for n in range(3):
        save_whole({"model_state_dict": {"w": torch.full((2,), float(n))}, "valid_pred": np.float64(1)}, f"{n}.pt")
    importlib.import_module("pymic.util.model_operate").get_average_model("0.pt", "1.pt", "2.pt", "mean.pt")
    assert load("mean.pt")["model_state_dict"]["w"].tolist() == [1, 1]


@pytest.mark.parametrize("name", ["os.system", "NaN", "cut off in the middle", "a weight that is a list"])
@pytest.mark.parametrize("kind", ["supervised", "VF", "MIM"])
def test_no_training_starts_from_one(scans: Path, here: Path, kind: str, name: str):
    make, message = HOSTILE[name]
    Path("bad.pt").write_bytes(make())
    training = {"ckpt_init_name": here / "bad.pt", "ckpt_dir": here / "run"}
    if kind == "supervised":
        config = finetuning(scans, here, training=training, dataset={"num_worker": 0})
        agent = SegmentationAgent(parsed(here / "a.cfg", config))
    else:
        changes = {"dataset": {"num_worker": 0}, "training": training}
        if kind == "MIM":
            changes["self_supervised_learning"] = {"method_name": "MIM"}
            changes["dataset"] |= {"train_transform": None, "task_type": "rec", "MIM_block_size": [4, 8, 8]}
            changes["network"] = {"class_num": 1, "multiscale_pred": False}
            changes["training"] |= {"deep_supervise": False, "loss_type": "MAELoss", "loss_weight": None}
        agent = pretraining_agent(parsed(here / "a.cfg", pretraining(scans, here, **changes)))
    Path("run").mkdir(exist_ok=True)
    with pytest.raises(UserError, match=message):
        agent.run()
    assert not Path(EXECUTED).exists() and not list(here.glob("run/*.pt"))


@pytest.mark.parametrize("mode", [0, 1, 2, 3])
@pytest.mark.parametrize("name", ["os.system", "NaN"])
def test_no_test_takes_one(scans: Path, here: Path, mode: int, name: str):
    make, message = HOSTILE[name]
    Path("finetune").mkdir()
    for file in ("finetune/finetune_1.pt", "finetune/finetune_best.pt"):
        Path(file).write_bytes(make())
    for note in ("latest", "best"):
        Path(f"finetune/finetune_{note}.txt").write_text("1")
    path = here / "finetune" / "finetune_1.pt"
    testing = {"ckpt_mode": mode, "ckpt_name": [path, path] if mode == 3 else path}
    agent = SegmentationAgent(parsed(here / "a.cfg", finetuning(scans, here, testing=testing)), "test")
    with pytest.raises(UserError, match=message):
        agent.run()
    assert not Path(EXECUTED).exists() and not list(here.glob("result/*.nii.gz"))


# By the commands


def test_inspect_refuses_them_too(here: Path, capsys):
    for name in ("touch in an archive", "a zip bomb", "cut off in the middle"):
        Path("bad.pt").write_bytes(HOSTILE[name][0]())
        assert main(["inspect", "bad.pt"]) == 1
        assert "Error: bad.pt: " in capsys.readouterr().err
    assert not Path(EXECUTED).exists()
    Path("nan.pt").write_bytes(HOSTILE["NaN"][0]())
    assert main(["inspect", "nan.pt", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["not_finite"] == ["w"]


def test_a_test_with_code_in_its_checkpoint(run, scans: Path, here: Path):
    Path("bad.pt").write_bytes(HOSTILE["os.system"][0]())
    testing = {"ckpt_mode": 2, "ckpt_name": here / "bad.pt"}
    done = run("pymic_test", write_cfg(here / "a.cfg", finetuning(scans, here, testing=testing)), status=1)
    assert "this file contains code" in done.stderr and "Traceback" not in done.stderr
    assert not Path(EXECUTED).exists() and not list(here.glob("result/*.nii.gz"))
