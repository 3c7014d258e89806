"""The keys of PyMIC's sections that a run of ours reads, PyMIC's own among them, a row each.

The keys of a method are in its file in methods/, those of a network of ours in the file of its settings in
networks/, how a network is run in execution.py, and the windows of the inference in inference_settings.py.
"""

from __future__ import annotations

from pymic_vf.host.execution import EXECUTION_KEYS
from pymic_vf.host.settings.inference_settings import INFERENCE_KEYS
from pymic_vf.host.settings.transform_keys import TRANSFORM_KEYS
from pymic_vf.host.weights.channel_inflation import INFLATION_KEY
from pymic_vf.keys import (
    Key,
    anything,
    either,
    flag,
    list_of,
    name_of,
    names,
    none,
    number,
    one_of,
    path,
    text,
    whole,
)
from pymic_vf.methods import METHODS, method_class
from pymic_vf.networks import NETWORKS

LARGEST_SEED = 2**32 - 1  # that numpy takes

# [dataset], for every pretraining method of ours
SAMPLE_KEYS = (
    Key("crop_size", list_of(whole(1), 3), "depth, height and width of a crop, in voxels", (64, 128, 128),
        former="VF_crop_size"),
    Key("volume_transform", names(), "PyMIC transforms of a whole volume, before crops are taken", ()),
    Key("train_transform", names(), "the method's name, before it transforms of each crop, after it of the sample; "
        "by default the method alone, for a segmentation with LabelToProbability"),
    Key("valid_transform", names(), "the same for the validation samples; by default as train_transform"),
    Key("valid_samples", whole(1), "samples of a validation, the same each time", 32, former="VF_valid_samples"),
    Key("cache_dir", path("a folder"), "keeps each decoded scan in compressed chunks, from which a crop reads its own "
        "voxels alone", former="VF_cache_dir"),
    Key("cache_max_gib", number(0, 1e9), "what that folder may take, in GiB; further scans are decoded as without it",
        former="VF_cache_max_gib"),
    Key("crop_min_foreground", number(0, 1), "the share of a crop that must be body: of up to 32 places the first that "
        "has it is taken, or the best; by default every place alike, as in the papers"),
    Key("crop_foreground_threshold", either(number(), one_of("otsu")), "above which a voxel is body, a number in the "
        "units of the scan before intensity transforms (such as -500 HU), or otsu, for each volume its own"),
    Key("max_bad_fraction", number(0, 1), "scans that cannot be used are left out, named in the log and in "
        "`unusable_scans.csv`; more than this share ends the run", 0.05, former="VF_max_bad_fraction"),
)  # fmt: skip

# [dataset], PyMIC's, as a pretraining reads them
DATASET_KEYS = (
    Key("tensor_type", one_of("float", "double"), "float or double", required=True),
    Key("train_dir", path("a folder"), "the folder that the names in the csv files are relative to", required=True),
    Key("train_csv", path("a csv file"), "the list of the scans, column `image`", required=True),
    Key("valid_dir", path("a folder"), "the folder of the validation scans; by default train_dir"),
    Key("valid_csv", path("a csv file"), "other scans, of which every validation sees the same samples"),
    Key("train_batch_size", whole(1), "samples an iteration, of all processes together", required=True),
    Key("valid_batch_size", whole(1), "samples at once in a validation", 1, none_is_absent=False),
    Key("num_worker", whole(0, 1024), "processes that make samples, for each process of the training", 8),
    Key("modal_num", whole(1), "image files of a scan: the first columns of the csv", 1),
)

