"""The command ``pymic_vf``: what goes with PyMIC's commands; and ``train`` and ``test``, which are PyMIC's own.

``python -m pymic_vf train CFG`` and ``test CFG`` are for those who switch torch's plug-in loading off.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pymic_vf._version import __version__
from pymic_vf.errors import UserError
from pymic_vf.methods import METHODS
from pymic_vf.networks import NETWORKS

KEY_TABLES = (*METHODS, *NETWORKS, "inference", "PyMIC")
INTERRUPTED = 130  # the shell's exit status of a command that Ctrl-C ended


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status, 0 for success, 1 for a user's mistake, 130 after Ctrl-C."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if arguments and arguments[0] in ("train", "test"):
        return _run_pymic(*arguments)
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    logging.getLogger("numexpr").setLevel(logging.WARNING)  # which blosc2 imports, tells of its threads
    try:
        status = options.run(options)
    except UserError as error:
        print(f"\nError: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        return INTERRUPTED
    return status or 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="pymic_vf", description=__doc__.splitlines()[0])
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def command(name: str, run: Callable, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(run=run)
        return sub

    demo = command("demo", _demo, "pretrain, fine-tune, segment and evaluate on phantoms, by PyMIC's commands")
    demo.add_argument("--out", type=Path, default=Path("vf_demo"), help="a new folder (default: %(default)s)")
    phantom = command("phantom", _phantom, "make CT-like volumes with labels and csv files")
    phantom.add_argument("out", type=Path, help="a new folder")
    phantom.add_argument("--seed", type=int, default=0, help="the same seed, the same voxels (default: %(default)s)")
    phantom.add_argument("--size", type=int, nargs=3, metavar=("D", "H", "W"), help="voxels of a volume")
    phantom.add_argument("--counts", nargs="+", metavar="SET=N", default=[], help="such as pretrain=40 train=3 test=6")
    preview = command(
        "preview",
        _preview,
        "draw a sample of your own pretraining config and data; after training, the network's answer too",
    )
    preview.add_argument("cfg", type=Path, help="a config for pretraining")
    preview.add_argument("--out", type=Path, required=True, help="the PNG to write")
    preview.add_argument("--sample", type=int, help="the number of the sample (default: one that shows much)")
    preview.add_argument("--ckpt", type=Path, help="whose answer to draw (default: the last in ckpt_dir, if any)")
    check = command("check", _check, "find what is wrong with a config and its data, and forecast the run: exit status "
                    "0 for PASS, 2 for WARN, 1 for FAIL")  # fmt: skip
    check.add_argument("cfg", type=Path, help="any PyMIC config of a network or method of this package")
    check.add_argument("--quick", action="store_true", help="the config and its csv files alone: no scan is read")
    check.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="threads (default: %(default)s)")
    prepare = command("prepare", _prepare, "fill cache_dir before a training; can be stopped and started again")
    prepare.add_argument("cfg", type=Path, help="a config for pretraining, or a supervised one")
    prepare.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes (default: %(default)s)")
    inspect = command("inspect", _inspect, "what is in a file of weights and what made it; export it to give it away")
    inspect.add_argument("checkpoint", type=Path, help="of PyMIC, a bare state dict, or safetensors; or FOLDER/latest")
    inspect.add_argument("--json", action="store_true", help="as JSON")
    inspect.add_argument(
        "--export", type=Path, metavar="FILE.safetensors", help="write weights, and FILE.md about them"
    )
    compare = command("compare", _compare, "does pretraining help on your data: a grid of runs, and a report")
    compare.add_argument("cfg", type=Path, help="a config of the comparison, see docs/comparing.md")
    compare.add_argument("--jobs", type=int, default=1, help="runs at once, the cores shared (default: %(default)s)")
    compare.add_argument("--gpus", type=int, nargs="+", default=(), help="CUDA devices that the runs take in turn")
    compare.add_argument("--slurm", action="store_true", help="the runs as arrays of a SLURM cluster")
    compare.add_argument("--dry-run", action="store_true", help="list the runs and check them, start none")
    compare.add_argument("--report", action="store_true", help="only write the report of the runs that are done")
    keys = command("keys", _keys, "the config keys of a pretraining method or a network, or of the inference")
    keys.add_argument("name", nargs="?", choices=KEY_TABLES, metavar="NAME", help=f"one of {', '.join(KEY_TABLES)}")
    keys.add_argument("--markdown", action="store_true", help="as the tables of the documentation")
    export = command("export-nnunet", _export_nnunet, "write the data and the split of a config in nnU-Net's format")
    export.add_argument("cfg", type=Path, help="a supervised PyMIC config")
    export.add_argument("out", type=Path, help="a new folder such as nnUNet_raw/Dataset001_NAME")
    export.add_argument("--channel-names", nargs="+", default=[], metavar="NAME", help="such as CT, which nnU-Net "
                        "normalises by the intensities of all scans (default: channel_0 ...)")  # fmt: skip
    export.add_argument("--class-names", nargs="+", default=[], metavar="NAME", help="of the labels from 1 "
                        "(default: label_1 ...)")  # fmt: skip
    for name in ("train", "test"):  # listed for the help alone, see main
        commands.add_parser(name, help=f"PyMIC's pymic_{name}, with its arguments")
    return parser


def _run_pymic(command: str, *arguments: str) -> int:
    import pymic_vf  # noqa: F401  (registers, whether or not torch calls its plug-ins)

    if command == "train":
        from pymic.net_run.train import main as run
    else:
        from pymic.net_run.predict import main as run
    sys.argv = [f"pymic_{command}", *arguments]
    run()
    return 0


def parse_file(cfg: Path) -> dict[str, dict[str, Any]]:
    """The sections of a config file as PyMIC's commands parse them, before they prepare them.

    Raises:
        UserError: no such file, or one that PyMIC cannot parse.
    """
    from pymic.util.parse_config import parse_config

    import pymic_vf

    pymic_vf.register()
    if not cfg.is_file():
        raise UserError(f"{cfg}: there is no such config file")
    with contextlib.redirect_stdout(io.StringIO()):
        return parse_config(argparse.Namespace(cfg=str(cfg)))


def read_config(cfg: Path) -> dict[str, dict[str, Any]]:
    """A config as PyMIC's commands parse it, without the line that they print for each key.

    Raises:
        UserError: no such file, or one that PyMIC cannot parse.
    """
    from pymic.util.parse_config import synchronize_config

    try:
        return synchronize_config(parse_file(cfg))
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{cfg}: PyMIC cannot parse this config ({type(error).__name__}: {error})") from error


def read_pretraining(cfg: Path) -> dict[str, dict[str, Any]]:
    """A config as :func:`read_config` parses it, which must be for a pretraining by a method of ours.

    Raises:
        UserError: it is for something else.
    """
    from pymic_vf.host.settings.checks import method_name_of

    config = read_config(cfg)
    if method_name_of(config) is None:
        raise UserError(
            f"{cfg} is no config for a pretraining by {' or '.join(METHODS)}: it needs [dataset] supervise_type = "
            "self_sup and [self_supervised_learning] method_name"
        )
    return config


def _demo(options: argparse.Namespace) -> None:
    from pymic_vf.demo.quickstart import run_demo

    run_demo(options.out)


def _phantom(options: argparse.Namespace) -> None:
    from pymic_vf.demo.phantom import write_phantoms

    given: dict[str, Any] = {"seed": options.seed}
    if options.size:
        given["size"] = options.size
    if options.counts:
        given["counts"] = _counts(options.counts)
    write_phantoms(options.out, **given)
    print(f"phantoms are in {options.out}")


def _counts(items: Sequence[str]) -> dict[str, int]:
    pairs = [item.partition("=") for item in items]
    wrong = [f"{name}{sign}{count}" for name, sign, count in pairs if not (sign and count.isdecimal())]
    if wrong:
        raise UserError(f"--counts takes SET=N, N a whole number, got {' '.join(wrong)}")
    return {name: int(count) for name, _, count in pairs}


def _preview(options: argparse.Namespace) -> None:
    from pymic_vf.demo.preview import draw_preview

    number = draw_preview(read_pretraining(options.cfg), options.sample, options.out, options.ckpt)
    print(f"sample {number} is drawn in {options.out}")


def _check(options: argparse.Namespace) -> int:
    from pymic_vf.host.survey.run_check import check_run

    return check_run(options.cfg, parse_file(options.cfg), options.quick, options.jobs)


def _prepare(options: argparse.Namespace) -> None:
    from pymic_vf.data.prepare import prepare
    from pymic_vf.host.agents import SegmentationAgent, pretraining_agent
    from pymic_vf.host.cached_sets import cached_sets
    from pymic_vf.host.settings.cache_checks import is_asked
    from pymic_vf.host.settings.checks import is_supervised

    config = read_config(options.cfg)
    if is_supervised(config):
        if not is_asked(config):
            raise UserError("[dataset] cache_dir is missing: the folder to prepare")
        sets = list(cached_sets(SegmentationAgent(config, "train")).values())
    else:
        agent = pretraining_agent(read_pretraining(options.cfg))
        stages = ("train", "valid") if agent.plan.valid_scans is not None else ("train",)
        sets = [agent.get_stage_dataset_from_config(stage) for stage in stages]
    report = prepare(sets, options.jobs)
    print(report)
    if report.too_many:
        raise UserError("too many scans cannot be used, see above")


def _inspect(options: argparse.Namespace) -> None:
    import json

    from pymic_vf.host.weights.inspection import as_text, inspect_file
    from pymic_vf.host.weights.model_card import export

    if options.json:
        logging.getLogger().setLevel(logging.WARNING)  # its output is read by programs
    report, checkpoint = inspect_file(options.checkpoint)
    print(json.dumps(report, indent=2) if options.json else as_text(report))
    if options.export:
        card = export(report, checkpoint["model_state_dict"], options.export)
        print(f"weights are in {options.export}, their card is {card}", file=sys.stderr if options.json else sys.stdout)


def _compare(options: argparse.Namespace) -> None:
    from pymic_vf.compare.command import compare

    if options.jobs < 1:
        raise UserError(f"--jobs must be at least 1, got {options.jobs}")
    compare(options.cfg, options.jobs, options.gpus, options.slurm, options.dry_run, options.report)


def _export_nnunet(options: argparse.Namespace) -> None:
    from pymic_vf.host.nnunet_export import export_nnunet
    from pymic_vf.host.settings.checks import is_supervised

    config = read_config(options.cfg)
    if not is_supervised(config):
        raise UserError(f"{options.cfg} is no supervised config: nnU-Net learns from labels")
    cases = export_nnunet(config, options.out, options.channel_names, options.class_names)
    counts = ", ".join(f"{len(several)} to {stage}" for stage, several in cases.items())
    print(f"{options.out}: {counts}")
    if not cases["valid"]:
        print("no valid_csv, so no splits_final.json: nnU-Net draws five folds of its own, or takes all by `-f all`")


def _keys(options: argparse.Namespace) -> None:
    from pymic_vf.host.settings.config_keys import key_tables
    from pymic_vf.keys import markdown_table, text_table

    table = markdown_table if options.markdown else text_table
    for name in [options.name] if options.name else KEY_TABLES:
        for title, keys in key_tables(name).items():
            print(f"{title}\n\n{table(keys)}\n")
