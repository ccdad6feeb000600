"""Uploads a folder to the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path

from deepavfusion.utils.errors import UserError
from deepavfusion.weights.guard import COMMIT, Refused, guarded
from deepavfusion.weights.hub import CARD, CONFIG, MODEL, Address, address_of, asked, endpoint, library, place


def target_of(text: str) -> Address:
    """The address that a folder is pushed to.

    Raises:
        UserError: it is none, or names a revision.
    """
    address = address_of(text)
    if address is None or address.revision:
        raise UserError(f"push={text} is no repository of the Hugging Face Hub: expected push=hf://owner/name.")
    return address


def check_upload(address: Address) -> None:
    """Check what an upload needs, before anything is written.

    Raises:
        UserError: huggingface_hub is not installed, or there is no token.
    """
    if not library(f"push={address}").get_token():
        raise UserError(
            f"push={address} needs a token that may write, and there is none: set HF_TOKEN in the environment, or log "
            "in with hf auth login."
        )


def upload(folder: Path, address: Address, private: bool = False) -> Address:
    """Upload what `convert.py` wrote into a folder, in one commit; the repository is made if it is not there.

    Args:
        folder: with `model.safetensors` and `config.json`, and README.md if there is one.
        address: without a revision.
        private: whether only its owner may see it.

    Returns:
        The address with the commit.

    Raises:
        UserError: see `weights.hub.refusal`; or there is a public repository of this name, and `private` was asked for.
    """
    hub = library(f"push={address}")
    api = hub.HfApi(endpoint=endpoint())
    with asked(f"push={address}"), guarded():
        api.create_repo(address.repo, private=private, exist_ok=True)
        if private and api.model_info(address.repo, timeout=10.0).private is not True:
            raise UserError(
                f"push={address} is a public repository, and private=true was given: nothing was uploaded; choose "
                "another name, or make it private on its page."
            )
        names = [name for name in (MODEL, CONFIG, CARD) if (folder / name).is_file()]
        commit = api.create_commit(
            address.repo,
            operations=[hub.CommitOperationAdd(path_in_repo=name, path_or_fileobj=folder / name) for name in names],
            commit_message="Weights, written by convert.py of DeepAVFusion",
        ).oid
        if not COMMIT.fullmatch(str(commit)):
            raise Refused(f"names the commit {commit!a:.60}, expected 40 hexadecimal digits")
    return Address(address.repo, commit)


def uploaded_words(address: Address) -> str:
    """A line on where a folder was uploaded to."""
    return f"uploaded to {place()}/{address.repo}, as {address}"
