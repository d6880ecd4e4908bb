"""The commands of `python -m groupdetr_d2`, a module each; its docstring's first line is its help."""
