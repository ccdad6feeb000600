"""DeepAVFusion: a transformer that fuses sound and picture from its first layer (Mo & Morgado, CVPR 2024)."""
