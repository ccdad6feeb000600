"""DeepAVFusion: a transformer that fuses audio and video from its first layer (Mo & Morgado, CVPR 2024)."""

from deepavfusion.utils.launch.launcher import name_user

name_user()  # before anything imports torch
