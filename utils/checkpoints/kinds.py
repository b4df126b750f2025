"""Recognize files that are mistaken for checkpoints by their first bytes."""

import re

from utils.files import DamagedError
from utils.messages import shown

HEAD = 512  # bytes that `require_checkpoint` needs
ZIP = b"PK\x03\x04"
_PICKLE = b"\x80"
_TEXT = re.compile(r"[^\0-\x08\x0e-\x1f\x7f\ufffd]*")

_BEGINNINGS = {
    b"version https://git-lfs": "a Git LFS pointer (fetch the file itself with git lfs pull)",
    b"<": "a web page (the download went wrong)",
    b"\x89PNG": "a picture",
    b"\xff\xd8\xff": "a picture",
    b"GIF8": "a picture",
    b"RIFF": "a RIFF file, such as a WebP picture",
    b"BM": "a picture",
    b"II*\0": "a picture",
    b"MM\0*": "a picture",
    b"\x1f\x8b": "a gzip archive (unpack it first)",
    b"BZh": "a bzip2 archive (unpack it first)",
    b"\xfd7zXZ": "an xz archive (unpack it first)",
    b"(\xb5/\xfd": "a zstd archive (unpack it first)",
    b"7z\xbc\xaf": "a 7z archive (unpack it first)",
    b"\x89HDF": "an HDF5 file",
    b"\x93NUMPY": "an array of NumPy",
    b"%PDF": "a PDF file",
}


def require_checkpoint(head: bytes, safetensors: bool) -> None:
    """ValueError where the first bytes are of a known other kind of file, or of the other format.

    DamagedError where they are neither those of a file of torch.save nor of a known other kind.
    """
    if not head:
        raise DamagedError("it is empty")
    saved = head.startswith((ZIP, _PICKLE))
    header = head[8:9] == b"{"  # after its length, in 8 bytes that may look like another beginning
    if header if safetensors else saved:
        return
    begin = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    kinds = [kind for beginning, kind in _BEGINNINGS.items() if begin.startswith(beginning)]
    if head[257:262] == b"ustar":
        kinds = ["a tar archive (unpack it first)"]
    if kinds:
        raise ValueError(f"it is {kinds[0]}")
    if saved:
        raise ValueError("it is a file of torch.save: give it a name that ends with .pth")
    if header:
        raise ValueError("it is a safetensors file: give it a name that ends with .safetensors")
    if not any(head):
        raise DamagedError("it begins with zeros, as a file that was not written to its end")
    text = head.decode(errors="replace").removesuffix("\ufffd")  # cut inside a letter
    if _TEXT.fullmatch(text):
        raise DamagedError(f"it is text and begins {shown(text.strip()[:40])}")
    format_ = "a .safetensors file" if safetensors else "a file of torch.save"
    raise DamagedError(f"it does not begin as {format_} does")
