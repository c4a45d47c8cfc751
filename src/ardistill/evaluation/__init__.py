"""How good a sampler is, and how near to its teacher: feature networks, distances, pictures and the report."""

from ardistill.evaluation.comparison import Comparison, Judge, Sampler, compare
from ardistill.evaluation.diagnostics import (
    distance_to_solver,
    draw_samples,
    exposure_bias,
    trajectory_grid,
    validation_grid,
)
from ardistill.evaluation.features import FeatureNetwork, ModuleFeatures, extract_features, feature_network, load_images
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
from ardistill.evaluation.plots import adversarial_plot, exposure_bias_plot, sample_grid
from ardistill.evaluation.report import arm_label, format_table, write_report

__all__ = [
    "BootstrapInterval",
    "Comparison",
    "FeatureNetwork",
    "FeatureStatistics",
    "Judge",
    "KernelDistance",
    "ModuleFeatures",
    "PairedDistance",
    "PrecisionRecall",
    "RealFloor",
    "Sampler",
    "adversarial_plot",
    "arm_label",
    "class_accuracy",
    "compare",
    "distance_to_solver",
    "draw_samples",
    "exposure_bias",
    "exposure_bias_plot",
    "extract_features",
    "feature_network",
    "format_table",
    "frechet_distance",
    "kernel_distance",
    "load_images",
    "paired_bootstrap",
    "paired_distance",
    "precision_recall",
    "predict_labels",
    "real_floor",
    "sample_grid",
    "trajectory_grid",
    "validation_grid",
    "write_report",
]
