"""The commands of `python -m groupdetr_d2`, a module each.

The first line of a module's docstring is its help.
"""
