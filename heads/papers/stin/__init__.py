"""Something-Else's interaction network (Materzynska et al., CVPR 2020).

objects       the boxes of a view, sorted into one slot for each object
interaction   the layers on these slots: of a box, between boxes, over time, between objects
"""
