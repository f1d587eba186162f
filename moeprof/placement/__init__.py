"""Which GPU holds which expert: solvers, their judge, and the engines' own map files."""
