"""Figures for notebooks and the report: functions take data and return a Figure. Only this package draws."""

from cassl_lib.plotting.charts import class_tail, curves, loss_curves, score_histogram, threshold_curves
from cassl_lib.plotting.comparison import compare_detections, demo_picture
from cassl_lib.plotting.errors import MARK_LINES, show_errors
from cassl_lib.plotting.illustrations import Example, entities_figure, stages_figure
from cassl_lib.plotting.images import label_panel, show_images, show_instances, show_positives, side_by_side
from cassl_lib.plotting.joint import joint_training_figure
from cassl_lib.plotting.lengths import length_chart
from cassl_lib.plotting.panoptic import show_entities, show_panoptic
from cassl_lib.plotting.pipeline import pipeline_figure
from cassl_lib.plotting.precision_recall import match_curve, precision_recall, scores_by_match
from cassl_lib.plotting.style import COLORS, Figure, png_bytes, save_png
from cassl_lib.plotting.tables import compare_rows, table_chart, table_curves

__all__ = [
    "COLORS",
    "MARK_LINES",
    "Example",
    "Figure",
    "class_tail",
    "compare_detections",
    "compare_rows",
    "curves",
    "demo_picture",
    "entities_figure",
    "joint_training_figure",
    "label_panel",
    "length_chart",
    "loss_curves",
    "match_curve",
    "pipeline_figure",
    "png_bytes",
    "precision_recall",
    "save_png",
    "score_histogram",
    "scores_by_match",
    "show_entities",
    "show_errors",
    "show_images",
    "show_instances",
    "show_panoptic",
    "show_positives",
    "side_by_side",
    "stages_figure",
    "table_chart",
    "table_curves",
    "threshold_curves",
]
