"""Recipes: functions that return a `dalle2_video.config.Recipe`; one file each, named like the recipe."""
