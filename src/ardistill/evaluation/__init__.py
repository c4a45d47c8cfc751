"""How good a sampler is, and how near to its teacher: feature networks, distances, pictures and the report."""

from ardistill.evaluation.features import FeatureNetwork, ModuleFeatures, extract_features, feature_network
from ardistill.evaluation.metrics import (
    BootstrapInterval,
    FeatureStatistics,
    KernelDistance,
    PairedDistance,
    PrecisionRecall,
    RealFloor,
    class_accuracy,
    frechet_distance,
    kernel_distance,
    paired_bootstrap,
    paired_distance,
    precision_recall,
    predict_labels,
    real_floor,
)
from ardistill.evaluation.plots import exposure_bias_plot, sample_grid
from ardistill.evaluation.report import arm_label, format_table, write_report

__all__ = [
    "BootstrapInterval",
    "FeatureNetwork",
    "FeatureStatistics",
    "KernelDistance",
    "ModuleFeatures",
    "PairedDistance",
    "PrecisionRecall",
    "RealFloor",
    "arm_label",
    "class_accuracy",
    "exposure_bias_plot",
    "extract_features",
    "feature_network",
    "format_table",
    "frechet_distance",
    "kernel_distance",
    "paired_bootstrap",
    "paired_distance",
    "precision_recall",
    "predict_labels",
    "real_floor",
    "sample_grid",
    "write_report",
]
