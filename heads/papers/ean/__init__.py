"""EAN, Event Adaptive Network (IJCV 2022): its Sparse Object Interaction Transformer.

    regions           saliency maps, tiles and boxes as weights of cells
    transformer       its layers
    sparse_objects    the whole, from a map to a vector

`heads.zoo.ean` is the head; the blocks of the trunk are in `pipeline.backbones`.
"""

from pipeline.lazy_names import load_lazily

_HOMES = {
    "ObjectsAdded": "sparse_objects",
    "SparseObjects": "sparse_objects",
    "new_objects": "sparse_objects",
}

__all__ = list(_HOMES)
__getattr__ = load_lazily(__name__, _HOMES)
