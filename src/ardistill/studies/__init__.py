"""Whole experiments: the quickstart, and studies that train and compare the arms of a recipe."""

from ardistill.studies.compare_recipe import compare_recipe
from ardistill.studies.quickstart import quickstart
from ardistill.studies.recipe import Recipe
from ardistill.studies.study import Study

__all__ = ["Recipe", "Study", "compare_recipe", "quickstart"]
