"""vLLM: the plugin that records in its workers, and the routes that switch it."""
