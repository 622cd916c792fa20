"""DyReg-GNN, Discovering Dynamic Salient Regions (NeurIPS 2021).

    kernels, generators, regions    where it looks
    graph                           what the nodes tell one another
    module                          the whole, from maps to maps
    distillation                    single-module networks teach one with several

`heads.zoo.dyreg` is the head.
"""

from pipeline.lazy_names import load_lazily

_HOMES = {
    "DyReg": "module",
    "Regions": "regions",
    "Teachers": "distillation",
    "build_regions": "regions",
    "distillation_loss": "distillation",
    "recorded": "module",
}

__all__ = list(_HOMES)
__getattr__ = load_lazily(__name__, _HOMES)
