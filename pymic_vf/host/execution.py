"""To come."""

from pymic_vf.keys import Key, flag, one_of

EXECUTION_KEYS = (
    Key("precision", one_of("fp32", "bf16"), "x", "fp32"),
    Key("compile", flag(), "x", False),
    Key("activation_checkpointing", flag(), "x", False),
)
