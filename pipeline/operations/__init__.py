"""Operations that wait for each other: migrations, memory changes, and the work that others announce."""
