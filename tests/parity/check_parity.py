"""Compare vidgraph with stored results of other code: `python check_parity.py FILE.npz ...`

A file holds one case: `input/*`, `state/*` (weights under vidgraph's own names), `output/*` (what
the release, or a plain numpy version of the paper, returned) and `about`. `about` is a JSON text.
It says how to build vidgraph's side, where the numbers come from, and the `tolerance`. README.md
describes the files.

The script prints max |a - b| / max |b| for each output. Its exit status is 1 if a difference
exceeds the tolerance or a case cannot run.

Cases name modules and classes as they were at one commit. `names.py` says where these are today.
"""

import json
import sys
from importlib import import_module
from types import SimpleNamespace

import numpy as np
import torch
from names import current_name

# Stand-ins for random numbers: always the lowest number below n, or always the highest.
DRAWS = {
    "low": SimpleNamespace(below=lambda n: 0),
    "high": SimpleNamespace(below=lambda n: n - 1),
}


def read(path):
    """Read a case.

    Returns:
        `about`, and the arrays {"input": {name: array}, "state": ..., "output": ...,
        "release_state": ...}.
    """
    groups = {"input": {}, "state": {}, "output": {}, "release_state": {}}
    with np.load(path, allow_pickle=False) as file:
        about = json.loads(str(file["about"]))
        for key in file.files:
            if "/" in key:
                group, name = key.split("/", 1)
                groups[group][name] = file[key]

    # Weights that are too large to store are drawn again. They are whole numbers divided by a
    # power of two, so they are exact. NumPy promises that a RandomState's numbers never change.
    for group, spec in about.get("generated", {}).items():
        for k, (name, shape, low, high, denominator) in enumerate(spec["entries"]):
            draw = np.random.RandomState(spec["seed"] * 100003 + k)
            groups[group][name] = draw.randint(low, high, tuple(shape)) / denominator

    # Where the two networks are laid out differently, vidgraph's weights come from the release's.
    for name, how in about.get("from_release", {}).items():
        value = groups["release_state"][how["from"]]
        if "slice" in how:
            value = value[slice(*how["slice"])]
        if "permute" in how:
            value = value.reshape(how["shape"]).transpose(how["permute"])
        groups["state"][name] = value.reshape(how["final"])

    # Weights that the release does not have: a norm's gain and variance are 1, the others are 0.
    for name, shape in about.get("unmatched", {}).items():
        is_gain = len(shape) == 1 and name.endswith("weight")
        is_one = is_gain or name.endswith("running_var")
        groups["state"][name] = np.full(shape, float(is_one))
    return about, groups


def find(where):
    """Import what was "package.module:name" when the cases were stored."""
    module, name = current_name(where).split(":")
    return getattr(import_module(module), name)


def made(value):
    """Turn a JSON value into an argument.

    A list becomes a tuple. {"class", "args", "kwargs"} becomes an object of that class.
    """
    if isinstance(value, dict):
        args = [made(arg) for arg in value["args"]]
        return find(value["class"])(*args, **value["kwargs"])
    return tuple(value) if isinstance(value, list) else value


def loaded(module, state, prefix=""):
    """Load the weights whose names begin with `prefix`; return the module in float64, eval mode.

    The weights must be exactly those of the module.
    """
    own = {}
    for name, value in state.items():
        if name.startswith(prefix):
            own[name.removeprefix(prefix)] = torch.as_tensor(value)
    if state:  # some modules have no weights
        module.load_state_dict(own, strict=True)
    return module.double().eval()


def head_of(about, state, prefix=""):
    """Build the head of a case, with its weights."""
    sizes = {"T": 0, "N": 0, "C": 0, "maps": {}} | about["dims"]
    sizes["maps"] = {cut: tuple(size) for cut, size in sizes["maps"].items()}
    dims = find("heads.batch:Dims")(**sizes)
    build_head = find("heads.zoo:build_head")
    head = build_head(about["head"], dims, about["num_classes"], **about["options"])
    return loaded(head, state, prefix)


