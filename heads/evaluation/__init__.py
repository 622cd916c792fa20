"""Evaluate heads: predictions, metrics, ensembles, and the cost of a network.

This room may import from `heads.interface`, `heads.zoo`, `heads.config`, `heads.data` and
`heads.runs`.

    evaluate          a trained run on a split of a cache
    evaluation_files  what it writes to the run folder
    file_names        the labels and splits of an evaluation, and its files' names
    head_predictor    the logits of every view, the figures of a split
    saved_heads       load a trained head from its run folder
    one_structure     a head of GOS with one structure for all videos
    per_class         the figures of single classes
    metrics           top-k, mean average precision, confusion matrix
    ensemble          add the scores of several runs
    prediction_files  read predictions_SPLIT.npz
    view_check        a head can read the views of every split
    counting          parameters and multiply-accumulates
    summary           what `vidgraph summary NAME` counts

Two functions have the name of their module: `heads.evaluation.evaluate.evaluate` and
`heads.evaluation.ensemble.ensemble`.
"""

from pipeline.lazy_names import load_lazily

_HOMES = {
    "HeadPredictor": "head_predictor",
    "NetworkCount": "counting",
    "Predictions": "head_predictor",
    "TrainedHead": "saved_heads",
    "VideoScores": "ensemble",
    "compute_figures": "head_predictor",
    "count_backbone": "counting",
    "count_head": "counting",
    "count_named": "summary",
    "load_run": "saved_heads",
    "load_trained": "saved_heads",
    "predict": "saved_heads",
    "predict_all": "head_predictor",
    "read_predictions": "prediction_files",
    "scores_of_run": "ensemble",
    "summarise": "metrics",
}
__all__ = list(_HOMES)
__getattr__ = load_lazily(__name__, _HOMES)