# [training], PyMIC's
SEED_AND_FOLDER = (
    Key("random_seed", whole(0, LARGEST_SEED), "initial weights and samples follow from it", 1, none_is_absent=False),
    Key("ckpt_dir", path("a folder"), "the folder for checkpoints and logs", required=True),
)
# of how a run is interrupted and continued, for our methods and networks; with one of the first three for any
RUN_KEYS = (
    Key("resume", one_of("auto", "never"), "auto: go on from the newest checkpoint in ckpt_dir that fits, or start: "
        "the same job can be submitted again and again", "never"),
    Key("checkpoint_minutes", number(0), "minutes between two checkpoints, whatever iter_save says; by default 30 "
        "with resume = auto, and none without"),
    Key("max_bad_steps", whole(1), "iterations in a row whose loss or gradient is not finite that end the run; "
        "such steps are left out and listed in `bad_steps.csv`", 10),
    Key("overwrite", flag(), "a new run may replace the checkpoints of another one in ckpt_dir", False),
)  # fmt: skip
TRAINING_KEYS = (
    *SEED_AND_FOLDER,
    *RUN_KEYS,
    Key("gpus", list_of(whole(0)), "the CUDA devices, such as [0]", required=True),
    # not LBFGS and SparseAdam, which PyMIC has too and cannot step with
    Key("optimizer", name_of("Adam", "SGD", "RMSprop", "Adadelta", "Adagrad", "Adamax", "ASGD", "Rprop"),
        "such as Adam", required=True),
    Key("learning_rate", number(0), "a number", required=True),
    Key("momentum", number(0), "a number, which SGD and RMSprop use", required=True),
    Key("weight_decay", number(0), "a number", required=True),
    Key("lr_scheduler", name_of("StepLR", "MultiStepLR", "PolynomialLR", "CosineAnnealingLR", "ReduceLROnPlateau"),
        "PyMIC needs one; for a constant rate StepLR with lr_gamma = 1.0", required=True),
    Key("loss_type", names(), "such as [DiceLoss, CrossEntropyLoss]", required=True),
    Key("loss_weight", list_of(number()), "a weight for each of several losses"),
    Key("deep_supervise", flag(), "the loss of every output of a network that has several", False),
    Key("iter_max", whole(1), "the number of iterations", 1, required=True),
    Key("iter_valid", whole(1), "iterations between two validations, log lines and steps of the scheduler", 1,
        required=True),
    Key("iter_save", either(whole(1), list_of(whole(1))), "iterations between two checkpoints, or their list; by "
        "default the last alone"),
    Key("early_stop_patience", whole(1), "iterations without a better validation after which PyMIC stops"),
    Key("ckpt_init_name", path("a checkpoint"), "where the weights come from, relative to ckpt_dir, or absolute; "
        "`FOLDER/latest` is the last checkpoint of a run"),
    Key("ckpt_init_mode", one_of(0, 1), "0: its weights alone; 1: resume that run", 0),
)  # fmt: skip
SCHEDULER_KEYS = {
    "steplr": (Key("lr_step", number(1), "lr_scheduler = StepLR needs it", required=True),
               Key("lr_gamma", number(0), "lr_scheduler = StepLR needs it", required=True)),
    "multisteplr": (Key("lr_milestones", list_of(whole(1)), "lr_scheduler = MultiStepLR needs it", required=True),
                    Key("lr_gamma", number(0), "lr_scheduler = MultiStepLR needs it", required=True)),
    "polynomiallr": (Key("lr_power", number(0), "lr_scheduler = PolynomialLR needs it", required=True),),
    "cosineannealinglr": (Key("lr_min", number(0), "the last rate", 0),),
    "reducelronplateau": (
        Key("ReduceLROnPlateau_patience", number(0), "lr_scheduler = ReduceLROnPlateau needs it", required=True),
        Key("lr_gamma", number(0, 1, below=True), "lr_scheduler = ReduceLROnPlateau needs it", required=True)),
}  # fmt: skip

# [network], PyMIC's
NETWORK_KEYS = (
    Key("net_type", anything(), "such as PCTNet", required=True),
    Key("class_num", whole(1), "channels of each output", required=True),
    Key("in_chns", whole(1), "channels of its input; by default modal_num"),
    INFLATION_KEY,
)

# PyMIC's further keys, each where PyMIC reads it; those whose default is in PyMIC's code say it
TEXT = text()
OTHER_DATASET_KEYS = (
    Key("task_type", one_of("seg", "rec"), "seg, or rec for a reconstruction", required=True),
    Key("supervise_type", one_of("fully_sup", "self_sup", "semi_sup", "weak_sup", "noisy_label"), "self_sup for a "
        "pretraining", "fully_sup"),
    Key("patch_size", list_of(either(whole(1), none()), 3), "the size of crops, Pad and the windows of validations "
        "where their own keys are not there"),
    Key("test_dir", path("a folder"), "the folder of the test's images; by default train_dir"),
    Key("test_csv", path("a csv file"), "their list; by default every image of that folder"),
    Key("test_transform", list_of(TEXT), "the transforms of an image to test"),
    Key("test_batch_size", whole(1), "images at once in a test", 1, none_is_absent=False),
    *(Key(f"{stage}_dim", one_of(2, 3), "axes of the images in .h5 files", 3, none_is_absent=False)
      for stage in ("train", "valid", "test")),
    *(Key(f"{stage}_label_key", TEXT, "the column, or the key in .h5 files, of the labels", "label",
          none_is_absent=False) for stage in ("train", "valid", "test")),
    *(Key(f"{stage}_label", flag(), "whether there are labels", True) for stage in ("train", "valid")),
    Key("allow_missing_modal", flag(), "zeros where the file of a modality is not there", False),
)  # fmt: skip
OTHER_TRAINING_KEYS = (
    Key("deterministic", flag(), "seed every generator with random_seed", True, none_is_absent=False),
    Key("ckpt_prefix", TEXT, "what the names of checkpoints begin with; by default the name of ckpt_dir"),
    Key("nesterov", flag(), "of SGD", True, none_is_absent=False),
    Key("mixup_probability", number(0, 1), "of a batch whose samples are mixed", 0.0, none_is_absent=False),
    Key("class_weight", list_of(number(0)), "of each class in the loss"),
    Key("deep_supervise_weight", list_of(number(0)), "of each output in the loss"),
    Key("deep_supervise_mode", one_of(0, 1, 2), "how the label gets the size of each output", 2, none_is_absent=False),
    Key("loss_acti_func", one_of("softmax", "sigmoid", "tanh"), "what the loss applies to the outputs", "softmax"),
)  # fmt: skip
LOSS_KEYS = {
    "FocalDiceLoss": (Key("FocalDiceLoss_beta", number(1), "the loss needs it", required=True),),
    "NoiseRobustDiceLoss": (Key("NoiseRobustDiceLoss_gamma", number(1, 2), "the loss needs it", required=True),),
    "ExpLogLoss": (Key("ExpLogLoss_w_dice", number(0, 1), "the loss needs it", required=True),
                   Key("ExpLogLoss_gamma", number(0), "the loss needs it", required=True)),
    "ARSTverskyLoss": (Key("ARSTversky_patch_size", list_of(whole(1), 3), "the loss needs it", required=True),
                       Key("ARSTversky_a", number(0), "least weight", 0.3, none_is_absent=False),
                       Key("ARSTversky_b", number(0), "range of weights", 0.4, none_is_absent=False)),
    "GeneralizedCELoss": (Key("loss_gce_q", number(0, 1), "exponent", 0.5, none_is_absent=False),),
    "SLSRLoss": (Key("slsrloss_epsilon", number(0, 1), "smoothing", 0.25, none_is_absent=False),),
}  # fmt: skip

