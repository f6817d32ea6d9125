"""An independent account of what a disk must hold: nothing here imports the code that it judges."""
