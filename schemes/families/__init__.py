"""One file a family, and nothing else: the registry finds whatever lies here (schemes.registry)."""
