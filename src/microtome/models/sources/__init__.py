"""Sources of models, one file each: `microtome.models.SOURCES` lists them, `microtome.models.base` says what one is."""
