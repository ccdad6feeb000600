"""Plain networks: they need torch and timm's layers, nothing of Lightning, Hydra or a decoder."""
