"""All that knows PyMIC's insides: how it finds this package, its gaps, its agents, checkpoints and config keys."""
