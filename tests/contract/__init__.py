"""One suite over every object store: what each must do, and how those look that do not."""
