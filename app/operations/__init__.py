"""Operations: the one kind of work that takes time, with state, steps and an outcome."""
