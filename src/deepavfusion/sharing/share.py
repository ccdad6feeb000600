"""A checkpoint as a folder with a model card, on the Hugging Face Hub if asked for: what `convert.py` does with one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from deepavfusion.config.rules import SPDX
from deepavfusion.sharing.card import write_card
from deepavfusion.sharing.folder import open_shared, write_folder
from deepavfusion.sharing.upload import check_upload, target_of, upload, uploaded_words
from deepavfusion.utils.errors import ArgumentError
from deepavfusion.weights.hub import CARD, CONFIG, MODEL, PICKLES

FILES = (*PICKLES, ".safetensors", ".onnx", ".pt2", ".json", ".npz")  # a name with such an end is no folder's


def is_folder_name(output: str) -> bool:
    """Whether an output is a folder, by its name unless it is there."""
    path = Path(output)
    return path.is_dir() or (not path.exists() and not output.lower().endswith(FILES))


def share(
    source: str,
    output: str,
    card: bool = False,
    license: str | None = None,
    push: str | None = None,
    private: bool = False,
) -> Iterator[str]:
    """Write a checkpoint as a folder; gives lines on what was done.

    Args:
        source: a checkpoint, see `weights.file.read_file`.
        output: the folder.
        card: whether with README.md.
        license: of the weights, for the card: an SPDX identifier in lower case, or another name like one.
        push: hf://owner/name, where it is uploaded to.
        private: whether only the owner of that may see it.

    Raises:
        UserError: see `write_folder`, `write_card` and `upload`; nothing is written where a push could not work.
    """
    if not (license is None or SPDX.holds(license)):
        raise ArgumentError(f"license is {license!r:.80}, expected {SPDX.expected}.")
    target = target_of(push) if push else None
    if target:
        check_upload(target)
    shared = open_shared(source)
    folder = write_folder(shared, Path(output))
    tensors = shared.content["state_dict"] if shared.record else shared.weights.tensors
    count = sum(tensor.numel() for tensor in tensors.values())
    yield f"{shared.origin}: {len(tensors)} tensors, {count / 1e6:.1f} M values"
    yield f"written to {folder}: {MODEL}, {CONFIG}"
    if card:
        yield f"  {write_card(shared, folder, license, target).name}: what is not recorded is said to be so; read it"
    elif (folder / CARD).exists():
        yield f"  {CARD} is as it was"
    if target:
        yield uploaded_words(upload(folder, target, private))
