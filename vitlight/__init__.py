"""vitlight: model-size x dataset-size sweeps of ViT, CoAtNet and CNNs, with exact accounting."""

__version__ = "0.1.0"