def gradients(named):
    """{"gradient/NAME": gradient} of the named tensors that have one."""
    return {f"gradient/{name}": tensor.grad for name, tensor in named if tensor.grad is not None}


def run_head(about, inputs, state):
    """Run a head on a batch.

    With the input `labels`, the outputs include the gradients of the cross-entropy plus the head's
    own losses.
    """
    labels = inputs.pop("labels", None)
    head = head_of(about, state)
    out = head(find("heads.batch:clips_of")(inputs, dtype=None), want_maps=True)

    found = {"logits": out.logits}
    found |= {f"losses/{name}": loss for name, loss in out.losses.items()}
    found |= {f"maps/{name}": tensor for name, tensor in out.maps.items()}
    if labels is not None:
        loss = torch.nn.functional.cross_entropy(out.logits, labels) + sum(out.losses.values())
        loss.backward()
        found |= gradients(head.named_parameters())
    return found


def run_gos_operation(about, inputs, state):
    """Run one of GOS's operations on the nodes of a view.

    With the input `upstream`, the outputs include the gradients that follow from it.
    """
    sizes = find("heads.affinity:Sizes")(**about["sizes"])
    choices = find("heads.affinity:Choices")("gos", **about["options"])
    new_operation = find("heads.operations:new_operation")
    operation = loaded(new_operation(about["operation"], sizes, choices), state)

    x, y, valid = inputs["x"].requires_grad_(), inputs["y"].requires_grad_(), inputs["valid"]
    scene = find("heads.scene:Scene")(
        valid,
        y=y,
        layout=find("heads.scene:layout_of")(inputs["boxes"]),
        cells=torch.ones(y.shape[::2], dtype=torch.bool),
    )
    out = operation(x, scene)

    # The row of a padded node has no meaning.
    found = {"nodes": torch.where(valid[..., None], out, 0)}
    if "upstream" in inputs:
        out.backward(inputs["upstream"])
        found |= gradients([("x", x), ("y", y), *operation.named_parameters()])
    return found


def run_module(about, inputs, state):
    """Run a module on all inputs, in the order of the file.

    The module is `class` built from `args` and `kwargs`, or the part `part` of a backbone.
    """
    if "backbone" in about:
        build_backbone = find("pipeline.backbones:build_backbone")
        whole = build_backbone(about["backbone"], **about["options"])
        module = loaded(whole.get_submodule(about["part"]), state, about["part"] + ".")
    else:
        module = loaded(made({name: about[name] for name in ("class", "args", "kwargs")}), state)

    out = module(*inputs.values())
    if "attribute" in about:
        out = getattr(out, about["attribute"])
    if "first" in about or "every" in about:  # only some channels of a large map are stored
        out = out[:, : about.get("first") : about.get("every")]
    outputs = out if isinstance(out, tuple) else (out,)
    return dict(zip(about["returns"], outputs, strict=True))


def run_dyreg(about, inputs, state):
    """Run DyReg's module from map to map.

    The outputs are the map, its regions, and its nodes before and after the graph.
    """
    spec = {
        "class": "heads.dyreg_module:DyReg",
        "args": about["args"],
        "kwargs": about["kwargs"],
    }
    module = loaded(made(spec), state)
    module.record = []
    found = {"y": module(inputs["x"])}
    found |= vars(module.record[0])

    inner = inputs["x"].transpose(1, 2)
    if module.enter is not None:
        inner = module.enter(inner.flatten(0, 1)).unflatten(0, inner.shape[:2])
    nodes = module.nodes(inner, found["kernels"])
    return found | {"nodes": nodes, "graph": module.graph(nodes)}


