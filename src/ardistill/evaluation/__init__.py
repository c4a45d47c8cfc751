"""How good a sampler is and how close to its teacher: feature networks, distances, comparisons, pictures, reports."""

from ardistill.evaluation.compare_samplers import compare_samplers
from ardistill.evaluation.compare_students import compare_students, measure_students, trajectories_of
from ardistill.evaluation.comparison import Comparison
from ardistill.evaluation.cost import count_macs, latency_ms
from ardistill.evaluation.diagnostics import distance_to_samples, distance_to_solver, exposure_bias, solver_samples
from ardistill.evaluation.draw_samples import draw_samples
from ardistill.evaluation.evaluate import evaluate
from ardistill.evaluation.features import FeatureNetwork, ModuleFeatures, extract_features, feature_network
from ardistill.evaluation.grids import ValidationGrid, trajectory_grid, validation_grid
from ardistill.evaluation.headlines import Headline
from ardistill.evaluation.judge import Judge
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
from ardistill.evaluation.plots import critic_plot, exposure_bias_plot, sample_grid
from ardistill.evaluation.report import write_report
from ardistill.evaluation.runs import evaluation_folder, is_run, run_of
from ardistill.evaluation.sampler import Sampler
from ardistill.evaluation.tables import arm_label, format_table, markdown_table

__all__ = [
    "BootstrapInterval",
    "Comparison",
    "FeatureNetwork",
    "FeatureStatistics",
    "Headline",
    "Judge",
    "KernelDistance",
    "ModuleFeatures",
    "PairedDistance",
    "PrecisionRecall",
    "RealFloor",
    "Sampler",
    "ValidationGrid",
    "arm_label",
    "class_accuracy",
    "compare_samplers",
    "compare_students",
    "count_macs",
    "critic_plot",
    "distance_to_samples",
    "distance_to_solver",
    "draw_samples",
    "evaluate",
    "evaluation_folder",
    "exposure_bias",
    "exposure_bias_plot",
    "extract_features",
    "feature_network",
    "format_table",
    "frechet_distance",
    "is_run",
    "kernel_distance",
    "latency_ms",
    "markdown_table",
    "measure_students",
    "paired_bootstrap",
    "paired_distance",
    "precision_recall",
    "predict_labels",
    "real_floor",
    "run_of",
    "sample_grid",
    "solver_samples",
    "trajectories_of",
    "trajectory_grid",
    "validation_grid",
    "write_report",
]
