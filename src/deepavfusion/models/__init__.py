"""Plain networks: they need torch and timm's layers, but neither Lightning nor Hydra nor a media decoder."""