def run_ean(about, inputs, state):
    """Run the backbone ean_r50 and the head ean behind it.

    The outputs are logits, saliency maps, and the mean of each map over steps and grid.
    """
    build_backbone = find("pipeline.backbones:build_backbone")
    trunk = build_backbone(about["backbone"], **about["backbone_options"])
    for name, value in trunk.state_dict().items():
        if name.startswith("pixel_"):  # constants of the input: the release has no such weights
            state[f"trunk.{name}"] = value
    maps = loaded(trunk, state, "trunk.").maps(inputs["frames"], about["cuts"])

    clips = find("heads.batch:clips_of")({"res5": maps["res5"].transpose(1, 2)}, dtype=None)
    out = head_of(about, state, "head.")(clips, want_maps=True)
    means = {f"means/{cut}": tensor.mean((2, 3, 4)) for cut, tensor in maps.items()}
    return {"logits": out.logits, "regions": out.maps["regions"], **means}


def run_table(about, inputs, state):
    """Call a function once for each output.

    `calls` holds [arguments, keyword arguments] by output. The argument "@x" stands for the input
    x. The keyword `draws` is "low" or "high".
    """
    found = {}
    own = {f"@{name}": tensor for name, tensor in inputs.items()}
    function = find(about["function"])
    for name, (args, kwargs) in about["calls"].items():
        call_args = []
        for arg in args:
            is_input = isinstance(arg, str) and arg in own
            call_args.append(own[arg] if is_input else made(arg))
        call_kwargs = {}
        for key, value in kwargs.items():
            call_kwargs[key] = DRAWS.get(value) if key == "draws" else made(value)

        out = function(*call_args, **call_kwargs)
        if "returns" in about:
            found |= dict(zip(about["returns"], out, strict=True))
        else:
            found[name] = torch.as_tensor(out)
    return found


RUNNERS = {
    "head": run_head,
    "gos_operation": run_gos_operation,
    "module": run_module,
    "dyreg": run_dyreg,
    "ean": run_ean,
    "table": run_table,
}


def difference(got, want):
    """max |got - want| / max |want|; infinite where `got` is missing or has another shape."""
    got = np.float64(np.nan if got is None else got.detach().numpy())
    want = want.astype(np.float64)
    if got.shape != want.shape or not np.array_equal(np.isnan(got), np.isnan(want)):
        return float("inf")
    largest = np.nanmax(np.abs(want), initial=0)
    return float(np.nanmax(np.abs(got - want), initial=0) / max(largest, 1e-300))


def check(path):
    """Run one case.

    Returns:
        {output: (difference, tolerance)}.

    Raises:
        Exception: whatever vidgraph raises where it cannot run the case.
    """
    about, groups = read(path)
    before = torch.get_default_dtype()
    # Modules make their constants in the default dtype.
    torch.set_default_dtype(getattr(torch, about.get("default_dtype", "float64")))
    try:
        inputs = {name: torch.from_numpy(np.array(a)) for name, a in groups["input"].items()}
        found = RUNNERS[about["run"]](about, inputs, groups["state"])
    finally:
        torch.set_default_dtype(before)

    results = {}
    for name, want in groups["output"].items():
        most = about["tolerances"].get(name, about["tolerance"])
        results[name] = (difference(found.get(name), want), most)
    return results


def main(paths):
    """Check the files, print a line for each output; return the exit status."""
    failed = []
    for path in paths:
        results = {}
        try:
            results = check(path)
        except Exception as problem:  # the case fails, the others continue
            text = " ".join(str(problem).split())[:200]
            print(f"FAIL {path} cannot run: {type(problem).__name__}: {text}")
        if not results or any(not d <= most for d, most in results.values()):
            failed.append(path)
        for name, (d, most) in results.items():
            print(f"{'ok  ' if d <= most else 'FAIL'} {path} {name} {d:.1e} (tolerance {most:.0e})")

    print(f"{len(paths) - len(failed)} of {len(paths)} cases agree")
    for path in failed:
        print(f"  differs: {path}")
    return 1 if failed or not paths else 0


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(main(sys.argv[1:]))
