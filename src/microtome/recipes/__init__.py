"""Recipes: named chains of methods. A recipe is checked before it runs, and what it did is kept with the network."""

from microtome.recipes.chain import Data, Recipe, run
from microtome.recipes.named import MIXED_WIDTHS, RECIPES, Plan, recipe
from microtome.recipes.settings import FORMATS, Settings

__all__ = ["FORMATS", "MIXED_WIDTHS", "RECIPES", "Data", "Plan", "Recipe", "Settings", "recipe", "run"]
