"""DeepAVFusion: a transformer that fuses audio and video from its first layer (Mo & Morgado, CVPR 2024)."""
