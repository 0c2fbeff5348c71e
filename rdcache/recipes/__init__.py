"""Recipes: a YAML file that names a grid of teachers × datasets × students × methods × seeds.

A recipe holds no code: its `extract` and `distill` parts are the options of the two commands.
Running one does both phases for every cell of the grid; stores and runs that are finished already
are taken as they are, so that an interrupted recipe goes on where it stopped.
"""

from rdcache.recipes.cell_rows import rows_of_cells
from rdcache.recipes.loading import load_recipe, shipped_recipe
from rdcache.recipes.places import Places
from rdcache.recipes.recipe import Overrides, Recipe, Tuning, Variant
from rdcache.recipes.running import Cell, run_recipe
from rdcache.recipes.tuning import Trial, Tuned

__all__ = [
    "Cell",
    "Overrides",
    "Places",
    "Recipe",
    "Trial",
    "Tuned",
    "Tuning",
    "Variant",
    "load_recipe",
    "rows_of_cells",
    "run_recipe",
    "shipped_recipe",
]
