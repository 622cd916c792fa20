"""Studies: grids of trainings for `vidgraph ablate`; the demo's."""
