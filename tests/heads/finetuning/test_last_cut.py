"""A head that reads the last map reads that of the cache, also behind its backbone."""

from heads.config.recipe import read_recipe
from heads.finetuning.finetune import _with_cut_of
from heads.interface.clips import Dims


def test_the_last_map_is_the_one_that_the_cache_holds():
    recipe = read_recipe("dyreg")
    cached = Dims(T=8, C=2048, maps={"res4": (1024, 14, 14)})
    assert _with_cut_of(recipe, cached).head.options["cut"] == "res4"
    # Without a map in the cache, it is the backbone's last.
    assert _with_cut_of(recipe, Dims(T=8, C=2048)) == recipe
    # A head that names its map keeps it.
    named = read_recipe("dyreg", {"head.cut": "res3"})
    assert _with_cut_of(named, cached) == named
