"""A first config from data files: `layout` finds their parts, `guess` the task, `text` writes, and `start` does all of it."""
