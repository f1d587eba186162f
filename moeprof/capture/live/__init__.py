"""Recording of engines that serve: what is asked of them, the same for each."""
