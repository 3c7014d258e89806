"""The pretraining methods, each a pure file: crops and a generator in, the network's input and target out."""
