"""What a file is by its first bytes, if it is no image that CRAFT opens."""

LFS = b"version https://git-lfs.github.com/spec/"
"""How a Git LFS pointer starts."""

ANNEX = b"/annex/objects/"
"""How the pointer of an unlocked file of git-annex starts."""

POINTERS = {
    LFS: ("Git LFS pointer", "Fetch the files with `git lfs pull`"),
    ANNEX: ("git-annex pointer", "Fetch the files with `git annex get .`"),
}
"""The first bytes of a file that stands for another -> (what it is, what to do)."""

CONVERT = "Convert it to JPEG or PNG"

_STARTS: tuple[tuple[bytes, str, str], ...] = (
    *((start, f"a {kind}, not the image itself", fix) for start, (kind, fix) in POINTERS.items()),
    (b"\0\5\x16\7", "an AppleDouble file of macOS, which holds no pixels", "Remove the file"),
    (b"%!PS", "PostScript (EPS)", CONVERT),
    (b"\xc5\xd0\xd3\xc6", "PostScript (EPS)", CONVERT),
    (b"%PDF", "a PDF", CONVERT),
    (b"8BPS", "a Photoshop file", CONVERT),
    (b"\xd7\xcd\xc6\x9a", "a Windows metafile (WMF)", CONVERT),
    (b"\xff\x0a", "JPEG XL", CONVERT),
    (b"\0\0\0\x0cJXL ", "JPEG XL", CONVERT),
    (b"\0\0\1\0", "a Windows icon (ICO)", CONVERT),
    (b"icns", "an icon of macOS (ICNS)", CONVERT),
    (b"qoif", "QOI", CONVERT),
    (b"DDS ", "a DirectDraw surface (DDS)", CONVERT),
    (b"\x76\x2f\x31\x01", "OpenEXR", CONVERT),
    (b"SIMPLE  =", "FITS", CONVERT),
    (b"\x89HDF", "HDF5", CONVERT),
    (b"II*\0", "a TIFF of a kind that Pillow does not read, or damaged", "Save it with 8 or 16 bits"),
    (b"MM\0*", "a TIFF of a kind that Pillow does not read, or damaged", "Save it with 8 or 16 bits"),
    (b"PK\3\4", "a ZIP archive", "Unpack it"),
    (b"\x1f\x8b", "a gzip archive", "Unpack it"),
    (b"Rar!", "a RAR archive", "Unpack it"),
    (b"7z\xbc\xaf", "a 7z archive", "Unpack it"),
)
"""(first bytes, what it is, what to do)."""

_TEXTS = (("<!doctype html", "an HTML page"), ("<html", "an HTML page"), ("<svg", "SVG"), ("<?xml", "XML"))
_HEIF = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")


def kind_of(content: bytes) -> tuple[str, str]:
    """(what a file is, what to do) by its first bytes; ("", "") if they say nothing.

    Args:
        content: the file, or its first 512 bytes or more.
    """
    if not content:
        return "an empty file (0 bytes)", "Replace the file"
    for start, kind, fix in _STARTS:
        if content.startswith(start):
            return kind, fix
    if content[4:8] == b"ftyp":
        return ("HEIC" if content[8:12] in _HEIF else "a film or an image of a phone"), CONVERT
    if content[128:132] == b"DICM":
        return "DICOM", CONVERT
    text = content[:512].decode("latin-1").lstrip("\xef\xbb\xbf \t\r\n").lower()
    for start, kind in _TEXTS:
        if text.startswith(start):
            return ("SVG", CONVERT) if "<svg" in text else (kind, "Replace the file")
    return "", ""
