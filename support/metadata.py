"""What image files hold beside pixels: kept if it is still true of a larger image.

    python -c "from support.image_files import read_picture; \
        print(read_picture('photo.jpg').metadata)"

What is true but cannot be kept is named, so that nothing gets lost in silence.
"""

import re

from PIL import ExifTags, Image, ImageOps, PngImagePlugin

NAMES = {  # of keys of metadata that need another one
    "exif": "EXIF data",
    "xmp": "XMP data",
    "icc_profile": "ICC profile",
    "dpi": "resolution",
}
# EXIF and TIFF tags that describe the image. Others below 700 tell how its pixels are
# stored, and further ones of TIFF files are private to programs.
KEPT_TAGS = (269, 270, 271, 272, 282, 283, 285, 296, 301, 305, 306, 315, 316, 318, 319)
KEPT_TAGS += (33432, ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo)
FIRST_PRIVATE_TAG = 700
X_RESOLUTION, RESOLUTION_UNIT, XMP, ICC_PROFILE = 282, 296, 700, 34675
EXIF_SIZE_TAGS = (ExifTags.Base.ExifImageWidth, ExifTags.Base.ExifImageHeight)
# Places, sizes and resolutions in pixels, which are no longer true.
STALE_EXIF_TAGS = (0x1001, 0x1002, 0x9102, 0x9214, 0xA20E, 0xA20F, 0xA210, 0xA214)
STALE_XMP = (
    rb"tiff:(?:Orientation|Image\w+)|exif:(?:Pixel|FocalPlane|Subject)\w+|"
    rb"(?:GPano|GCamera|Container|hdrgm):\w+"
)
PNG_COLOR_CHUNKS = ("cHRM", "gAMA", "sRGB", "cICP")
PNG_CHUNKS_READ = ("IHDR", "PLTE", "IDAT", "IEND", "tRNS", "pHYs", "iCCP", "eXIf")
PNG_CHUNKS_READ += ("tEXt", "zTXt", "iTXt", "acTL", "fcTL", "fdAT")
PNG_TEXT_READ = ("XML:com.adobe.xmp", "Raw profile type exif")
PNG_TEXT_DROPPED = ("Raw profile type", "Thumb::", "exif:", "tiff:", "png:", "jpeg:")
JPEG_SEGMENTS_READ = (b"JFIF", b"JFXX", b"Exif", b"http://ns.adobe.com/xap/", b"Adobe")
JPEG_SEGMENTS_READ += (b"ICC_PROFILE", b"MPF", b"Photoshop")
INFO_DROPPED = {  # Pillow's keys
    "photoshop": "IPTC and Photoshop data",
    "aspect": "pixel aspect ratio",
    "id_section": "TGA comment",
}


def read_metadata(image, file, notes):
    """Turns a loaded image upright, and reads what is still true of a larger one.

    Args:
        image: Pillow image.
        file: the open file that it comes from.
        notes: list, to which what cannot be kept is added.

    Returns:
        a dict of Pillow's options for saving, "text", and PNG's color chunks.
    """
    dropped = [name for key, name in INFO_DROPPED.items() if image.info.get(key)]
    for segment, content in getattr(image, "applist", ()):
        if segment != "COM" and not content.startswith(JPEG_SEGMENTS_READ):
            dropped.append(segment)
    extension = image.info.get("extension", (b"",))[0]  # of GIF files
    if extension.startswith((b"XMP", b"ICC")):
        dropped.append(extension[:3].decode())

    metadata = {}
    exif = _read_exif(image, dropped, notes)
    if len(exif):
        metadata["exif"] = exif
    if image.info.get("icc_profile"):
        metadata["icc_profile"] = image.info["icc_profile"]
    elif "icc_profile" in image.info:
        notes.append("its ICC profile is damaged and was dropped")
    if image.info.get("xmp"):
        metadata["xmp"] = _without_properties(image.info["xmp"], STALE_XMP)
    dpi = _read_resolution(image, exif)
    if dpi:
        metadata["dpi"] = dpi
    comment = image.info.get("comment")
    if image.format == "PNG":
        metadata |= _read_chunks(file, dropped)
        text = _read_text(image, dropped)
        comment = text.pop("Comment", "").encode()
        if text:
            metadata["text"] = text
    if comment:
        metadata["comment"] = _to_utf8(comment)
    if dropped:
        notes.append(f"dropped: {', '.join(dict.fromkeys(dropped))}")
    return metadata


