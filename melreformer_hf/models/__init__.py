"""The families, a folder each; no family knows another.

`configuration_<name>` has the sizes, `modeling_<name>` the model (outputs, layers, base class, public model),
`weights_<name>` the names of the original's checkpoints, and further files the blocks that only this family uses.
"""
