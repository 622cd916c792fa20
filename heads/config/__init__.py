"""Recipes and studies: TOML files that become checked dataclasses.

This room may import from `heads.zoo`. The files of the package are in heads/recipes and
heads/studies.

    recipe            read and write a recipe
    recipe_tables     its tables but [train]: head, data, evaluation, phases
    training_options  its table [train]
    study_file        a study: a grid of trainings
    study_keys        the keys of a study, and what each of them sets
    member            one run of a study
"""

from pipeline.lazy_names import load_lazily

_HOMES = {
    "Member": "member",
    "Recipe": "recipe",
    "StudyPlan": "study_file",
    "Training": "training_options",
    "read_recipe": "recipe",
    "read_study": "study_file",
    "recipe_from": "recipe",
    "recipe_names": "recipe",
    "study_names": "study_file",
}
__all__ = list(_HOMES)
__getattr__ = load_lazily(__name__, _HOMES)