def _read_exif(image, dropped, notes):
    """Turns an image upright; returns its EXIF data, less what is no longer true."""
    is_tiff = image.format == "TIFF"
    try:
        Image.Exif().load(image.info.get("exif"))
        ImageOps.exif_transpose(image, in_place=True)
        exif = image.getexif()
        for tag in set(exif).difference(KEPT_TAGS):
            is_private = tag >= FIRST_PRIVATE_TAG
            if is_tiff or not is_private or tag in (XMP, ICC_PROFILE):
                del exif[tag]
            if is_tiff and is_private and tag not in (XMP, ICC_PROFILE):
                dropped.append(f"TIFF tag {ExifTags.TAGS.get(tag, tag)}")
        if ExifTags.IFD.Exif in exif:
            for tag in STALE_EXIF_TAGS:
                exif.get_ifd(ExifTags.IFD.Exif).pop(tag, None)
                exif.get_ifd(ExifTags.IFD.Interop).pop(tag, None)
        exif.tobytes()
    except Exception:  # offsets that lead anywhere make Pillow raise almost anything
        image.info.pop("exif", None)
        notes.append("its EXIF data are damaged and were dropped")
        return Image.Exif()
    return exif


def _read_resolution(image, exif):
    """Returns the dots per inch that a file states, or `None`."""
    dpi = tuple(float(value) for value in image.info.get("dpi", ()))
    # Pillow makes up a value for these formats.
    is_stated = True
    if image.format == "TIFF":
        has_unit = image.tag_v2.get(RESOLUTION_UNIT) != 1
        is_stated = has_unit and X_RESOLUTION in image.tag_v2
    elif image.format in ("JPEG", "MPO"):
        is_stated = image.info.get("jfif_unit") or X_RESOLUTION in exif
    return dpi if is_stated and len(dpi) == 2 and min(dpi) > 0 else None


def _read_chunks(file, dropped):
    """Returns the chunks of a PNG file that tell what its colors mean."""
    chunks = {}
    file.seek(8)  # the signature
    while len(header := file.read(8)) == 8:
        name = header[4:].decode("latin-1")
        length = int.from_bytes(header[:4], "big")
        end = file.tell() + length + 4  # the checksum
        if name in PNG_COLOR_CHUNKS:
            chunks[name] = file.read(length)
        elif name not in PNG_CHUNKS_READ:
            dropped.append(name)
        file.seek(end)
    return chunks


def _read_text(image, dropped):
    """Returns the text of a PNG file, less what other programs wrote for themselves."""
    text = {}
    for key, value in image.text.items():
        if key.startswith(PNG_TEXT_READ):
            continue
        if key.startswith(PNG_TEXT_DROPPED):
            dropped.append(key)
        else:
            text[key] = value
    return text


def _without_properties(xmp, names):
    """Removes properties, attributes and elements alike, from XMP data."""
    xmp = re.sub(rb"\s(?:%s)\s*=\s*(?:\"[^\"]*\"|'[^']*')" % names, b"", xmp)
    return re.sub(rb"<(%s)\b[^>]*(?:/>|>.*?</\1>)" % names, b"", xmp, flags=re.DOTALL)


def _to_utf8(comment):
    """Returns bytes of UTF-8; others are taken as Latin-1."""
    try:
        comment.decode()
    except UnicodeDecodeError:
        return comment.decode("latin-1").encode()
    return comment


def saving_options(metadata, file_format, size):
    """Returns Pillow's options that save metadata with an image of (width, height)."""
    options = dict(metadata)
    if "exif" in options:
        exif = options["exif"]
        details = {}
        if ExifTags.IFD.Exif in exif:
            details = exif.get_ifd(ExifTags.IFD.Exif)
        for tag, side in zip(EXIF_SIZE_TAGS, size, strict=True):
            if tag in details:
                details[tag] = side
        options["exif"] = exif.tobytes()
    if file_format == "PNG":
        options["pnginfo"] = info = PngImagePlugin.PngInfo()
        for key, value in options.get("text", {}).items():
            info.add_itxt(key, value)
        if "comment" in options:
            info.add_itxt("Comment", options["comment"].decode())
        if "xmp" in options:
            info.add_itxt("XML:com.adobe.xmp", options.pop("xmp").decode())
        for name in PNG_COLOR_CHUNKS:
            if name in options:
                info.add(name.encode(), options[name])
    return options
