"""Train heads on a cache: one recipe, or a study of many in shared passes.

This room may import from every room of `heads` but `finetuning`, `drawing`, `reporting` and
`reproduction`.

    train         the training loop: start reading here
    training_run  one run at work: its folder, its phases, its learner
    phase_start   the weights and the teachers that a phase begins with
    run_description  what run.json and metrics.json hold of any run
    decisions     what a head decides for every view, from validation to validation
    head_builder  the heads of a run's phases, and their teachers
    learner       one head with its optimisers, schedule and progress
    optimisers    parameter groups, a second optimiser, averaged weights
    loss_watch    losses that are not finite, without waiting for a GPU at every mini-batch
    stacked_runs  which runs are trained as one
    stacked_learner  several learners as one, for a pass over the cache
    stacked_optimiser  SGD, Adam and AdamW with rates of their own for every member
    stacked_dropout  the masks that each member would draw alone
    study         what the runs of a study share; results and failures
    ablate        all members of a study, here or on other machines
    estimates     check the members of a study, estimate their cost, group them
    study_table   the table of a study
    folds         a study on every fold of a cross-validation
    cache_conditions  whether a cache can serve a study

Two functions have the name of their module: `heads.training.train.train` and
`heads.training.ablate.ablate`.
"""

from pipeline.lazy_names import load_lazily

_HOMES = {
    "AblateOptions": "estimates",
    "Failure": "study",
    "HeadBuilder": "head_builder",
    "Learner": "learner",
    "MemberEstimate": "estimates",
    "Optimisers": "optimisers",
    "Result": "study",
    "Study": "study",
    "StudyTable": "study_table",
    "TrainingRun": "training_run",
    "estimate_members": "estimates",
    "run_members": "train",
}
__all__ = list(_HOMES)
__getattr__ = load_lazily(__name__, _HOMES)
