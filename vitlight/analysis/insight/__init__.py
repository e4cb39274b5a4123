"""What a trained network has learned, seen from inside: attention, filters, position embeddings, receptive fields.

Runs networks, and knows nothing of runs, files of images or W&B. Imported by commands and by training; imports `models`.
"""

from vitlight.analysis.insight.attention import Rollout, attention_distance, attention_entropy, rollout
from vitlight.analysis.insight.biases import relative_biases
from vitlight.analysis.insight.capture import attention_layers, capture_attention
from vitlight.analysis.insight.filters import first_filters, principal_components
from vitlight.analysis.insight.insight import SECTIONS, Insight, inspect_network
from vitlight.analysis.insight.positions import position_similarity
from vitlight.analysis.insight.receptive_field import effective_receptive_fields, mass_radius
from vitlight.analysis.insight.write import write_insight

__all__ = [
    "SECTIONS",
    "Insight",
    "Rollout",
    "attention_distance",
    "attention_entropy",
    "attention_layers",
    "capture_attention",
    "effective_receptive_fields",
    "first_filters",
    "inspect_network",
    "mass_radius",
    "position_similarity",
    "principal_components",
    "relative_biases",
    "rollout",
    "write_insight",
]