# [testing], PyMIC's, beside those of the inference
TESTING_KEYS = (
    Key("gpus", list_of(whole(0)), "the CUDA device, such as [0]", required=True),
    Key("ckpt_mode", one_of(0, 1, 2, 3), "0: the last checkpoint; 1: the best; 2: ckpt_name; 3: the mean of several",
        required=True, none_is_absent=False),
    Key("ckpt_name", either(path("a checkpoint"), list_of(path("checkpoints"))), "for ckpt_mode = 2; a list for 3"),
    Key("output_dir", path("a folder"), "the folder for segmentations", required=True),
    Key("evaluation_mode", flag(), "False: as in training", True, none_is_absent=False),
    Key("test_time_dropout", flag(), "dropout in the test too", False, none_is_absent=False),
    Key("save_probability", flag(), "the probabilities of each class too", False, none_is_absent=False),
    Key("post_process", one_of("KeepLargestComponent"), "what is done to a segmentation"),
    Key("KeepLargestComponent_mode", one_of(1, 2), "1: of all classes together; 2: of each", 1, none_is_absent=False),
    Key("label_source", list_of(whole(0)), "classes, which are written as label_target says"),
    Key("label_target", list_of(whole(0)), "the numbers to write for label_source"),
    Key("filename_ignore_dir", flag(), "names of segmentations without folders", True, none_is_absent=False),
    Key("filename_replace_source", TEXT, "a part of the names that is replaced"),
    Key("filename_replace_target", TEXT, "what replaces it"),
)  # fmt: skip
METHOD_KEYS = (Key("method_name", name_of(*METHODS), "the method of the pretraining", required=True),)

BY_NAME = {key.name: key for key in (*SAMPLE_KEYS, *DATASET_KEYS, *TRAINING_KEYS, *NETWORK_KEYS, *OTHER_DATASET_KEYS)}


def key_tables(name: str) -> dict[str, tuple[Key, ...]]:
    """The keys of a method or a network of ours, or ``inference``, by what they are for.

    Args:
        name: a method's, a network's, ``inference``, or ``PyMIC`` for its further keys.
    """
    if name == "inference":
        return {"[testing] of the inference": INFERENCE_KEYS}
    if name in NETWORKS:
        return {
            f"[network] of {name}": NETWORKS[name].keys,
            "[network] of how it is run": EXECUTION_KEYS,
            "[network] of what it starts from": (INFLATION_KEY,),
        }
    if name == "PyMIC":
        losses = tuple(key for keys in LOSS_KEYS.values() for key in keys)
        return {
            "further [dataset] of PyMIC": OTHER_DATASET_KEYS,
            "[dataset] of PyMIC's transforms": tuple(key for keys in TRANSFORM_KEYS.values() for key in keys),
            "further [training] of PyMIC": OTHER_TRAINING_KEYS,
            "[training] of PyMIC's losses": losses,
            "[testing] of PyMIC": TESTING_KEYS,
        }
    return {
        f"[dataset] of {name}": method_class(name).keys,
        "[dataset] of every method": SAMPLE_KEYS,
        "[dataset] of PyMIC, as a pretraining reads it": DATASET_KEYS,
        "[training] of interrupted runs": RUN_KEYS,
        "[training] of PyMIC": tuple(key for key in TRAINING_KEYS if key not in RUN_KEYS),
    }
